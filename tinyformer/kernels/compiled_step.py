"""Trace a function of tensors once, and replay its kernels on later calls with numpy arrays.

minigrad has no kernels: there, the function itself is called each time.
"""

import contextlib
import functools
import hashlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Context, Device, Tensor

from tinyformer.backend import is_minigrad
from tinyformer.kernels.module_structure import describe

if not is_minigrad():
  from tinygrad import TinyJit, UOp, dtypes

  from tinyformer.kernels.c_kernel import buffer_of, has_clang

try:
  if is_minigrad():
    raise ImportError
  from tinyformer.kernels import graph_runner, jit_cache, step_cache
  from tinyformer.kernels.background_compiler import background_compiler
  from tinyformer.kernels.tinygrad_internals import JIT, capture
except ImportError:  # this tinygrad lacks an internal that the graph runner needs, or is minigrad
  HAS_GRAPH_RUNNER = False
else:
  HAS_GRAPH_RUNNER = True

# TinyJit's count of calls from which on it only runs what it captured.
REPLAY = 2
# The cache directory keeps this many compiled steps.
MAX_CACHED_STEPS = 64


def uses_graph_runner() -> bool:
  """Return whether GraphRunner runs the steps on the default device."""
  return HAS_GRAPH_RUNNER and has_clang(Device.DEFAULT)


def memory_view(tensor: Tensor) -> np.ndarray | None:
  """Return a numpy view of a realized tensor's memory, or None if its device has its own memory.

  The view has the tensor's shape and numpy's dtype of the same name. Numpy has no bfloat16: the
  view of a bfloat16 tensor is uint16. Writing to the view changes the tensor.
  """
  if is_minigrad():
    return vars(tensor)["data"]
  if tensor.device != "CPU":
    return None
  dtype = np.dtype("H" if tensor.dtype == dtypes.bfloat16 else tensor.dtype.fmt)
  memory = buffer_of(tensor).as_memoryview(force_zero_copy=True)
  return np.frombuffer(memory, dtype).reshape(tensor.shape)


# Checksums are sums of 64-bit words: of ROWS words, each LANES words after the last one. Because
# LANES is a prime, two rows of a matrix that swap their places change the sums.
LANES = 1021
ROWS = 64


