"""An engine that runs the machine code and the weights of a snapshot, without tinygrad."""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyformer.generation.step_engine import StepEngine
from tinyformer.kernels import step_cache
from tinyformer.kernels.step_runner import Runtime, StepRunner, aligned_buffer
from tinyformer.snapshots import storage
from tinyformer.snapshots.identity import Request, is_supported

PAGE = mmap.PAGESIZE


def open_snapshot(
  request: Request, identity: Any, load: Callable[[], StepEngine]
) -> "SnapshotEngine | None":
  """Return the engine of a snapshot, or None if there is none for these files and settings.

  load: makes the same engine without a snapshot.
  """
  try:
    file = storage.folder() / request.name
    header, parts = storage.unpack(storage.read(file))
    if not is_supported() or header["identity"] != identity:
      return None
    weights = storage.folder() / request.weights_name
    arrays = storage.map_arrays(weights, identity)
    engine = SnapshotEngine(request, header, parts, arrays, load)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None
  storage.touch(weights)
  storage.touch(file)
  return engine


class MachineCode:
  """Executable memory that contains programs. `addresses` are those of their first instructions."""

  def __init__(self, programs: Sequence[bytes]):
    sizes = [-(-len(code) // PAGE) * PAGE for code in programs]
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    self.memory = mmap.mmap(-1, sum(sizes), mmap.MAP_ANON | mmap.MAP_PRIVATE, protection)
    base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
    self.addresses = []
    offset = 0
    for code, size in zip(programs, sizes, strict=True):
      self.memory[offset : offset + len(code)] = code
      self.addresses.append(base + offset)
      offset += size


@functools.cache
def load_runtime(run: bytes, work: bytes, num_workers: int) -> Runtime:
  """Load the functions `run` and `work` of c/graph_runner.c.

  They are never unloaded, because a worker may still be in `work` when the last step has ended.
  """
  code = MachineCode([run, work])
  run_function, work_function = map(ctypes.CFUNCTYPE(None), code.addresses)
  runtimes.append(code)
  return Runtime(run_function, work_function, num_workers)


runtimes: list[MachineCode] = []


class RowCounter:
  """The KV cache of a snapshot, without a sliding window. The steps know its buffers."""

  def __init__(self, rows: int):
    self.rows = rows
    self.length = 0

  def reserve(self, position: int, count: int) -> int:
    """Return the first row for `count` tokens from `position` on."""
    self.length = position
    return position

  def resume_position(self, position: int) -> int:
    """Return the position to resume from after a rewind: no keys are ever evicted."""
    return position


class SnapshotEngine(StepEngine):
  """A StepEngine whose steps are those of a snapshot.

  A step that the snapshot lacks needs the engine that `load` returns, which continues then.
  """

  def __init__(
    self,
    request: Request,
    header: dict[str, Any],
    parts: Sequence[bytes],
    arrays: dict[str, np.ndarray],
    load: Callable[[], StepEngine],
  ):
    super().__init__(request.batch, header["context"], request.candidates)
    self.load = load
    self.vocab_size: int = header["vocab_size"]
    self.cache = RowCounter(header["rows"])
    self.loaded: StepEngine | None = None
    run, work, *saved = parts
    runtime = load_runtime(run, work, header["num_workers"])
    self.memory: list[Any] = [arrays]  # the tables contain the addresses of all of these
    self.buffers: dict[str, np.ndarray] = {}
    for name, dtype, shape in header["buffers"]:
      if name.startswith("cache."):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.buffers[name] = aligned_buffer(size).view(dtype).reshape(shape)
      else:
        array = arrays[name]
        if [array.dtype.str, list(array.shape)] != [dtype, shape]:
          raise ValueError(f"{name} has another shape")
        self.buffers[name] = array
    self.steps = {
      size: self.make_step(step, size, runtime)
      for size, step in zip(header["sizes"], saved, strict=True)
    }

  def make_step(self, data: bytes, size: int, runtime: Runtime) -> Callable:
    """Return the step for a number of tokens, from the bytes of its recording."""
    recording = step_cache.from_bytes(data)
    code = MachineCode([code for _, code in recording.programs])
    blocks = [aligned_buffer(size) for size in recording.workspace]
    self.memory += [code, blocks]
    addresses = {
      "workspace": [block.ctypes.data for block in blocks],
      "captured": {name: array.ctypes.data for name, array in self.buffers.items()},
    }
    ids = np.empty((self.batch, size), np.int32)
    runner = StepRunner(recording, [ids], code.addresses, addresses, runtime)
    runner.set_result(blocks)
    return lambda ids, **variables: runner([ids], variables)

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    """Process the next tokens ids (B, T); see StepEngine.__call__."""
    if self.loaded is None and not self.sizes_of(np.asarray(ids).shape[-1]) <= self.steps.keys():
      self.hand_over()
    return super().__call__(ids)

  def step(self, size: int, bucket: int | None) -> Callable[..., np.ndarray]:
    """Return the step for chunks of `size` tokens."""
    return self.loaded.step(size, bucket) if self.loaded else self.steps[size]

  def sizes_of(self, remaining: int) -> set[int]:
    """Return the sizes of the steps that process a number of tokens."""
    position = self.position
    sizes = set()
    while remaining > 0:
      size = self.chunk_size(remaining)
      sizes.add(size)
      self.position += size
      remaining -= size
    self.position = position
    return sizes

  def hand_over(self) -> None:
    """Load the engine that has all steps, and give it the keys and values of this one."""
    loaded: Any = self.load()
    for name, array in self.buffers.items():
      if name.startswith("cache."):
        loaded.set_cached_rows(name, array[:, :, : self.position])
    self.loaded = loaded
    self.cache = loaded.cache
    self.steps.clear()
    self.buffers.clear()
    self.memory.clear()
