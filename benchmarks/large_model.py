"""Load a 7B model with 4-bit weights and generate from it: seconds, tokens per second, memory.

The model has LLaMA-7B's shape and random weights, in a GGUF file of 3.8 GB with Q4_0 blocks.
"""

import argparse
import json
import math
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.llama_cpp import default_folder, is_built, program, run
from benchmarks.machine import CORES, peak_memory
from tinyformer import cli

NEW_TOKENS = 16
# Sizes of LLaMA-7B, as llama.cpp's metadata.
LLAMA_7B: dict[str, int | float | str] = {
  "general.architecture": "llama",
  "general.name": "random weights of LLaMA-7B's shape",
  "llama.vocab_size": 32_000,
  "llama.context_length": 2048,
  "llama.embedding_length": 4096,
  "llama.feed_forward_length": 11_008,
  "llama.block_count": 32,
  "llama.attention.head_count": 32,
  "llama.attention.head_count_kv": 32,
  "llama.rope.dimension_count": 128,
  "llama.attention.layer_norm_rms_epsilon": 1e-6,
  "tokenizer.ggml.model": "no_vocab",
}
# The number of each type of value and of tensor in a GGUF file.
VALUE_TYPES = {int: (4, "<I"), float: (6, "<f")}
F32 = 0
Q4_0 = 2
GROUP = 32  # weights in a block of Q4_0: a float16 scale, and 16 bytes with two weights each
BLOCK_BYTES = 18
ALIGNMENT = 32
BLOCKS_PER_WRITE = 2**18


def shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """Return the shape of each tensor of a LLaMA, by llama.cpp's names."""
  dim = sizes["llama.embedding_length"]
  ff_dim = sizes["llama.feed_forward_length"]
  vocab_size = sizes["llama.vocab_size"]
  block: dict[str, tuple[int, ...]] = {
    "attn_norm": (dim,),
    **{f"attn_{name}": (dim, dim) for name in ("q", "k", "v", "output")},
    "ffn_norm": (dim,),
    "ffn_gate": (ff_dim, dim),
    "ffn_up": (ff_dim, dim),
    "ffn_down": (dim, ff_dim),
  }
  tensors: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (vocab_size, dim),
    "output.weight": (vocab_size, dim),
  }
  for layer in range(sizes["llama.block_count"]):
    tensors |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
  return tensors | {"output_norm.weight": (dim,)}


def num_bytes(shape: tuple[int, ...]) -> int:
  """Return the size of a vector of float32, or of a matrix of blocks."""
  return math.prod(shape) * 4 if len(shape) == 1 else math.prod(shape) // GROUP * BLOCK_BYTES


def string(text: str) -> bytes:
  return struct.pack("<Q", len(text)) + text.encode()


def header(metadata: dict[str, int | float | str], tensors: dict[str, tuple[int, ...]]) -> bytes:
  """Return the beginning of a GGUF file. The data of the tensors follow one another."""
  parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
  for key, value in metadata.items():
    if isinstance(value, str):
      parts.append(string(key) + struct.pack("<I", 8) + string(value))
    else:
      number, letter = VALUE_TYPES[type(value)]
      parts.append(string(key) + struct.pack("<I", number) + struct.pack(letter, value))
  offset = 0
  for name, shape in tensors.items():
    kind = F32 if len(shape) == 1 else Q4_0
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    parts.append(string(name) + sizes + struct.pack("<IQ", kind, offset))
    offset += -(-num_bytes(shape) // ALIGNMENT) * ALIGNMENT
  data = b"".join(parts)
  return data + bytes(-len(data) % ALIGNMENT)


def write_model(file: Path, metadata: dict[str, int | float | str]) -> None:
  """Write a LLaMA with random weights, a few megabytes at a time."""
  tensors = shapes(metadata)
  rng = np.random.default_rng(0)
  with open(file, "wb") as f:
    f.write(header(metadata, tensors))
    for shape in tensors.values():
      if len(shape) == 1:
        f.write(np.ones(shape, np.float32).tobytes())
      else:
        num_blocks = math.prod(shape) // GROUP
        for start in range(0, num_blocks, BLOCKS_PER_WRITE):
          f.write(random_blocks(min(BLOCKS_PER_WRITE, num_blocks - start), rng).tobytes())
      f.write(bytes(-num_bytes(shape) % ALIGNMENT))


def random_blocks(count: int, rng: np.random.Generator) -> np.ndarray:
  """Return blocks (count, 18) whose weights have a standard deviation of about 0.02."""
  blocks = rng.integers(0, 256, (count, BLOCK_BYTES), np.uint8)
  scales = rng.uniform(0.003, 0.006, (count, 1)).astype(np.float16)
  blocks[:, :2] = scales.view(np.uint8)
  return blocks


def measure(file: Path) -> dict[str, float]:
  """Load a model in int4, generate NEW_TOKENS tokens greedily, and return the measurements."""
  from tinyformer.device import select_device

  start = time.perf_counter()
  select_device()
  from tinyformer import checkpoints
  from tinyformer.generation.engine import Engine

  model = checkpoints.load_module(file, "int4")
  loaded = time.perf_counter()
  engine = Engine(model, top_k=1)
  logits = engine(np.array([[1]]))
  first_token = time.perf_counter()
  for _ in range(NEW_TOKENS - 1):
    logits = engine(np.array([[int(logits[0].argmax())]]))
  end = time.perf_counter()
  return {
    "load, s": loaded - start,
    "first token after loading, s": first_token - loaded,
    "decode": (NEW_TOKENS - 1) / (end - first_token),
    "peak memory, MB": peak_memory(),
  }


def measure_llama_cpp(llama: Path, file: Path) -> dict[str, float]:
  """Decode as many tokens with llama-bench, and return their number per second."""
  command = [program(llama, "llama-bench"), "-m", file, "-t", CORES, "-r", 1, "-o", "json"]
  tests = json.loads(run([*command, "-p", 0, "-n", NEW_TOKENS]).stdout)
  return {"decode": max(test["avg_ts"] for test in tests)}


def main(argv: list[str] | None = None) -> int:
  description = (__doc__ or "").split("\n")[0]
  p = argparse.ArgumentParser(prog="large_model.py", description=description)
  p.add_argument("file", type=Path, help="GGUF file, written with random weights if missing")
  p.add_argument(
    "--llama-cpp",
    type=Path,
    default=default_folder(),
    metavar="FOLDER",
    help="folder in which benchmarks/build_llama_cpp.py built llama.cpp (default: %(default)s)",
  )
  args = p.parse_args(argv)
  if not args.file.exists():
    part = args.file.with_suffix(".part")
    write_model(part, LLAMA_7B)
    os.replace(part, args.file)
  results = {"tinyformer int4": measure(args.file)}
  if is_built(args.llama_cpp):
    results["llama.cpp int4"] = measure_llama_cpp(args.llama_cpp, args.file)
  for name, figures in results.items():
    print(name, *(f"{figure}: {value:,.1f}" for figure, value in figures.items()), sep=" | ")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
