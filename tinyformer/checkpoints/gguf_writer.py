"""Write a GGUF file, the format of llama.cpp: metadata, and tensors in F32, F16, BF16 or Q8_0.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.checkpoints.ggml_types import GGML_TYPES, GGMLType, quantize_q8_0
from tinyformer.checkpoints.gguf import ARRAY, MAGIC, NUMBERS, STRING
from tinyformer.checkpoints.safetensors import CONVERSIONS, Report, StoredTensor, rows_of
from tinyformer.files import atomic_write

VERSION = 3
ALIGNMENT = 32
# The name of each type -> its number in a file.
TYPE_NUMBERS = {ggml_type.name: number for number, ggml_type in GGML_TYPES.items()}
FORMAT_NUMBERS = {letter: number for number, letter in NUMBERS.items()}
# llama.cpp expects unsigned numbers, except in arrays.
FORMATS = {bool: "?", int: "I", float: "f"}
ARRAY_FORMATS = {int: "i", float: "f"}
# How to convert float32 rows to each type that can be written.
ENCODERS = {
  "F32": CONVERSIONS["float32"],
  "F16": CONVERSIONS["float16"],
  "BF16": CONVERSIONS["bfloat16"],
  "Q8_0": quantize_q8_0,
}


def string_bytes(text: str) -> bytes:
  """Return a string in the file's format: its length, then UTF-8."""
  data = text.encode()
  return struct.pack("<Q", len(data)) + data


def value_bytes(value: Any) -> bytes:
  """Return a value in the file's format: its type, then its bytes.

  value: a bool, an integer of 32 bits, a float, a string, or a list of integers, floats or strings.
  """
  if isinstance(value, str):
    return struct.pack("<I", STRING) + string_bytes(value)
  if not isinstance(value, list):
    letter = FORMATS[type(value)]
    return struct.pack(f"<I{letter}", FORMAT_NUMBERS[letter], value)
  if not value or isinstance(value[0], str):
    kind, items = STRING, b"".join(map(string_bytes, value))
  else:
    letter = ARRAY_FORMATS[type(value[0])]
    kind, items = FORMAT_NUMBERS[letter], np.array(value, f"<{letter}").tobytes()
  return struct.pack("<IIQ", ARRAY, kind, len(value)) + items


def type_of(tensor: StoredTensor, name: str, dtype: str) -> str:
  """Return the type in which llama.cpp's converter stores a tensor.

  Vectors and position embeddings are F32. Rows that do not consist of blocks are F16.
  """
  if len(tensor.shape) < 2 or name.startswith("position_embd."):
    return "F32"
  block_size = GGML_TYPES[TYPE_NUMBERS[dtype]].block_size
  return dtype if tensor.shape[-1] % block_size == 0 else "F16"


def size_in_file(ggml_type: GGMLType, shape: tuple[int, ...]) -> int:
  """Return the bytes of a tensor, without the padding after it."""
  return math.prod(shape) // ggml_type.block_size * ggml_type.block_bytes


def write_gguf(
  path: Path,
  metadata: Mapping[str, Any],
  tensors: Mapping[str, StoredTensor],
  dtype: str = "F32",
  report: Report = lambda *_: None,
) -> None:
  """Write a GGUF file, completely or not at all.

  dtype: F32, F16, BF16 or Q8_0, the type of the matrices; see type_of.
  report: called with the number of weights that have been written and the total.
  """
  header = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
  header += b"".join(string_bytes(key) + value_bytes(value) for key, value in metadata.items())
  end = 0
  types = {name: type_of(tensor, name, dtype) for name, tensor in tensors.items()}
  for name, tensor in tensors.items():
    number, shape = TYPE_NUMBERS[types[name]], tensor.shape
    # The axis of adjacent elements comes first.
    header += string_bytes(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    header += struct.pack("<IQ", number, end)
    end += -(-size_in_file(GGML_TYPES[number], shape) // ALIGNMENT) * ALIGNMENT
  total, done = sum(math.prod(tensor.shape) for tensor in tensors.values()), 0
  with atomic_write(path) as part, open(part, "wb") as f:
    f.write(header + bytes(-len(header) % ALIGNMENT))
    for name, tensor in tensors.items():
      for rows in rows_of(tensor):
        f.write(np.ascontiguousarray(ENCODERS[types[name]](rows)).data)
        done += rows.size
        report(done, total)
      f.write(bytes(-f.tell() % ALIGNMENT))
