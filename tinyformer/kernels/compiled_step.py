"""A step that is traced once and then run again and again, from numpy arrays to a numpy array."""

import functools
import hashlib
import os
import pickle
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tinygrad import Device, Tensor, TinyJit, UOp

from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.graph_runner import Recording, GraphRunner, record


class CompiledStep:
  """A function of tensors whose kernels are kept: later calls only run them, on the CPU through tinyformer/kernels/graph_runner.py.

  The function must realize what it returns, and what it reads must be realized before; it is traced for inputs of the shapes of the first call.
  variables: numbers that may change from call to call, such as a place in a text; the function gets them by name.
  known: the tensors that the function reads or writes besides its inputs and its own.  key: whatever else decides what it computes (the sizes
  of its model). With both, a later process finds the kernels in the user's cache, without any numbers of `known`, and need not trace.
  """

  def __init__(
    self,
    function: Callable[..., Tensor],
    variables: tuple[UOp, ...] = (),
    captured_buffers: dict[str, Tensor] | None = None,
    key: str | None = None,
  ):
    self.jit, self.captured_buffers, self.key = TinyJit(function), captured_buffers or {}, key
    self.jit.cnt = (
      1  # TinyJit's first call without a trace is left out: there is nothing to be realized in it
    )
    self.variables = {v.expr: v for v in variables}
    self.shapes: list[tuple] | None = None
    self.graph_runner: GraphRunner | None = None

  def __call__(self, *arrays: np.ndarray, **numbers: int) -> np.ndarray:
    """The result, which the next call may write over. Raises ValueError for arrays of other shapes than the first call's."""
    shapes = [a.shape for a in arrays]
    if self.shapes not in (None, shapes):
      raise ValueError(f"this step was traced for inputs of shapes {self.shapes}, not {shapes}")
    self.shapes = shapes
    if not self.graph_runner and not self.jit.captured and (file := self.file(arrays)):
      self.graph_runner = load_cached(file, arrays, self.captured_buffers)
    if self.graph_runner:
      return self.graph_runner(list(arrays), numbers)
    tensors = [Tensor(a).realize() for a in arrays]
    result = self.jit(
      *tensors, **{name: v.bind(numbers[name]) for name, v in self.variables.items()}
    ).numpy()
    if has_clang(Device.DEFAULT) and self.jit.captured and all(t.device == "CPU" for t in tensors):
      try:
        recording, own = record(
          self.jit.captured, [t.uop.base for t in tensors], self.captured_buffers
        )
      except ValueError:
        return result  # it goes on as a TinyJit
      self.graph_runner = GraphRunner(recording, list(arrays), self.captured_buffers, own)
      if (file := self.file(arrays)) and recording.self_contained():
        save_cached(file, recording)
    return result

  def file(self, arrays: tuple[np.ndarray, ...]) -> Path | None:
    """Where the kernels of this step are kept: under a name that changes with whatever they depend on."""
    if self.key is None or not has_clang(Device.DEFAULT):
      return None
    said = [
      self.key,
      [(a.shape, a.dtype.str) for a in arrays],
      [(name, t.shape, str(t.dtype)) for name, t in self.captured_buffers.items()],
      machine(),
    ]
    folder = (
      Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyformer" / "steps"
    )
    return folder / hashlib.sha256(repr(said).encode()).hexdigest()


ROOT = Path(__file__).resolve().parent.parent.parent


def source_digest(root: Path = ROOT) -> str:
  """Return a digest of every source file that can change what a step computes."""
  folders = [root / name for name in ("layers", "models", "tinyformer")]
  sources = [
    root / "transformer.py",
    *(p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".c", ".h")),
  ]
  return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(sources))).hexdigest()


@functools.cache
def machine() -> tuple[str, ...]:
  """The versions, our own sources, and the processor."""
  try:
    processor = next(
      line
      for line in Path("/proc/cpuinfo").read_text().splitlines()
      if line.startswith(("flags", "Features"))
    )
  except (OSError, StopIteration):
    processor = platform.processor()
  return (
    version("tinygrad"),
    source_digest(),
    str(Device["CPU"].renderer.target),
    processor,
    *(f"{k}={os.environ[k]}" for k in ("NOOPT", "BEAM", "CPU_COUNT") if k in os.environ),
  )


def save_cached(file: Path, recording: Recording, most: int = 64) -> None:
  """Writes a recording, whole or not at all, and forgets the oldest of many. It is only a cache: where it cannot be written, it is not."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = pickle.dumps(tuple(recording))
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(hashlib.sha256(data).digest() + data)
    os.replace(part, file)
    for old in sorted(file.parent.iterdir(), key=lambda f: f.stat().st_mtime)[:-most]:
      old.unlink()
  except OSError:
    pass


def load_cached(
  file: Path, arrays: tuple[np.ndarray, ...], captured_buffers: dict[str, Tensor]
) -> GraphRunner | None:
  """The step of an earlier process, or None if there is none, or the file is damaged."""
  try:
    data = file.read_bytes()
  except OSError:
    return None
  if hashlib.sha256(data[32:]).digest() != data[:32]:
    return None
  return GraphRunner(Recording(*pickle.loads(data[32:])), list(arrays), captured_buffers)
