"""Run llama.cpp's programs: convert a model, measure its speed and its memory.

benchmarks/build_llama_cpp.py builds the programs in a folder, which contains source/ and build/.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import NEW_TOKENS
from benchmarks.machine import last_line, megabytes

PROGRAMS = ["llama-bench", "llama-batched-bench", "llama-completion", "llama-quantize"]
# llama.cpp's name of each dtype. Q8_0 and Q4_0 have blocks of 32 weights with a scale each.
FILE_TYPES = {
  "float32": "F32",
  "float16": "F16",
  "bfloat16": "BF16",
  "int8": "Q8_0",
  "int4": "Q4_0",
}


def default_folder() -> Path:
  """Return the folder in which the build script puts llama.cpp, and where bench.py finds it."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "tinyformer" / "llama.cpp"


def program(folder: Path, name: str) -> Path:
  """Return the path of a program of llama.cpp's build."""
  return folder / "build" / "bin" / name


def is_built(folder: Path) -> bool:
  """Return whether a folder contains all programs."""
  return all(program(folder, name).exists() for name in PROGRAMS)


def vocabulary_file(folder: Path, name: str) -> Path:
  """Return the GGUF file with a model's vocabulary: gpt-2 or llama-bpe. It has no weights."""
  return folder / "source" / "models" / f"ggml-vocab-{name}.gguf"


def model_file(folder: Path, dtype: str) -> Path:
  """Return the path of the converted model in the folder of the weights."""
  return folder / f"llama.cpp-{dtype}.gguf"


def run(command: list) -> subprocess.CompletedProcess:
  """Run a program and return its output. Raises RuntimeError with its last line if it fails."""
  process = subprocess.run([str(part) for part in command], capture_output=True, text=True)
  if process.returncode:
    raise RuntimeError(f"{Path(command[0]).name}: {last_line(process.stderr)}")
  return process


def convert(llama: Path, folder: Path, dtypes: list[str]) -> None:
  """Convert the weights in a folder with llama.cpp's own converter, to each dtype."""
  original_dtype = json.loads((folder / "config.json").read_text()).get("dtype", "float32")
  original = model_file(folder, original_dtype)
  if not original.exists():
    converter = llama / "source" / "convert_hf_to_gguf.py"
    output_type = {"float32": "f32", "bfloat16": "bf16"}[original_dtype]
    part = original.with_suffix(".part")  # an interrupted conversion leaves no model
    run([sys.executable, converter, folder, "--outfile", part, "--outtype", output_type])
    part.replace(original)
  for dtype in dtypes:
    file = model_file(folder, dtype)
    if not file.exists():
      part = file.with_suffix(".part")
      run([program(llama, "llama-quantize"), original, part, FILE_TYPES[dtype]])
      part.replace(file)


class LlamaCpp:
  """llama.cpp: each measurement is a process of llama-bench, which warms up by itself.

  llama-bench decodes random tokens and does not select the most likely ones.
  """

  def __init__(self, folder: Path, dtype: str, threads: int):
    # bench.py links the folder of llama.cpp here.
    self.llama = folder / "llama.cpp"
    self.options = ["-m", model_file(folder, dtype), "-t", threads]

  def bench(self, prompt: int, new_tokens: int, depth: int) -> float:
    """Return tokens per second of a prompt or of new tokens, after `depth` earlier tokens.

    The better result with and without flash attention counts.
    """
    command = [program(self.llama, "llama-bench"), *self.options, "-r", 1, "-o", "json"]
    output = run([*command, "-fa", "0,1", "-p", prompt, "-n", new_tokens, "-d", depth]).stdout
    return max(test["avg_ts"] for test in json.loads(output))

  def speed(self, task: str, batch: int, length: int) -> float:
    """Return a task's tokens per second."""
    if task.startswith("prefill"):
      return self.bench(length, 0, 0)
    if batch == 1:
      return self.bench(0, NEW_TOKENS, length)
    command = [program(self.llama, "llama-batched-bench"), *self.options, "-c", 1024]
    sizes = ["-npp", length, "-ntg", NEW_TOKENS, "-npl", batch]
    lines = run([*command, *sizes, "--output-format", "jsonl"]).stdout.splitlines()
    results = [json.loads(line) for line in lines if line.startswith("{")]
    return results[-1]["speed_tg"]

  def memory(self) -> float:
    """Return the peak memory in MB of a process that reads 512 tokens and decodes 64."""
    command = [program(self.llama, "llama-bench"), *self.options, "-r", 1, "-o", "json"]
    arguments = [str(part) for part in [*command, "-p", 0, "-n", NEW_TOKENS, "-d", 512]]
    devnull = subprocess.DEVNULL
    process = subprocess.Popen(arguments, stdout=devnull, stderr=devnull)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
      raise RuntimeError(f"llama-bench ended with status {status}")
    return megabytes(usage.ru_maxrss)


def first_token_command(llama: Path, folder: Path, dtype: str, threads: int) -> list[str]:
  """Return the command that loads a model and generates one token."""
  options = ["-m", model_file(folder, dtype), "-t", threads, "-p", "Once", "-n", 1]
  quiet = ["-no-cnv", "--no-warmup", "--simple-io", "--temp", 0, "-c", 64]
  return [str(part) for part in [program(llama, "llama-completion"), *options, *quiet]]
