"""Norms of single tokens, as one kernel for any device with workgroups.

tinygrad's own kernels for a layer norm are three: the mean, the variance and the result.
"""

import math
from collections.abc import Callable

from tinygrad import Tensor, UOp

from tinyformer.kernels import workgroup
from tinyformer.kernels.tinygrad_internals import AxisType, KernelInfo, Ops
from tinyformer.kernels.workgroup import (
  contiguous_buffer,
  fold,
  fold_workgroup,
  local_memory,
  static_shape,
)


def supports(x: Tensor, weight: Tensor) -> bool:
  """Return whether `norm` computes the norm of x (..., D) with this weight."""
  return x.ndim >= 2 and x.shape[-2] == 1 and workgroup.supports(x, weight)


def norm(
  x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, plain: Callable[..., Tensor]
) -> Tensor:
  """Return the layer norm of x (..., D) if there is a bias (D), or else the RMS norm.

  plain: a function of x, weight and the bias, if any, with the same result, for the gradient.
  """
  *sizes, D = static_shape(x)
  rows = math.prod(sizes)
  inputs = [contiguous_buffer(x.reshape(rows, D)), weight, *([] if bias is None else [bias])]
  out = Tensor.empty(rows, D, device=x.device)

  def backward(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
    sources = [Tensor(u) for u in call.src[2:]]
    gradients = plain(*sources).gradient(*sources, gradient=Tensor(grad))
    return None, *(gradient.uop for gradient in gradients)

  y = out.custom_kernel(*inputs, fxn=norm_kernel(eps), grad_fxn=backward)[0]
  return y.reshape(x.shape)


def norm_kernel(eps: float) -> Callable:
  """Return the kernel in which a workgroup normalizes a row."""

  def program(out: UOp, x: UOp, weight: UOp, *biases: UOp) -> UOp:
    rows, D = static_shape(x)
    threads = min(D, workgroup.MAX_THREADS)
    steps = -(-D // threads)
    row = UOp.range(rows, 0, AxisType.GLOBAL)
    thread = UOp.range(threads, 1, AxisType.LOCAL)

    def mean(term: Callable[[UOp], UOp], slot: int) -> UOp:
      """Return the mean of term(x) over the row."""

      def own_term(step: UOp) -> UOp:
        i = step * threads + thread
        return (i < D).where(term(x[row, i.minimum(D - 1)]), 0.0)

      own_sum = fold(Ops.ADD, steps, 2 + 2 * slot, own_term)
      buffer = local_memory(slot, threads)
      return fold_workgroup(Ops.ADD, own_sum, thread, buffer, 3 + 2 * slot) / D

    shift = mean(lambda value: value, 0) if biases else UOp.const(0.0)
    variance = mean(lambda value: (value - shift) * (value - shift), 1)
    step = UOp.range(steps, 6, AxisType.LOOP)
    # The last work items may store the last component again.
    i = (step * threads + thread).minimum(D - 1)
    y = (x[row, i] - shift) * (variance + eps).rsqrt() * weight[i]
    for bias in biases:
      y = y + bias[i]
    info = KernelInfo(name=f"norm_{rows}_{D}", opts_to_apply=())
    return out[row, i].store(y).end(step, thread, row).sink(arg=info)

  return program
