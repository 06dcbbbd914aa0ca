"""What the kernels for devices with workgroups share: a GPU, or OpenCL on a CPU.

They are written in tinygrad's own operations, which it renders for each device. The work items of a
workgroup share local memory, which holds intermediate results that would otherwise need a kernel
each.
"""

import functools
from collections.abc import Callable

from tinygrad import Device, Tensor, UOp, dtypes

from tinyformer.kernels.tinygrad_internals import AddrSpace, AxisType, Ops

# The number of work items of a workgroup.
MAX_THREADS = 128


@functools.cache
def has_local_memory(device: str) -> bool:
  """Return whether the work items of a workgroup share memory on this device."""
  renderer = Device[device].renderer
  return renderer.has_local and renderer.has_shared


def supports(*tensors: Tensor) -> bool:
  """Return whether kernels for workgroups can read these tensors."""
  return all(
    isinstance(t.device, str)
    and t.dtype == dtypes.float32
    and all(isinstance(n, int) for n in t.shape)
    and has_local_memory(t.device)
    for t in tensors
  )


def static_shape(x: Tensor | UOp) -> tuple[int, ...]:
  """Return the shape of x, of which no size may be symbolic."""
  return tuple(int(n) for n in x.shape)


def contiguous_buffer(x: Tensor) -> Tensor:
  """Return x as a contiguous buffer, copied only if x is not one already.

  Reshapes are free, and so are permutations of a kernel's result that only move axes of size 1.
  """
  u = x.uop
  while u.op is Ops.RESHAPE:
    u = u.src[0]
  if u.op in (Ops.CONTIGUOUS, Ops.AFTER, Ops.BUFFER):
    return x
  while u.op is Ops.RESHAPE or (u.op is Ops.PERMUTE and keeps_order(u)):
    u = u.src[0]
  return Tensor(u).reshape(x.shape) if u.op is Ops.AFTER else x.contiguous()


def keeps_order(permutation: UOp) -> bool:
  """Return whether a permutation keeps the elements in their order in memory."""
  sizes = permutation.src[0].shape
  axes = [axis for axis in permutation.marg if sizes[axis] != 1]
  return axes == sorted(axes)


def local_memory(slot: int, size: int) -> UOp:
  """Return `size` float32 numbers of local memory. Each buffer of a kernel has its own slot."""
  return UOp.placeholder((size,), dtypes.float32, slot, addrspace=AddrSpace.LOCAL)


def fold(op: Ops, size: int, axis: int, term: Callable[[UOp], UOp]) -> UOp:
  """Return the sum or maximum of term(i) for i from 0 to size - 1, in a loop with this number."""
  if size == 1:
    return term(UOp.const(0))
  i = UOp.range(size, axis, AxisType.REDUCE)
  return term(i).reduce(i, arg=op)


def fold_workgroup(op: Ops, value: UOp, thread: UOp, buffer: UOp, axis: int) -> UOp:
  """Return the sum or maximum of the work items' values, in a loop with this number.

  buffer: local memory with a number for each work item.
  """
  values = buffer.after(buffer[thread].store(value).barrier())
  return fold(op, static_shape(buffer)[0], axis, lambda i: values[i])
