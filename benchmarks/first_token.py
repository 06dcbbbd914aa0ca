"""The seconds from each peer's command to its first token."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import llama_cpp
from benchmarks.machine import CORES, last_line
from benchmarks.report import Results
from benchmarks.systems import OURS

# These peers generate with another peer's program, or do not generate text.
UNMEASURED = ("torch.compile", "sentence-transformers")


def first_token_command(library: str, dtype: str, folder: Path) -> list[str]:
  """Return the command that loads a peer's model and generates one token."""
  if library == "llama.cpp":
    return llama_cpp.first_token_command(folder / "llama.cpp", folder, dtype, CORES)
  return [sys.executable, "-c", first_token_code(library, dtype, folder)]


def first_token_code(library: str, dtype: str, folder: Path) -> str:
  """Return a Python program that loads a peer's model and generates one token."""
  if library in OURS:
    device = ", '--device', 'NUMPY'" if library == "minigrad" else ""
    arguments = f"['-m', r'{folder}', '-p', 'Once', '-n', '1', '--dtype', '{dtype}'{device}]"
    statements = [
      "import gpt, sys",
      "from tinyformer import cli",
      f"sys.exit(cli.run(lambda: gpt.main({arguments})))",
    ]
  elif library == "torch":
    statements = [
      "import torch",
      "from transformers import AutoModelForCausalLM, AutoTokenizer",
      f"model = AutoModelForCausalLM.from_pretrained(r'{folder}', dtype=torch.{dtype})",
      f"tokenizer = AutoTokenizer.from_pretrained(r'{folder}')",
      "inputs = tokenizer('Once', return_tensors='pt')",
      "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=1)[0]))",
    ]
  else:
    converted = folder / f"ctranslate2-{dtype}"
    statements = [
      "import ctranslate2",
      f"model = ctranslate2.Generator(r'{converted}', compute_type='{dtype}')",
      "print(model.generate_batch([['O', 'n', 'c', 'e']], max_length=1))",
    ]
  return "; ".join(statements)


def first_tokens(names: list[str], folder: Path, repeat: int) -> Results:
  """Measure the seconds from each peer's command to its first token, the whole process included.

  The first round starts with an empty cache of compiled kernels; only tinyformer's time counts. No
  time of the second round counts, because tinyformer saves a snapshot of the weights then. `repeat`
  rounds with a warm cache follow. Rounds are interleaved.
  """
  names = [name for name in names if not name.startswith(UNMEASURED)]
  results: Results = {name: {} for name in names}
  for round_index in range(repeat + 2):
    print(f"first token: round {round_index + 1} of {repeat + 2}", file=sys.stderr, flush=True)
    figure = "first token, warm cache, s" if round_index else "first token, empty cache, s"
    for name in list(results):
      library, dtype = name.split()
      cache = folder / f"cache of {name}"
      if round_index == 0:
        # An earlier run in the same folder may have left its cache.
        shutil.rmtree(cache, ignore_errors=True)
      environment = {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
      start = time.perf_counter()
      process = subprocess.run(
        first_token_command(library, dtype, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
      )
      seconds = time.perf_counter() - start
      if process.returncode:
        print(f"{name}: {last_line(process.stderr)}", file=sys.stderr)
      elif round_index > 1 or (round_index == 0 and name.startswith("tinyformer")):
        results[name].setdefault(figure, []).append(seconds)
  return results