def checksums(tensor: Tensor) -> np.ndarray:
  """Return sums of a realized tensor's bytes, which change if its values or their order change.

  The result has 1/64 of the tensor's size, so that an accidental collision is improbable. tinygrad
  does not say whether `assign` has changed a tensor in place.
  """
  view = memory_view(tensor)
  if view is None:
    is_bfloat16 = tensor.dtype == dtypes.bfloat16
    view = (tensor.bitcast(dtypes.uint16) if is_bfloat16 else tensor).numpy()
  data = np.ascontiguousarray(view).reshape(-1).view(np.uint8)
  end = len(data) // 8 * 8
  words = data[:end].view(np.uint64)
  blocks = words[: len(words) // (ROWS * LANES) * ROWS * LANES].reshape(-1, ROWS, LANES)
  rest = words[blocks.size :]
  return np.concatenate([blocks.sum(1).reshape(-1), rest, data[end:].astype(np.uint64)])


def variable(name: str, minimum: int, maximum: int) -> Any:
  """Return a symbolic integer for CompiledStep, with its bounds."""
  return None if is_minigrad() else UOp.variable(name, minimum, maximum)


def key_of(name: str, *parts: Any) -> str | None:
  """Return a key for CompiledStep, of a function that its name and these parts determine.

  Returns None if a part is defined outside this project and tinygrad: the step is not cached then.
  """
  description = describe(parts)
  return description and f"{name} {description}"


class CompiledStep:
  """A function of tensors that is traced on the first call; later calls only run its kernels.

  On the CPU, GraphRunner runs the kernels. tinygrad's TinyJit does on other devices, and if this
  release of tinygrad lacks the internals that GraphRunner and the cache need. On minigrad, nothing
  is traced.
  """

  def __init__(
    self,
    function: Callable[..., Tensor],
    variables: tuple[Any, ...] = (),
    captured_buffers: dict[str, Tensor] | None = None,
    key: str | None = None,
  ):
    """Wrap a function that realizes its result and reads only realized tensors.

    variables: symbolic integers that `variable` makes, such as a position. They are bound on each
    call, and passed to `function` as keyword arguments.
    captured_buffers: the tensors that `function` reads or writes, except its arguments and the
    tensors it creates.
    key: everything else that determines what `function` computes, such as the sizes of its model.
    With a key, the kernels are cached on disk, without the contents of captured_buffers. A later
    process then loads them instead of tracing.
    """
    self.function = function
    if is_minigrad():
      return
    self.jit = TinyJit(function)
    # If TinyJit traces, skip its first call, which does not: there is nothing left to realize.
    self.jit.cnt = 1
    self.captured_buffers = captured_buffers or {}
    self.key = key
    self.variables = {v.expr: v for v in variables}
    self.shapes: list[tuple] | None = None
    self.graph_runner: graph_runner.GraphRunner | None = None
    self.is_new = False  # whether the function was traced by this process

  def __call__(self, *arrays: np.ndarray, **values: int) -> np.ndarray:
    """Return the function's result for these arrays and values of the variables.

    The next call may overwrite the result. Raises ValueError if a shape differs from the first
    call's.
    """
    if is_minigrad():
      with Context(RECORD=0):  # the result needs no gradient, so intermediate arrays can be freed
        return self.function(*(Tensor(a) for a in arrays), **values).numpy()
    shapes = [a.shape for a in arrays]
    if self.shapes not in (None, shapes):
      raise ValueError(
        f"inputs of shapes {shapes} differ from the shapes {self.shapes} that this step was traced "
        "with: use another CompiledStep for them"
      )
    self.shapes = shapes
    if not self.graph_runner and not self.jit.captured:
      self.load(arrays)
    if self.graph_runner:
      return self.graph_runner(list(arrays), values)
    tensors = [Tensor(a).realize() for a in arrays]
    bound = {name: v.bind(values[name]) for name, v in self.variables.items()}
    if not self.jit.captured:
      self.is_new = True
      if HAS_GRAPH_RUNNER and JIT:
        self.trace(arrays, tensors, bound)
    if self.graph_runner:
      return self.graph_runner(list(arrays), values)
    return self.jit(*tensors, **bound).numpy()

  def load(self, arrays: tuple[np.ndarray, ...]) -> None:
    """Load the kernels that an earlier process saved for inputs of these shapes, if it did."""
    file = self.cache_file(arrays)
    data = step_cache.load(file) if file else None
    if data is None:
      return
    buffers = self.captured_buffers
    with contextlib.suppress(ValueError):  # the file is damaged
      if uses_graph_runner():
        recording = step_cache.from_bytes(data)
        self.graph_runner = graph_runner.GraphRunner(recording, list(arrays), buffers)
      else:
        self.jit.captured = jit_cache.from_bytes(data, buffers)
        self.jit.cnt = REPLAY

  def trace(
    self, arrays: tuple[np.ndarray, ...], tensors: list[Tensor], variables: dict[str, Any]
  ) -> None:
    """Trace the function, and save its kernels for later processes.

    GraphRunner runs the kernels if it can. Otherwise TinyJit does.
    """
    file = self.cache_file(arrays)
    buffers = self.captured_buffers
    existing = jit_cache.live_buffers()
    captured = capture(background_compiler()(self.function), tensors, variables)
    data: bytes | None = None
    if uses_graph_runner() and all(t.device == "CPU" for t in tensors):
      with contextlib.suppress(ValueError):  # something other than CPU kernels was captured
        recording, workspace = graph_runner.record(captured, [t.uop.base for t in tensors], buffers)
        if recording.self_contained():
          data = step_cache.to_bytes(recording)
        # If its contents do not matter, GraphRunner allocates its own workspace, in huge pages.
        matters = data is None or jit_cache.is_any_of(workspace, existing)
        self.graph_runner = graph_runner.GraphRunner(
          recording, list(arrays), buffers, workspace if matters else None
        )
    elif file:
      data = jit_cache.to_bytes(captured, buffers, existing)
    if not self.graph_runner:
      self.jit.captured = captured
      self.jit.cnt = REPLAY
    if file and data is not None:
      step_cache.save(file, data, MAX_CACHED_STEPS)

  def cache_file(self, arrays: tuple[np.ndarray, ...]) -> Path | None:
    """Return the path of this step's cached kernels, or None if they are not cached.

    The file name is a digest of everything that the kernels depend on.
    """
    if self.key is None or not HAS_GRAPH_RUNNER:
      return None
    inputs = [(a.shape, a.dtype.str) for a in arrays]
    buffers = [(name, t.shape, str(t.dtype)) for name, t in self.captured_buffers.items()]
    identity = [self.key, inputs, buffers, environment()]
    try:
      cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # this user has no home directory
      return None
    name = hashlib.sha256(repr(identity).encode()).hexdigest()
    return cache / "tinyformer" / "steps" / name


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
def environment() -> tuple[str, ...]:
  """Return what cached kernels depend on besides the step: versions, sources, CPU and settings."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line for line in lines if line.startswith(("flags", "Features")))
  except (OSError, StopIteration):
    cpu = platform.processor()
  names = [name for name in ("NOOPT", "BEAM", "NUM_CPU_THREADS") if name in os.environ]
  return (
    version("tinygrad"),
    source_digest(),
    *(f"{device} {Device[device].renderer.target}" for device in ("CPU", Device.DEFAULT)),
    cpu,
    *(f"{name}={os.environ[name]}" for name in names),
  )
