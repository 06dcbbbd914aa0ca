"""Read a GGUF file, the format of llama.cpp: metadata, and tensors in blocks of few bits.

Every size in the file is compared with the size of the file before it is used.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tinyformer.checkpoints.ggml_types import GGML_TYPES, OTHER_TYPES, GGMLType
from tinyformer.files import printable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# The largest published headers, with 260,000 tokens and their merges, have 20 MB.
MAX_HEADER_BYTES = 1 << 26
MAX_TENSORS = 1 << 16
MAX_DIMENSIONS = 4
# The number of each type of value in the metadata -> its format in the module struct.
NUMBERS = {
  0: "B",
  1: "b",
  2: "H",
  3: "h",
  4: "I",
  5: "i",
  6: "f",
  7: "?",
  10: "Q",
  11: "q",
  12: "d",
}
STRING = 8
ARRAY = 9
# The fewest bytes of an entry: the length of its name, a type, and an empty string or an offset.
MIN_VALUE_BYTES = 8 + 4 + 1
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8


class GGUFTensor(NamedTuple):
  """Location, type and shape of a tensor whose values have not been read yet."""

  path: Path
  type: GGMLType
  shape: tuple[int, ...]
  offset: int

  @property
  def nbytes(self) -> int:
    """Return the number of bytes in the file."""
    return math.prod(self.shape) // self.type.block_size * self.type.block_bytes

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`, as float32."""
    num_rows = len(range(*slice(first, last).indices(self.shape[0])))
    shape = (num_rows, *self.shape[1:])
    row_size = math.prod(self.shape[1:])
    # A vector may be read in part only if the part consists of blocks.
    start, remainder = divmod(first * row_size, self.type.block_size)
    num_blocks, remainder2 = divmod(num_rows * row_size, self.type.block_size)
    if remainder or remainder2:
      return self.numpy()[first:last]
    return self.type.dequantize(self.read_blocks(start, num_blocks)).reshape(shape)

  def int4(self, first: int, last: int) -> np.ndarray | None:
    """Return rows of a matrix as quantize_int4 would, or None if its type is not Q4_0."""
    if self.type.name != "Q4_0" or self.shape[1] % self.type.block_size:
      return None
    blocks_per_row = self.shape[1] // self.type.block_size
    blocks = self.read_blocks(first * blocks_per_row, (last - first) * blocks_per_row)
    return blocks.reshape(last - first, -1)

  def read_blocks(self, start: int, num_blocks: int) -> np.ndarray:
    """Return the bytes of blocks (num_blocks, block_bytes) from block `start` on."""
    blocks = np.empty((num_blocks, self.type.block_bytes), np.uint8)
    # Read instead of mmap: mapped pages count as memory of this process until it ends.
    with open(self.path, "rb") as f:
      f.seek(self.offset + start * self.type.block_bytes)
      buffer: Any = blocks.data.cast("B") if blocks.size else b""
      if f.readinto(buffer) != blocks.nbytes:
        raise ValueError(f"{self.path} has become shorter since it was opened")
    return blocks


class GGUF(NamedTuple):
  """The content of a GGUF file.

  metadata: the value of each key. An array of numbers is a numpy array, one of strings a list.
  """

  path: Path
  metadata: dict[str, Any]
  tensors: dict[str, GGUFTensor]


def is_gguf(path: str | Path) -> bool:
  """Return whether a path is that of a file with the ending .gguf."""
  return Path(path).suffix == ".gguf" and Path(path).is_file()


def read_gguf(path: str | Path) -> GGUF:
  """Read the metadata of a GGUF file, and where its tensors are.

  Raises FileNotFoundError, or ValueError if the file is damaged, truncated or of a type that is not
  supported.
  """
  path = Path(path)
  try:
    with open(path, "rb") as f:
      return HeaderReader(path, f).read()
  except (ValueError, struct.error, OverflowError) as e:
    raise ValueError(printable(f"{path} cannot be read as GGUF: {e}", 500)) from e


