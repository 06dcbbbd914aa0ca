"""A model as a folder in the layout of Hugging Face's `save_pretrained`: reads one, fills a model with it, and writes one."""

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from tinygrad import Tensor, dtypes, nn
from tinygrad.dtype import DType

from tinyformer.files import atomic_write, read_json, write_text
from tinyformer.kernels.c_kernel import buffer_of
from tinyformer.kernels.linear import quantize_int8, to_float32

WIDTHS = {
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
}  # bytes
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
DTYPES = {
  "float32": dtypes.float32,
  "float16": dtypes.float16,
  "bfloat16": dtypes.bfloat16,
  "int8": dtypes.int8,
}


class TensorInfo(NamedTuple):
  """A tensor in a file, not yet read."""

  path: Path
  dtype: str
  shape: tuple[int, ...]
  offset: int

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Its numbers, or rows `first` to `last` of them, as float32; float16 and bfloat16 fit in exactly. Raises ValueError if they are no floating-point numbers."""
    if self.dtype != "BF16" and self.dtype not in FLOATS:
      raise ValueError(f"{self.path}: {self.dtype} is not a type of weights")
    shape = (
      (len(range(*slice(first, last).indices(self.shape[0]))), *self.shape[1:])
      if self.shape
      else ()
    )
    array = np.empty(shape, np.uint16 if self.dtype == "BF16" else FLOATS[self.dtype])
    with open(
      self.path, "rb"
    ) as f:  # read, not mapped: what is mapped counts as memory of this process until it ends
      f.seek(self.offset + first * math.prod(self.shape[1:]) * WIDTHS[self.dtype])
      if f.readinto(array.data.cast("B") if array.size else b"") != array.nbytes:
        raise ValueError(f"{self.path} has become shorter")  # type: ignore[arg-type]
    return (
      (array.astype(np.uint32) << 16).view(np.float32)
      if self.dtype == "BF16"
      else array.astype(np.float32, copy=False)
    )


class ConcatenatedTensor(NamedTuple):
  """Tensors of one shape, one below the other."""

  entries: list[TensorInfo]

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self.entries) * self.entries[0].shape[0], *self.entries[0].shape[1:])

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """As Entry has it."""
    n, last = self.entries[0].shape[0], self.shape[0] if last is None else last
    return np.concatenate(
      [
        e.numpy(max(0, first - i * n), min(n, last - i * n))
        for i, e in enumerate(self.entries)
        if first < (i + 1) * n and i * n < last
      ]
    )


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
  """What a .safetensors file holds. Raises ValueError if the file is not whole: https://github.com/huggingface/safetensors#format."""
  size = path.stat().st_size
  try:
    with open(path, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if length > size - 8:
        raise ValueError(f"it ends before its header of {length:,} bytes does")
      header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    entries, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
      shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
      if entry["dtype"] not in WIDTHS:
        raise ValueError(f"{name} is of the unknown type {entry['dtype']}")
      if not all(type(n) is int for n in (first, last, *shape)):
        raise ValueError(f"{name} has sizes that are no whole numbers")
      if (
        first != end
        or last - first != math.prod(shape) * WIDTHS[entry["dtype"]]
        or min(shape, default=0) < 0
      ):
        raise ValueError(f"{name} of shape {shape} does not fit bytes {first} to {last}")
      entries[name], end = TensorInfo(path, entry["dtype"], shape, 8 + length + first), last
    if 8 + length + end != size:
      raise ValueError(f"it should be {8 + length + end:,} bytes long and is {size:,}")
    return entries
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
    raise ValueError(f"{path} is not a whole safetensors file: {e}") from e


def read_metadata(path: Path) -> dict[str, str]:
  """The words that the writer of a whole .safetensors file left in its header."""
  with open(path, "rb") as f:
    return json.loads(f.read(int.from_bytes(f.read(8), "little"))).get("__metadata__", {})


def read(folder: Path) -> dict[str, TensorInfo]:
  """The tensors of a folder, from model.safetensors or from the shards that its index names."""
  if (path := folder / "model.safetensors").exists():
    return read_safetensors(path)
  if (path := folder / "model.safetensors.index.json").exists():
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(
      isinstance(s, str) and s == Path(s).name for s in shards.values()
    ):
      raise ValueError(f"{path}: weight_map should name a file of this folder for each tensor")
    files = {shard: read_safetensors(folder / shard) for shard in sorted(set(shards.values()))}
    if lost := [name for name, shard in shards.items() if name not in files[shard]]:
      raise ValueError(f"{folder / shards[lost[0]]} lacks {lost[0]}")
    return {name: files[shard][name] for name, shard in shards.items()}
  if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
    raise ValueError(
      f"{folder} has its weights as a pickle, which can run any code when it is read: convert it to model.safetensors"
    )
  raise FileNotFoundError(f"{folder} has no model.safetensors")


class KeyMap(NamedTuple):
  """How a family's checkpoint calls our parameters. All patterns are regular expressions.

  ours: ours to theirs, the first that matches. Several of ours with one name of theirs lie in it side by side, in our order.
  turned: theirs that are stored as (inputs, outputs).  left: theirs that may have no place in a model, and why.  older: spellings met in files to theirs.
  joined: theirs that stand one below the other in one of ours, to its name; the number in the second group is their order.
  absent: theirs that files may lack, and why; ours then stay as the model starts with.
  """

  rules: dict[str, str]
  transposed: str = "$^"
  ignored: dict[str, str] = {}
  legacy: dict[str, str] = {}
  stacked: dict[str, str] = {}
  optional: dict[str, str] = {}

  def table(self, model) -> dict[str, list[str]]:
    """Each name in the file, with the parameters of ours that it holds."""
    table: dict[str, list[str]] = {}
    for name in nn.state.get_state_dict(model):
      pattern = next(p for p in self.rules if re.match(p, name))
      table.setdefault(re.sub(pattern, self.rules[pattern], name), []).append(name)
    return table


def join(
  entries: dict[str, TensorInfo], patterns: dict[str, str]
) -> dict[str, TensorInfo | ConcatenatedTensor]:
  """The entries, of which those that a pattern matches are one under the name that it gives them. Raises ValueError where one is missing or of another shape."""
  stacked: dict[str, TensorInfo | ConcatenatedTensor] = {}
  several: dict[str, dict[int, TensorInfo]] = {}
  for name, entry in entries.items():
    if pattern := next((p for p in patterns if re.fullmatch(p, name)), None):
      several.setdefault(re.sub(pattern, patterns[pattern], name), {})[
        int(re.sub(pattern, r"\2", name))
      ] = entry
    else:
      stacked[name] = entry
  for name, by_number in several.items():
    if (
      sorted(by_number) != list(range(len(by_number)))
      or len({e.shape for e in by_number.values()}) > 1
    ):
      raise ValueError(
        f"{name} should be as many tensors of one shape as there are, from 0 on, not {summarize([str(i) for i in sorted(by_number)])}"
      )
    stacked[name] = ConcatenatedTensor([by_number[i] for i in range(len(by_number))])
  return stacked


def load_weights(
  model, found: dict[str, TensorInfo], names: KeyMap, dtype: DType = dtypes.float32
) -> None:
  """Gives every parameter its numbers, the matrices as `dtype`, in int8 as parts.linear has it: norms and biases are few, and stay float32.

  Raises ValueError for a tensor that only one side has, or whose shape is another.
  """
  for pattern, spelling in names.legacy.items():
    found = {re.sub(pattern, spelling, name): entry for name, entry in found.items()}
  entries = join(found, names.stacked)
  table, params = names.table(model), nn.state.get_state_dict(model)
  entries = {
    name: entry
    for name, entry in entries.items()
    if name in table or not any(re.match(p, name) for p in names.ignored)
  }
  table = {
    name: ours
    for name, ours in table.items()
    if name in entries or not any(re.match(p, name) for p in names.optional)
  }
  if missing := sorted(table.keys() - entries.keys()):
    raise ValueError(f"the checkpoint lacks {summarize(missing)}")
  if extra := sorted(entries.keys() - table.keys()):
    raise ValueError(f"the checkpoint has {summarize(extra)}, unknown to this model")
  for name, ours in table.items():
    shape = (sum(params[o].shape[0] for o in ours), *params[ours[0]].shape[1:])
    turned = re.search(names.transposed, name) is not None
    if entries[name].shape != (want := shape[::-1] if turned else shape):
      raise ValueError(
        f"{name} is of shape {entries[name].shape}, for this config.json it should be {want}"
      )
  rooms = {
    o: ParameterWriter(
      params[o], dtype if params[o].ndim == 2 and "bias" not in o else dtypes.float32
    )
    for ours in table.values()
    for o in ours
  }

  def place(name: str) -> None:
    entry, ours = entries[name], [rooms[o] for o in table[name]]
    if re.search(names.transposed, name):
      for room, part in zip(ours, np.split(entry.numpy(), len(ours), -1)):
        room.put(0, part.T)
    else:
      rows, step = (
        (entry.shape or (1,))[0],
        max(1, 2**20 // math.prod(entry.shape[1:])),
      )  # the embeddings are large: never twice in memory
      each = rows // len(ours)
      for n, room in enumerate(ours):
        for i in range(0, each, step):
          room.put(i, entry.numpy(n * each + i, n * each + min(each, i + step)))
    for room in ours:
      room.close()

  cores = os.cpu_count() or 1 if all(room.here for room in rooms.values()) else 1
  with ThreadPoolExecutor(cores) as pool:
    for _ in pool.map(place, table):
      pass  # an error is raised here


class ParameterWriter:
  """The memory of a parameter, which now becomes of a dtype, as an array to be filled."""

  def __init__(self, t: Tensor, dtype: DType):
    empty = (
      Tensor.empty(*t.shape[:-1], t.shape[-1] + 4, dtype=dtype)
      if dtype == dtypes.int8
      else Tensor.empty(*t.shape, dtype=dtype)
    )
    t.uop = empty.uop
    self.parameter, self.dtype = t, dtype
    kind, self.convert = (
      np.uint16 if dtype == dtypes.bfloat16 else np.dtype(dtype.fmt),
      CONVERT[dtype],
    )
    self.here = t.device == "CPU"  # the device's memory is this process's own
    self.memory = (
      np.frombuffer(buffer_of(t).as_memoryview(force_zero_copy=True), kind).reshape(t.shape)
      if self.here
      else np.empty(t.shape, kind)
    )

  def put(self, row: int, piece: np.ndarray) -> None:
    """Rows of float32, from `row` on."""
    piece = self.convert(piece)
    to = self.memory[row : row + len(piece)] if piece.ndim else self.memory
    if piece.ndim < 2:
      to[...] = piece
    else:
      for i in range(0, piece.shape[1], 128):
        to[:, i : i + 128] = piece[
          :, i : i + 128
        ]  # of a turned one, as many columns at a time go three times faster

  def close(self) -> None:
    """All rows are there."""
    if self.here:
      return
    t = Tensor(self.memory)
    self.parameter.uop = (t if t.dtype == self.dtype else t.bitcast(self.dtype)).realize().uop


def bfloat16(x: np.ndarray) -> np.ndarray:
  """The upper halves of float32 numbers, rounded to the nearest, from the middle to the even one: as uint16."""
  bits = np.ascontiguousarray(x).view(np.uint32)
  return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


CONVERT: dict[DType, Callable[[np.ndarray], np.ndarray]] = {
  dtypes.float32: lambda x: x,
  dtypes.float16: lambda x: x.astype(np.float16),
  dtypes.bfloat16: bfloat16,
  dtypes.int8: quantize_int8,
}


@contextlib.contextmanager
def skip_init() -> Iterator[None]:
  """A model that is made under this has parameters without numbers, for `fill`: to draw GPT-2's in vain takes tinygrad a second."""

  def empty(*shape: int, **_: Any) -> Tensor:
    return Tensor.empty(*shape)

  with mock.patch.multiple(Tensor, glorot_uniform=empty, uniform=empty, normal=empty):
    yield


def summarize(names: Sequence[str], most: int = 3) -> str:
  return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def write_safetensors(
  path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
  """Writes arrays of float32, float16 or int64 as one file, whole or not at all."""
  kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int64): "I64"}
  header: dict[str, Any] = {"__metadata__": {"format": "pt"} | (metadata or {})}
  end = 0
  for name, array in tensors.items():
    header[name] = {
      "dtype": kinds[array.dtype],
      "shape": list(array.shape),
      "data_offsets": [end, end := end + array.nbytes],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with atomic_write(path) as part, open(part, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for array in tensors.values():
      f.write(np.ascontiguousarray(array).data)


def write(
  model, folder: Path, config: dict[str, Any], names: KeyMap, dtype: str = "float32"
) -> None:
  """Writes config.json and then model.safetensors, each whole or not at all, the tensors under the checkpoint's names and in its layout."""
  folder.mkdir(parents=True, exist_ok=True)
  params, tensors = nn.state.get_state_dict(model), {}
  for name, ours in names.table(model).items():
    whole = np.concatenate([to_float32(params[o]).numpy() for o in ours]).astype(dtype)
    tensors[name] = whole.T if re.search(names.transposed, name) else whole
  write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\n")
  write_safetensors(
    folder / "model.safetensors", tensors
  )  # last: where there are weights, all else is there too
