"""The product of single tokens and a head's matrix, for any device with workgroups.

tinygrad computes a product with more than 2,048 rows in one work item per row if the number of rows
is no multiple of 16, as in GPT-2's head, or if the weights are not float32.
"""

import math

from tinygrad import Tensor, UOp, dtypes

from tinyformer.kernels import workgroup
from tinyformer.kernels.tinygrad_internals import AxisType, KernelInfo, Ops
from tinyformer.kernels.workgroup import (
  contiguous_buffer,
  fold,
  fold_workgroup,
  local_memory,
  static_shape,
)

# The number of work items that compute one logit: adjacent ones read adjacent weights.
THREADS = 32
# A matrix with more rows is a head. tinygrad fuses smaller products with what follows them.
MAX_FUSED_ROWS = 16_384
# The dtypes of weights that kernels for workgroups read.
READABLE = (dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8)


def supports(x: Tensor, weight: Tensor) -> bool:
  """Return whether `product` computes x W^T for single tokens x, and W is a head's matrix."""
  return (
    int(weight.shape[0]) > MAX_FUSED_ROWS and weight.dtype in READABLE and workgroup.supports(x)
  )


def product(x: Tensor, weight: Tensor) -> Tensor:
  """Return x W^T: (..., K), W (N, K), or (N, K + 4) in quantize_int8's format -> (..., N)."""
  *sizes, K = static_shape(x)
  N = static_shape(weight)[0]
  M = math.prod(sizes)
  out = Tensor.empty(M, N, device=x.device)
  inputs = (contiguous_buffer(x.reshape(M, K)), contiguous_buffer(weight))

  def backward(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
    xs, w = (Tensor(u) for u in call.src[2:])
    dy = Tensor(grad)
    return None, (dy @ w).uop, (dy.transpose(0, 1) @ xs).cast(w.dtype).uop

  y = out.custom_kernel(*inputs, fxn=product_kernel, grad_fxn=backward)[0]
  return y.reshape(*sizes, N)


def product_kernel(out: UOp, x: UOp, weight: UOp) -> UOp:
  """Compute a logit in each workgroup."""
  M, K = static_shape(x)
  N = static_shape(weight)[0]
  m = UOp.range(M, 0, AxisType.GLOBAL)
  n = UOp.range(N, 1, AxisType.GLOBAL)
  thread = UOp.range(THREADS, 2, AxisType.LOCAL)

  def term(step: UOp) -> UOp:
    k = step * THREADS + thread
    last = k.minimum(K - 1)
    return (k < K).where(x[m, last] * weight[n, last].cast(dtypes.float32), 0.0)

  value = fold(Ops.ADD, -(-K // THREADS), 3, term)
  value = fold_workgroup(Ops.ADD, value, thread, local_memory(0, THREADS), 4)
  if weight.dtype == dtypes.int8:
    value = value * row_scale(weight, n, K)
  info = KernelInfo(name=f"head_{M}_{N}_{K}", opts_to_apply=())
  return out[m, n].store(value).end(thread, n, m).sink(arg=info)


def row_scale(weight: UOp, row: UOp, K: int) -> UOp:
  """Return the scale of a row of a weight (N, K + 4) in quantize_int8's format."""
  parts = [weight[row, K + i].bitcast(dtypes.uint8).cast(dtypes.uint32) for i in range(4)]
  bits = parts[0] + parts[1] * 256 + parts[2] * 256**2 + parts[3] * 256**3
  return bits.bitcast(dtypes.float32)