class HeaderReader:
  """Reads the header of a GGUF file, and checks each size before it is used."""

  def __init__(self, path: Path, file: BinaryIO):
    self.path = path
    self.file = file
    self.size = path.stat().st_size

  def read(self) -> GGUF:
    """Return the content of the file. Raises ValueError if it is invalid."""
    magic = self.take(4)
    if magic != MAGIC:
      raise ValueError(f"it begins with {magic!r}, not {MAGIC!r}")
    version = self.number("I")
    if version not in VERSIONS:
      raise ValueError(f"version {version} is not supported; only 2 and 3 are, in little-endian")
    num_tensors = self.count("tensors", MIN_TENSOR_BYTES)
    if num_tensors > MAX_TENSORS:
      raise ValueError(f"it has {num_tensors:,} tensors, more than {MAX_TENSORS:,}")
    num_values = self.count("metadata values", MIN_VALUE_BYTES)
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
      key = self.string()
      if key in metadata:
        raise ValueError(f"the key {key!r} occurs twice")
      metadata[key] = self.value(key)
    entries = [self.tensor_entry() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment % 8:
      raise ValueError(f"general.alignment must be a multiple of 8, not {alignment!r}")
    data_start = -(-self.file.tell() // alignment) * alignment
    return GGUF(self.path, metadata, self.locate(entries, data_start, alignment))

  def take(self, n: int) -> bytes:
    """Return the next n bytes. Raises ValueError if the file ends before, or the header is huge."""
    position = self.file.tell()
    if n > self.size - position:
      raise ValueError(
        f"{n:,} bytes are needed at byte {position:,}, but it has {self.size:,} bytes"
      )
    if position + n > MAX_HEADER_BYTES:
      raise ValueError(f"its header has more than {MAX_HEADER_BYTES:,} bytes")
    return self.file.read(n)

  def number(self, letter: str) -> Any:
    """Return the next number, in a format of the module struct."""
    (value,) = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))
    return value

  def count(self, what: str, min_bytes: int) -> int:
    """Return the next number of things that have at least `min_bytes` bytes each."""
    count = self.number("Q")
    if count > (self.size - self.file.tell()) // min_bytes:
      raise ValueError(f"{count:,} {what} do not fit into its {self.size:,} bytes")
    return count

  def string(self) -> str:
    """Return the next string. Raises ValueError if it is not UTF-8."""
    return self.take(self.count("bytes of text", 1)).decode()

  def value(self, key: str) -> Any:
    """Return the next value of the metadata, which begins with its type."""
    kind = self.number("I")
    if kind in NUMBERS:
      value = self.number(NUMBERS[kind])
      # The shortest decimal number that rounds to the same float32, such as 1e-05.
      return float(str(np.float32(value))) if NUMBERS[kind] == "f" else value
    if kind == STRING:
      return self.string()
    if kind != ARRAY:
      raise ValueError(f"{key} has the unknown type {kind}")
    kind = self.number("I")
    if kind == STRING:
      return [self.string() for _ in range(self.count("strings", 8))]
    if kind not in NUMBERS:
      raise ValueError(f"{key} is an array of the unknown type {kind}")
    dtype = np.dtype(NUMBERS[kind]).newbyteorder("<")
    n = self.count("numbers", dtype.itemsize)
    return np.frombuffer(self.take(n * dtype.itemsize), dtype)

  def tensor_entry(self) -> tuple[str, GGMLType, tuple[int, ...], int]:
    """Return the name, type, shape and offset of the next tensor."""
    name = self.string()
    num_dimensions = self.number("I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
      raise ValueError(f"{name} has {num_dimensions:,} dimensions, not 1 to {MAX_DIMENSIONS}")
    # The file lists the axis of adjacent elements first.
    shape = tuple(self.number("Q") for _ in range(num_dimensions))[::-1]
    number = self.number("I")
    if number not in GGML_TYPES:
      label = OTHER_TYPES.get(number, f"number {number}")
      supported = ", ".join(t.name for t in GGML_TYPES.values())
      raise ValueError(f"{name} has the type {label}, which is not one of {supported}")
    return name, GGML_TYPES[number], shape, self.number("Q")

  def locate(
    self, entries: list[tuple[str, GGMLType, tuple[int, ...], int]], start: int, alignment: int
  ) -> dict[str, GGUFTensor]:
    """Return the tensors by name. start: the first byte of the data.

    Raises ValueError if a tensor is not aligned, overlaps another or exceeds the file.
    """
    tensors: dict[str, GGUFTensor] = {}
    end, previous = start, ""
    for name, ggml_type, shape, offset in sorted(entries, key=lambda entry: entry[3]):
      tensor = GGUFTensor(self.path, ggml_type, shape, start + offset)
      if name in tensors:
        raise ValueError(f"the tensor {name!r} occurs twice")
      if min(shape) < 1 or shape[-1] % ggml_type.block_size:
        raise ValueError(
          f"{name} of shape {shape} does not consist of blocks of {ggml_type.block_size}"
        )
      if offset % alignment:
        raise ValueError(f"{name} begins at {offset:,}, which is not a multiple of {alignment}")
      if tensor.offset < end:
        raise ValueError(f"the tensors {previous} and {name} overlap")
      end, previous = tensor.offset + tensor.nbytes, name
      if end > self.size:
        raise ValueError(f"{name} ends at byte {end:,}, but it has {self.size:,} bytes")
      tensors[name] = tensor
    return tensors
