"""Compute the exact logits of the top k tokens without reading the whole float32 head.

A copy of the head in int8, a quarter of its size, bounds each logit. Only the logits that may be
among the top k are computed in float32.
"""

import math

from tinygrad import Tensor, dtypes

from tinyformer.kernels import huge_pages
from tinyformer.kernels.c_kernel import (
  contiguous_buffer,
  dtype_macros,
  empty,
  has_clang,
  kernel,
  num_tasks,
)
from tinyformer.kernels.compiled_step import CompiledStep, memory_view
from tinyformer.kernels.linear import MAX_GEMV_ROWS, PackedLinear

# The largest top k for which ExactTopKHead is used.
MAX_COUNT = 256


class ExactTopKHead:
  """A head that returns the exact logits of at least the top `count` tokens, and -inf for the rest.

  The logits of all tokens whose upper bound reaches the top `count` are returned.
  """

  def __init__(self, weight: Tensor, count: int, key: str | None = None):
    """Copy the head's weight (N, K) to int8 and bound the error of each row.

    count: the number of tokens, rounded up to a power of two so that similar counts share kernels.
    key: CompiledStep's key for the kernels that make the copy.
    """
    N, K = weight.shape
    self.weight = weight
    self.count = 1 << (count - 1).bit_length()
    shape = (N, K + 4)  # as quantize_int8 returns it
    allocate = huge_pages.allocator(huge_pages.padded_size(shape, dtypes.int8))
    self.copy = allocate(*shape, dtype=dtypes.int8)
    tasks = num_tasks(5 * N * K)

    def copy_and_bound() -> Tensor:
      copy_kernel = kernel("int8_copy", 2, tasks, N=N, K=K)
      copy = self.copy.custom_kernel(weight, fxn=copy_kernel)[0]
      macros = dtype_macros(dtypes.int8)
      bound_kernel = kernel("error_bound", 3, tasks, N=N, K=K, **macros)
      return empty(N).custom_kernel(weight, copy, fxn=bound_kernel)[0].realize()

    buffers = {"weight": weight, "copy": self.copy}
    self.copy_and_bound = CompiledStep(copy_and_bound, captured_buffers=buffers, key=key)
    self.slack = Tensor(self.copy_and_bound().copy(), device="CPU").realize()

  def update(self) -> None:
    """Copy the head's weight again, which may have been changed in place."""
    slack = memory_view(self.slack)
    assert slack is not None  # it is on the CPU
    slack[:] = self.copy_and_bound()

  @staticmethod
  def supports(weight: Tensor, batch: int, count: int) -> bool:
    """Return whether this head is supported and saves time.

    That is: on the CPU, with float32 weights, for a small batch (a matrix product reads the head
    once for the whole batch) and a small count.
    """
    return (
      weight.dtype == dtypes.float32
      and batch <= MAX_GEMV_ROWS
      and count <= MAX_COUNT
      and has_clang(str(weight.device))
    )

  def __call__(self, x: Tensor) -> Tensor:
    """Return the logits (..., N) of x (..., K), which must be float32."""
    N, K = self.weight.shape
    M = math.prod(x.shape[:-1])
    # The product would round the x of more rows, which the error bound does not include.
    assert M <= MAX_GEMV_ROWS
    xs = contiguous_buffer(x.reshape(M, K))
    approx = contiguous_buffer(PackedLinear.product(xs, self.copy))
    tasks = num_tasks(5 * M * N)
    threshold_kernel = kernel("threshold", 4, tasks, M=M, N=N, K=K, COUNT=self.count)
    threshold = empty(M).custom_kernel(xs, approx, self.slack, fxn=threshold_kernel)[0]
    logits_kernel = kernel("exact_logits", 6, num_tasks(5 * N * K), M=M, N=N, K=K)
    inputs = (xs, approx, self.slack, threshold, self.weight)
    logits = empty(M, N).custom_kernel(*inputs, fxn=logits_kernel)[0]
    return logits.reshape(*x.shape[:-1], N)
