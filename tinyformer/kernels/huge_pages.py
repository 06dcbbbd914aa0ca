"""Memory of huge pages for weights, which cores read faster than tinygrad's own buffers.

tinygrad's buffers on the CPU are shared memory, for which Linux uses pages of 4 KiB by default. A
core's prefetcher stops at the end of each page. Private memory can have pages of 2 MiB.
"""

import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import Device, Tensor
from tinygrad.dtype import DType

from tinyformer.kernels.c_kernel import buffer_of

HUGE_PAGE = 1 << 21
# Tensors begin at cache lines.
ALIGNMENT = 64


def padded_size(shape: tuple[Any, ...], dtype: DType) -> int:
  """Return the bytes that a tensor takes in the memory of `allocator`."""
  return -(-int(np.prod(shape)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def allocator(size: int) -> Callable[..., Tensor]:
  """Return a function like Tensor.empty, for tensors whose padded sizes are `size` in total.

  On the CPU, they are side by side in memory of huge pages if the system has them. The memory is
  freed with the last of them.
  """
  if Device.DEFAULT != "CPU" or not hasattr(mmap, "MADV_HUGEPAGE"):
    return Tensor.empty
  block = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_ANON | mmap.MAP_PRIVATE)
  block.madvise(mmap.MADV_HUGEPAGE)
  memory = np.frombuffer(block, np.uint8)
  offset = -memory.ctypes.data % HUGE_PAGE
  end = offset + size

  def empty(*shape: int, dtype: DType) -> Tensor:
    nonlocal offset
    begin = offset
    offset += padded_size(shape, dtype)
    assert offset <= end
    if not padded_size(shape, dtype):
      return Tensor.empty(*shape, dtype=dtype)
    address = memory.ctypes.data + begin
    tensor = Tensor.from_blob(address, shape, dtype=dtype, device="CPU")
    # The callback's argument lives as long as the buffer.
    weakref.finalize(buffer_of(tensor), lambda memory: None, memory)
    return tensor

  return empty
