"""Decode with llama.cpp after a session file, which contains the KV cache of earlier tokens.

The file is written here, with random keys and values. The format is that of version 10 in
llama.cpp's llama_context::state_save_file and llama_kv_cache::state_write.
"""

import json
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llama_cpp import model_file, program
from benchmarks.machine import last_line, megabytes

MAGIC = 0x6767736E  # "ggsn"
VERSION = 10
FLOAT16 = 1  # ggml's number of the type
# Tokens that are decoded after the session's.
NEW_TOKENS = 16


def write_session(file: Path, config: dict[str, Any], length: int) -> None:
  """Write a session of `length` tokens with random float16 keys and values for a Llama.

  It has one more token, which llama-completion processes first.
  """
  layers = config["num_hidden_layers"]
  width = config["num_key_value_heads"] * config["head_dim"]
  rng = np.random.default_rng(0)
  architecture = config["model_type"].encode()
  cells = np.zeros((length, 3), np.int32)  # position, number of sequences, sequence
  cells[:, 0] = np.arange(length)
  cells[:, 1] = 1
  with open(file, "wb") as f:
    f.write(struct.pack("<3I", MAGIC, VERSION, length + 1))
    f.write(np.ones(length + 1, np.int32).tobytes())  # the tokens
    f.write(struct.pack("<I", len(architecture)) + architecture)
    f.write(struct.pack("<2I", 1, length) + cells.tobytes())  # the number of streams, of cells
    f.write(struct.pack("<2I", 0, layers))  # 0: the values are not transposed
    for _ in range(2 * layers):  # the keys of each layer, then the values of each layer
      f.write(struct.pack("<iQ", FLOAT16, 2 * width))
      f.write(rng.standard_normal((length, width), dtype=np.float32).astype(np.float16).tobytes())


def session_file(folder: Path, length: int) -> Path:
  """Return a session of `length` tokens for the model in a folder. Write it if it is missing."""
  file = folder / f"llama.cpp-session-{length}"
  if not file.exists():
    part = file.with_suffix(".part")
    write_session(part, json.loads((folder / "config.json").read_text()), length)
    part.replace(file)
  return file


def decode(folder: Path, dtype: str, threads: int, length: int) -> tuple[float, float]:
  """Decode after `length` tokens; return the milliseconds per token and the peak memory in MB."""
  command = [
    program(folder / "llama.cpp", "llama-completion"),
    *("-m", model_file(folder, dtype), "-t", threads, "-c", length + NEW_TOKENS + 8),
    *("--prompt-cache", session_file(folder, length), "--prompt-cache-ro", "-fa", "on"),
    *("-n", NEW_TOKENS, "--temp", 0, "--ignore-eos", "-no-cnv", "--simple-io", "--perf"),
  ]
  # A model with random weights writes bytes that are not UTF-8.
  with tempfile.TemporaryFile("w+", errors="replace") as output:
    process = subprocess.Popen(
      [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
    )
    _, status, usage = os.wait4(process.pid, 0)
    output.seek(0)
    text = output.read()
  timing = re.search(r"\beval time =.*?/\s*\d+ runs\s*\(\s*([\d.]+) ms per token", text)
  if status or timing is None or f"a session with prompt size of {length + 1} tokens" not in text:
    raise RuntimeError(f"llama-completion ended with status {status}: {last_line(text)}")
  return float(timing[1]), megabytes(usage.ru_maxrss)
