"""Read and write checkpoints: safetensors files, and folders as `save_pretrained` writes them."""

import json
import math
import mmap
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tinygrad import Tensor, dtypes, nn
from tinygrad.dtype import DType

from models.key_map import KeyMap
from tinyformer.backend import is_minigrad
from tinyformer.files import atomic_write, open_regular, printable, read_json, write_text
from tinyformer.kernels.quantization import (
  GROUP,
  GROUP_BYTES,
  quantize_int4,
  quantize_int8,
  to_float32,
)

# Published headers have less than 1 MB. A parsed header takes ten times as much memory.
MAX_HEADER_BYTES = 25_000_000
# Bytes per element of each type in the format.
ITEM_SIZES = {
  "F64": 8,
  "F32": 4,
  "F16": 2,
  "BF16": 2,
  "I64": 8,
  "I32": 4,
  "I16": 2,
  "I8": 1,
  "U8": 1,
  "BOOL": 1,
}
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
# The data types of parameters, by name. A byte holds two int4 weights. minigrad has two of these
# types, and reads only float32.
DTYPES = {
  name: getattr(dtypes, tinygrad_name)
  for name, tinygrad_name in {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int4": "uint8",
  }.items()
  if hasattr(dtypes, tinygrad_name)
}
# int4 leaves these parameters, the embeddings and heads, in int8: with 4 bits, they would cost more
# accuracy than all other matrices together (docs/performance.md).
KEPT_IN_INT8 = r"\b(tokens|positions|segments|table|head)\."
# Elements that are read and converted at a time, so that large tensors are not in memory twice.
ELEMENTS_PER_READ = 2**18
# Called with the number of units that are done, and their total.
Report = Callable[[int, int], None]


class StoredTensor(Protocol):
  """A tensor in a file, whose values have not been read yet."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`, as float32."""


