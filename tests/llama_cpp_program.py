"""Generate tokens with llama.cpp's program, which benchmarks/build_llama_cpp.py builds."""

import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from benchmarks import llama_cpp

# In float32, with one thread: several wait for each other on a busy machine.
OPTIONS = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--threads", 1]
OPTIONS += ["--temp", 0, "-c", 256, "--no-conversation", "--no-escape", "--no-warmup"]


def greedy_ids(file: Path, prompt: str, num_tokens: int) -> list[int]:
  """Return the tokens of a prompt and the most likely ones after it, according to llama.cpp.

  The calling test is skipped if llama.cpp is not built.
  """
  program = llama_cpp.program(llama_cpp.default_folder(), "llama-completion")
  if not program.exists():
    pytest.skip("llama.cpp is not built: run python benchmarks/build_llama_cpp.py")
  with tempfile.TemporaryDirectory() as folder:
    # The program can end before it has printed everything, so its tokens are read from a file.
    session = Path(folder) / "session"
    command = [program, "-m", file, "-p", prompt, "-n", num_tokens, *OPTIONS]
    command += ["--prompt-cache", session, "--prompt-cache-all"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    data = session.read_bytes()
  magic, _, count = struct.unpack_from("<4s2I", data)
  assert magic == b"nsgg"
  return list(struct.unpack_from(f"<{count}i", data, 12))


def our_greedy_ids(model, prompt: str, num_tokens: int) -> list[int]:
  """Return the same tokens according to a model of ours, without the end of the text."""
  from tinyformer.tasks.text_generation import SamplingConfig

  ids = model.tokenizer.single(model.tokenizer.encode(prompt))
  generator = model._text_generator(SamplingConfig(num_tokens, temperature=0), keep_cache=False)
  generator.engine.position = 0
  for _ in generator.generate(ids):
    pass
  return [*ids, *generator.history]


def assert_equal_ids(model, file: Path, prompt: str, num_tokens: int) -> None:
  """Require that a GGUF file has the tokens of our model in llama.cpp."""
  expected = our_greedy_ids(model, prompt, num_tokens)
  actual = greedy_ids(file, prompt, num_tokens)
  if actual[-1] in model.tokenizer.stop_ids:
    actual.pop()
  assert actual == expected
