"""Every import of a tinygrad internal. They may change with each release of tinygrad.

The package's other modules import tinygrad's public API, and the names below from here.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import tinygrad.helpers
from tinygrad import Device, Tensor
from tinygrad.device import Buffer
from tinygrad.dtype import AddrSpace
from tinygrad.uop.ops import AxisType, KernelInfo, Ops, ProgramInfo, UOp, buffers

# Only the graph runner needs these. Without them it cannot be imported, and CompiledStep uses
# tinygrad's TinyJit instead.
with contextlib.suppress(ImportError):
  from tinygrad.device import TinyELF
  from tinygrad.engine.jit import CapturedJit, _prepare_jit_inputs, all_tensors, jit_lower
  from tinygrad.engine.realize import capturing, get_call_arg_uops, resolve_params
  from tinygrad.helpers import CACHELEVEL, JIT, diskcache_get, diskcache_put
  from tinygrad.runtime.ops_cpu import CPUProgram

jit_loader: Any = None
with contextlib.suppress(ImportError):
  from tinygrad.runtime.support.elf import jit_loader

__all__ = [
  "CACHELEVEL",
  "JIT",
  "AddrSpace",
  "AxisType",
  "Buffer",
  "CPUProgram",
  "CapturedJit",
  "KernelInfo",
  "Ops",
  "ProgramInfo",
  "TinyELF",
  "buffers",
  "capture",
  "diskcache_get",
  "diskcache_put",
  "get_call_arg_uops",
  "num_cpu_threads",
  "opencl_is_on_cpu",
  "position_independent",
  "resolve_params",
]


def num_cpu_threads() -> int:
  """Return tinygrad's number of CPU threads, or the number of cores if tinygrad has no such number.

  tinygrad reads it from the environment variable NUM_CPU_THREADS.
  """
  setting = getattr(tinygrad.helpers, "NUM_CPU_THREADS", None)
  return setting.value if setting else os.cpu_count() or 1


class Recorder:
  """Collects the kernels that tinygrad would run, while it is in tinygrad's list `capturing`."""

  def __init__(self):
    self.kernels: list[UOp] = []

  def add_linear(self, linear: UOp, values: dict[str, int]) -> None:
    """Add the kernels of one call of `realize`."""
    self.kernels += linear.src


def is_whole_buffer(tensor: Tensor) -> bool:
  """Return whether a realized tensor is a buffer, and not a part or a permutation of one."""
  u = tensor.uop
  while u.op is Ops.RESHAPE:
    u = u.src[0]
  return u is u.base


@tinygrad.helpers.disable_gc()
def capture(
  function: Callable[..., Tensor], tensors: Sequence[Tensor], variables: dict[str, UOp]
) -> CapturedJit:
  """Return the compiled kernels that a call of `function` would run, without running them.

  TinyJit's second call also captures them, but then runs them, and a CPU kernel on one core only.
  The result is a whole buffer: a view of one is copied.
  """
  inputs, _, names, input_info = _prepare_jit_inputs(tuple(tensors), variables)
  recorder = Recorder()
  capturing.append(recorder)
  try:
    result = function(*tensors, **variables).realize()
    if not is_whole_buffer(result):
      result = result.clone().realize()
  finally:
    capturing.clear()
  # The memory of other buffers can be used again within the step.
  alive = [tensor for reference in list(all_tensors) if (tensor := reference()) is not None]
  in_use = {u for tensor in alive for u in tensor.uop.toposort() if u.op is Ops.BUFFER}
  del alive
  kernels = UOp(Ops.LINEAR, src=tuple(recorder.kernels))
  return CapturedJit(result, jit_lower(kernels, set(buffers) | in_use, inputs), names, input_info)


def opencl_is_on_cpu(device: str) -> bool:
  """Return whether an OpenCL device of tinygrad computes on the CPU."""
  from tinygrad.runtime.autogen import opencl

  kind = ctypes.c_uint64()
  opened: Any = Device[device]
  size = ctypes.sizeof(kind)
  opencl.clGetDeviceInfo(opened.cl_dev, opencl.CL_DEVICE_TYPE, size, ctypes.byref(kind), None)
  return bool(kind.value & opencl.CL_DEVICE_TYPE_CPU)


def position_independent(code: bytes) -> bytes | None:
  """Return machine code linked to run at any address, or None if that is impossible.

  Code that depends on its address, or calls a library, differs if it is linked for another one.
  """
  if jit_loader is None:
    return None
  libraries: Any = [CPUProgram.libm, CPUProgram.rt_lib]
  try:
    low, high = (bytes(jit_loader(code, base, libraries)) for base in (0, 1 << 40))
  except struct.error:  # a call to a library is too far away
    return None
  return low if low == high else None