def page_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Return an uninitialized array. The memory of a large one is returned to the system when freed.

  malloc would keep the memory that a thread frees.
  """
  size = math.prod(shape) * dtype.itemsize
  if size <= ELEMENTS_PER_READ * dtype.itemsize or not hasattr(mmap, "MAP_PRIVATE"):
    return np.empty(shape, dtype)
  memory = mmap.mmap(-1, size, mmap.MAP_ANON | mmap.MAP_PRIVATE)
  return np.frombuffer(memory, dtype).reshape(shape)


class TensorInfo(NamedTuple):
  """Location, dtype and shape of a tensor whose values have not been read yet."""

  path: Path
  dtype: str
  shape: tuple[int, ...]
  offset: int

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`, as float32.

    float16 and bfloat16 are converted exactly. Raises ValueError if the type is not floating point.
    """
    array = self.read_rows(first, last)
    if self.dtype == "BF16":
      return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)

  def read_rows(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`, in the file's type; bfloat16 as uint16.

    Raises ValueError if the type is not floating point.
    """
    if self.dtype != "BF16" and self.dtype not in FLOATS:
      raise ValueError(f"{self.path}: {self.dtype} is not a floating-point type")
    shape: tuple[int, ...] = ()
    if self.shape:
      rows = len(range(*slice(first, last).indices(self.shape[0])))
      shape = (rows, *self.shape[1:])
    array = page_array(shape, np.dtype(np.uint16 if self.dtype == "BF16" else FLOATS[self.dtype]))
    # Read instead of mmap: mapped pages count as memory of this process until it ends.
    with open(self.path, "rb") as f:
      f.seek(self.offset + first * math.prod(self.shape[1:]) * ITEM_SIZES[self.dtype])
      buffer: Any = array.data.cast("B") if array.size else b""
      if f.readinto(buffer) != array.nbytes:
        raise ValueError(f"{self.path} has become shorter since it was opened")
    return array

  def map(self) -> np.ndarray:
    """Return the values as float32, in memory that is mapped to the file if it has that type.

    The operating system reads a page of the file when it is first used. Writing to the array does
    not change the file.
    """
    if self.dtype != "F32" or self.offset % ITEM_SIZES["F32"] or not math.prod(self.shape):
      return self.numpy()
    return np.memmap(self.path, np.float32, "c", self.offset, self.shape).view(np.ndarray)


class ConcatenatedTensor(NamedTuple):
  """Tensors of one shape, concatenated along the first axis."""

  tensors: Sequence[StoredTensor]

  @property
  def shape(self) -> tuple[int, ...]:
    rows, *rest = self.tensors[0].shape
    return (len(self.tensors) * rows, *rest)

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`; see TensorInfo.numpy."""
    n = self.tensors[0].shape[0]
    last = self.shape[0] if last is None else last
    return np.concatenate(
      [
        t.numpy(max(0, first - i * n), min(n, last - i * n))
        for i, t in enumerate(self.tensors)
        if first < (i + 1) * n and i * n < last
      ]
    )


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
  """Return the tensors of a .safetensors file by name.

  Raises ValueError if the file is damaged or truncated.
  Source: https://github.com/huggingface/safetensors#format.
  """
  try:
    with open_regular(path) as f:
      size = os.fstat(f.fileno()).st_size
      length = int.from_bytes(f.read(8), "little")
      if length > size - 8:
        raise ValueError(f"the file ends before its header of {length:,} bytes does")
      if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
      header = json.loads(f.read(length).decode(), object_pairs_hook=unique_names)
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
      raise ValueError("its metadata are not strings")
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
      tensors[name] = parse_entry(path, name, entry, 8 + length)
      first, last = entry["data_offsets"]
      if first != end:
        raise ValueError(f"{name} should begin at byte {end}, not {first}")
      end = last
    if 8 + length + end != size:
      raise ValueError(f"the size is {size:,} bytes, but should be {8 + length + end:,}")
    return tensors
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
    reason = f"a tensor has no {e}" if isinstance(e, KeyError) else e
    raise ValueError(printable(f"{path} is not a valid safetensors file: {reason}", 500)) from e


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Return the entries of a JSON object as a dict. Raises ValueError if two have the same name."""
  entries = dict(pairs)
  if len(entries) < len(pairs):
    twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    raise ValueError(f"its header has two entries named {twice}")
  return entries


def parse_entry(path: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
  """Return the tensor that an entry of the header describes. Raises ValueError if it is invalid."""
  dtype, shape = entry["dtype"], tuple(entry["shape"])
  first, last = entry["data_offsets"]
  if dtype not in ITEM_SIZES:
    raise ValueError(f"{printable(name)} has the unknown type {printable(dtype)}")
  if not all(type(n) is int and 0 <= n < 2**63 for n in (first, last, *shape)):
    raise ValueError(f"the shape or the offsets of {printable(name)} are not sizes")
  if last - first != math.prod(shape) * ITEM_SIZES[dtype]:
    raise ValueError(f"{printable(name)} of shape {shape} does not fit bytes {first} to {last}")
  return TensorInfo(path, dtype, shape, data_start + first)


def read_metadata(path: Path) -> dict[str, str]:
  """Return the metadata in the header of a valid .safetensors file."""
  with open_regular(path) as f:
    return json.loads(f.read(int.from_bytes(f.read(8), "little"))).get("__metadata__", {})


def read(folder: Path) -> dict[str, TensorInfo]:
  """Return the tensors of a folder, from model.safetensors or from the shards of its index.

  Raises FileNotFoundError, or ValueError for an invalid index or for weights in a pickle.
  """
  if (path := folder / "model.safetensors").exists():
    return read_safetensors(path)
  if (path := folder / "model.safetensors.index.json").exists():
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(
      isinstance(s, str) and s == Path(s).name and s.isprintable() and len(s) < 256
      for s in shards.values()
    ):
      raise ValueError(f"{path}: weight_map must name a file of this folder for each tensor")
    files = {shard: read_safetensors(folder / shard) for shard in sorted(set(shards.values()))}
    missing = [name for name, shard in shards.items() if name not in files[shard]]
    if missing:
      raise ValueError(f"{folder / shards[missing[0]]} lacks {printable(missing[0])}")
    return {name: files[shard][name] for name, shard in shards.items()}
  if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
    raise ValueError(
      f"the weights in {folder} are a pickle, which can run any code when it is read: "
      "convert it to model.safetensors"
    )
  raise FileNotFoundError(f"{folder} has no model.safetensors")


def join(tensors: Mapping[str, StoredTensor], patterns: dict[str, str]) -> dict[str, StoredTensor]:
  """Concatenate the tensors that match a pattern under the name that the pattern gives them.

  Raises ValueError if one of them is missing or has another shape.
  """
  joined: dict[str, StoredTensor] = {}
  groups: dict[str, dict[int, StoredTensor]] = {}
  for name, tensor in tensors.items():
    pattern = next((p for p in patterns if re.fullmatch(p, name)), None)
    if pattern is None:
      joined[name] = tensor
    else:
      number = int(re.sub(pattern, r"\2", name))
      groups.setdefault(re.sub(pattern, patterns[pattern], name), {})[number] = tensor
  for name, by_number in groups.items():
    shapes = {tensor.shape for tensor in by_number.values()}
    if sorted(by_number) != list(range(len(by_number))) or len(shapes) > 1:
      numbers = summarize([str(i) for i in sorted(by_number)])
      raise ValueError(
        f"{name} needs tensors of one shape, numbered from 0 without gaps, not {numbers}"
      )
    joined[name] = ConcatenatedTensor([by_number[i] for i in range(len(by_number))])
  return joined


def load_weights(
  model, found: Mapping[str, StoredTensor], key_map: KeyMap, dtype: DType = dtypes.float32
) -> None:
  """Load a checkpoint's tensors into a model's parameters.

  Matrices are stored as `dtype`. Norm weights and biases stay float32, because they are small. If
  `dtype` is that of int4, embeddings, heads, and matrices whose rows do not consist of groups are
  stored as int8.
  Raises ValueError if the checkpoint lacks a tensor or has an unknown one, or if a shape differs.
  """
  parameters = nn.state.get_state_dict(model)
  tensors, table = tensors_of_model(model, found, key_map)

  def heads_of(name: str) -> int:
    return model.config.heads if re.search(key_map.by_head, name) else 1

  if is_minigrad():
    for name, targets in table.items():
      is_transposed = re.search(key_map.transposed, name) is not None
      targeted = [parameters[t] for t in targets]
      map_parameters(tensors[name], targeted, is_transposed, heads_of(name))
    return

  writers = new_writers({t: parameters[t] for targets in table.values() for t in targets}, dtype)

  def load_tensor(name: str) -> None:
    is_transposed = re.search(key_map.transposed, name) is not None
    targeted = [writers[t] for t in table[name]]
    write_parameters(tensors[name], targeted, is_transposed, heads_of(name))

  if all(writer.in_process for writer in writers.values()):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(load_tensor, table))  # list() raises a worker's exception here
  else:
    # tinygrad compiles the conversion, and its database of kernels belongs to this thread.
    for name in table:
      load_tensor(name)


def tensors_of_model(
  model, found: Mapping[str, StoredTensor], key_map: KeyMap
) -> tuple[dict[str, StoredTensor], dict[str, list[str]]]:
  """Return a checkpoint's tensors for a model by name, and the names of the parameters in each.

  Raises ValueError if the checkpoint lacks a tensor or has an unknown one, or if a shape differs.
  """
  for pattern, spelling in key_map.legacy.items():
    found = {re.sub(pattern, spelling, name): tensor for name, tensor in found.items()}
  parameters = nn.state.get_state_dict(model)
  joined, table = join(found, key_map.stacked), key_map.table(model)
  check_tied_heads(joined, table, key_map)
  tensors, table = match_tensors(joined, key_map, table)
  for name, targets in table.items():
    first = parameters[targets[0]]
    expected = (sum(parameters[t].shape[0] for t in targets), *first.shape[1:])
    if re.search(key_map.transposed, name):
      expected = expected[::-1]
    if tensors[name].shape != expected:
      raise ValueError(
        f"{name} has shape {tensors[name].shape}, but config.json requires {expected}"
      )
  return tensors, table


def check_tied_heads(
  tensors: Mapping[str, StoredTensor], table: Mapping[str, list[str]], key_map: KeyMap
) -> None:
  """Raise ValueError if a checkpoint has another tensor for a head that config.json ties.

  table: the model's tensors. transformers does not tie such a head, but uses the tensor.
  """
  for name, (original, *others) in key_map.tied.items():
    is_used = {original, *others} <= table.keys() and name not in table
    if not is_used or name not in tensors or original not in tensors:
      continue
    a, b = tensors[name], tensors[original]
    if a.shape != b.shape or not all(map(np.array_equal, rows_of(a), rows_of(b))):
      raise ValueError(
        f"{name} differs from {original}, to which config.json ties it: delete the tensor if the "
        'head is tied; "tie_word_embeddings" must be false if it is not'
      )


def new_writers(parameters: dict[str, Tensor], dtype: DType) -> dict[str, "ParameterWriter"]:
  """Return a writer for each parameter, which allocates its memory; see load_weights."""
  from tinyformer.kernels import huge_pages

  def dtype_of(name: str) -> DType:
    t = parameters[name]
    if t.ndim != 2 or "bias" in name:
      return dtypes.float32
    keep_int8 = re.search(KEPT_IN_INT8, name) or t.shape[1] % GROUP
    return dtypes.int8 if dtype == dtypes.uint8 and keep_int8 else dtype

  pairs = {name: (t, dtype_of(name)) for name, t in parameters.items()}
  sizes = [huge_pages.padded_size(stored_shape(t.shape, d), d) for t, d in pairs.values()]
  empty = huge_pages.allocator(sum(sizes))
  return {name: ParameterWriter(t, d, empty) for name, (t, d) in pairs.items()}


def match_tensors(
  tensors: dict[str, StoredTensor],
  key_map: KeyMap,
  table: dict[str, list[str]],
) -> tuple[dict[str, StoredTensor], dict[str, list[str]]]:
  """Return the tensors without ignored ones, and the table without missing optional ones.

  Raises ValueError if the checkpoint lacks a tensor or has an unknown one.
  """
  tensors = {
    name: tensor
    for name, tensor in tensors.items()
    if name in table or not any(re.match(p, name) for p in key_map.ignored)
  }
  table = {
    name: targets
    for name, targets in table.items()
    if name in tensors or not any(re.match(p, name) for p in key_map.optional)
  }
  if missing := sorted(table.keys() - tensors.keys()):
    raise ValueError(f"the checkpoint lacks {summarize(missing)}")
  if extra := sorted(tensors.keys() - table.keys()):
    raise ValueError(f"the checkpoint has {summarize(extra)}, unknown to this model")
  return tensors, table


def map_parameters(
  tensor: StoredTensor, parameters: list[Any], is_transposed: bool, heads: int = 1
) -> None:
  """Make parameters of minigrad, which a tensor contains side by side, views of its memory.

  heads: as in write_parameters. If there are several, the parameters are copies.
  """
  array = tensor.map() if isinstance(tensor, TensorInfo) else tensor.numpy()
  array = array.T if is_transposed else array
  if heads > 1:
    by_head = array.reshape(heads, len(parameters), -1, *array.shape[1:])
    array = by_head.swapaxes(0, 1).reshape(array.shape)
  views = np.split(array, len(parameters))
  for parameter, view in zip(parameters, views, strict=True):
    parameter.data = view


def rows_per_read(shape: tuple[int, ...]) -> int:
  """Return the number of rows that have ELEMENTS_PER_READ elements, or 1 if a row is longer."""
  return max(1, ELEMENTS_PER_READ // math.prod(shape[1:]))


def rows_of(tensor: StoredTensor) -> Iterator[np.ndarray]:
  """Yield the rows of a tensor as float32, some at a time."""
  step = rows_per_read(tensor.shape)
  for i in range(0, tensor.shape[0], step):
    yield tensor.numpy(i, min(tensor.shape[0], i + step))


def write_parameters(
  tensor: StoredTensor, writers: list["ParameterWriter"], is_transposed: bool, heads: int = 1
) -> None:
  """Copy a tensor into the parameters that it contains side by side.

  heads: the number of equal parts of the tensor, each of which contains rows of every parameter.
  """
  if is_transposed:
    # A quantized row needs a scale, so all columns must be there.
    quantized = any(writer.quantizes for writer in writers)
    step = tensor.shape[0] if quantized else rows_per_read(tensor.shape)
    for i in range(0, tensor.shape[0], step):
      values = tensor.numpy(i, min(tensor.shape[0], i + step))
      for writer, part in zip(writers, np.split(values, len(writers), -1), strict=True):
        writer.write_columns(i, part)
  else:
    step = rows_per_read(tensor.shape)
    rows = (tensor.shape or (1,))[0] // (heads * len(writers))
    for index in range(heads * len(writers)):
      head, n = divmod(index, len(writers))
      for i in range(0, rows, step):
        first, last = index * rows + i, index * rows + min(rows, i + step)
        writers[n].write(head * rows + i, writers[n].read(tensor, first, last))
  for writer in writers:
    writer.close()


def stored_shape(shape: tuple[Any, ...], dtype: DType) -> tuple[int, ...]:
  """Return the shape in which a parameter of this shape is stored."""
  if dtype == dtypes.int8:  # the last four bytes of a row hold its scale
    return (*shape[:-1], shape[-1] + 4)
  if dtype == dtypes.uint8:
    return (*shape[:-1], shape[-1] // GROUP * GROUP_BYTES)
  return shape


class ParameterWriter:
  """Converts a parameter to a dtype and writes its values, a few rows at a time."""

  def __init__(self, t: Tensor, dtype: DType, empty: Callable[..., Tensor] = Tensor.empty):
    """Replace the parameter by a tensor of this dtype, which `empty` allocates."""
    t.uop = empty(*stored_shape(t.shape, dtype), dtype=dtype).uop
    self.parameter, self.dtype = t, dtype
    self.convert = CONVERT[dtype]
    self.quantizes = dtype in (dtypes.int8, dtypes.uint8)
    self.file_dtype = FILE_DTYPES.get(dtype)
    numpy_dtype = np.uint16 if dtype == dtypes.bfloat16 else np.dtype(dtype.fmt)
    self.in_process = t.device == "CPU"  # the device's memory is this process's memory
    if self.in_process:
      from tinyformer.kernels.c_kernel import buffer_of

      buffer = buffer_of(t).as_memoryview(force_zero_copy=True)
      self.memory = np.frombuffer(buffer, numpy_dtype).reshape(t.shape)
    else:
      self.memory = np.empty(t.shape, numpy_dtype)

  def read(self, tensor: StoredTensor, first: int, last: int) -> np.ndarray:
    """Return rows of a tensor in this parameter's dtype, unchanged if the file has that dtype."""
    if isinstance(tensor, TensorInfo) and tensor.dtype == self.file_dtype:
      return tensor.read_rows(first, last)
    read_int4 = getattr(tensor, "int4", None)
    if self.dtype == dtypes.uint8 and read_int4 and (blocks := read_int4(first, last)) is not None:
      return blocks
    return self.convert(tensor.numpy(first, last))

  def write(self, row: int, values: np.ndarray) -> None:
    """Write rows in this parameter's dtype, starting at `row`."""
    target = self.memory[row : row + len(values)] if values.ndim else self.memory
    target[...] = values

  def write_columns(self, column: int, values: np.ndarray) -> None:
    """Write columns in float32, starting at `column`: the rows of `values`."""
    if self.quantizes:
      step = rows_per_read(values.T.shape)
      for i in range(0, values.shape[1], step):
        self.write(i, self.convert(values[:, i : i + step].T))
      return
    values = self.convert(values)
    # Transposed matrices are copied three times as fast in blocks of columns.
    for i in range(0, len(values), 128):
      block = values[i : i + 128]
      self.memory[:, column + i : column + i + len(block)] = block.T

  def close(self) -> None:
    """Copy the values to the device, if it has its own memory."""
    if self.in_process:
      return
    t = Tensor(self.memory)
    self.parameter.uop = (t if t.dtype == self.dtype else t.bitcast(self.dtype)).realize().uop


def to_bfloat16(x: np.ndarray) -> np.ndarray:
  """Round float32 to bfloat16, ties to even, and return the upper halves as uint16."""
  bits = np.ascontiguousarray(x).view(np.uint32)
  return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


CONVERSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "float32": lambda x: x,
  "float16": lambda x: x.astype(np.float16),
  "bfloat16": to_bfloat16,
  "int8": quantize_int8,
  "int4": quantize_int4,
}
CONVERT = {dtype: CONVERSIONS[name] for name, dtype in DTYPES.items()}
# The names in a file of those types whose values a parameter takes as they are.
FILE_DTYPES = {dtypes.float32: "F32"}
if not is_minigrad():
  FILE_DTYPES |= {dtypes.float16: "F16", dtypes.bfloat16: "BF16"}


def summarize(names: Sequence[str], limit: int = 3) -> str:
  """Return the first names and the number of the remaining ones."""
  more = f" and {len(names) - limit} more" if len(names) > limit else ""
  return ", ".join(map(printable, names[:limit])) + more


def header_bytes(
  shapes: Mapping[str, tuple[str, Sequence[int]]], metadata: dict[str, str] | None = None
) -> bytes:
  """Return the beginning of a .safetensors file, for the type and the shape of each tensor."""
  header: dict[str, Any] = {"__metadata__": {"format": "pt"} | (metadata or {})}
  end = 0
  for name, (dtype, shape) in shapes.items():
    start, end = end, end + math.prod(shape) * ITEM_SIZES[dtype]
    header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text


def write_safetensors(
  path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
  """Write float32, float16 or int64 arrays to a file, completely or not at all."""
  types = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int64): "I64"}
  shapes = {name: (types[array.dtype], array.shape) for name, array in tensors.items()}
  with atomic_write(path) as part, open(part, "wb") as f:
    f.write(header_bytes(shapes, metadata))
    for array in tensors.values():
      f.write(np.ascontiguousarray(array).data)


def to_numpy(t: Tensor) -> np.ndarray:
  """Return a parameter in float32."""
  return t.numpy() if is_minigrad() else to_float32(t).numpy()


def copy_safetensors(
  path: Path, tensors: Mapping[str, StoredTensor], dtype: str, report: Report = lambda *_: None
) -> None:
  """Write stored tensors to a file as float32, float16 or bfloat16, a few rows at a time.

  report: called with the number of elements that have been written and the total.
  """
  label = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
  convert = CONVERSIONS[dtype]
  total, done = sum(math.prod(t.shape) for t in tensors.values()), 0
  with open(path, "wb") as f:
    f.write(header_bytes({name: (label, t.shape) for name, t in tensors.items()}))
    for tensor in tensors.values():
      for values in rows_of(tensor):
        f.write(np.ascontiguousarray(convert(values)).data)
        done += values.size
        report(done, total)


def write(
  model, folder: Path, config: dict[str, Any], key_map: KeyMap, dtype: str = "float32"
) -> None:
  """Write config.json and model.safetensors, with the checkpoint's names and layout.

  Each file is written completely or not at all.
  """
  folder.mkdir(parents=True, exist_ok=True)
  parameters, tensors = nn.state.get_state_dict(model), {}
  for name, sources in key_map.table(model).items():
    arrays = [to_numpy(parameters[s]) for s in sources]
    array = np.concatenate(arrays).astype(dtype)
    tensors[name] = array.T if re.search(key_map.transposed, name) else array
  write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\n")
  # The weights come last: if they exist, everything else does.
  write_safetensors(folder / "model.safetensors", tensors)
