"""Compute the cross-entropy of transformer.loss and its gradient on the CPU with a C kernel.

The gradient is the only tensor of the size of the logits that is allocated.
"""

import math

from tinygrad import Tensor, UOp, dtypes

import transformer
from tinyformer.kernels.c_kernel import (
  contiguous_buffer,
  empty,
  has_clang,
  kernel,
  num_tasks,
)


def loss(logits: Tensor, target: Tensor, smoothing: float = 0.1, ignore: int = -1) -> Tensor:
  """Return transformer.loss, the mean cross-entropy in nats per token, as a scalar.

  logits (..., V), target (...). A C kernel computes it if the logits are float32 and on the CPU.
  The result is then NaN if a target is neither `ignore` nor in 0..V-1.
  """
  V = logits.shape[-1]
  M = math.prod(target.shape)
  if (
    logits.shape[:-1] != target.shape
    or not (isinstance(M, int) and isinstance(V, int) and M and V)
    or logits.dtype != dtypes.float32
    or not has_clang(str(logits.device))
  ):
    return transformer.loss(logits, target, smoothing, ignore)
  mask = target != ignore
  tasks = num_tasks(8 * M * V)
  macros = {"M": M, "V": V, "SMOOTHING": f"{float(smoothing)!r}f"}

  def gradient(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
    inputs = [Tensor(u) for u in call.src[2:4]]
    inputs.append(Tensor(grad).contiguous())
    function = kernel("cross_entropy", 4, tasks, **macros, BACKWARD=1)
    return None, empty(M, V).custom_kernel(*inputs, fxn=function)[0].uop, None

  rows = contiguous_buffer(logits.reshape(M, V))
  targets = mask.where(target, 0).cast(dtypes.int32).reshape(M).contiguous()
  function = kernel("cross_entropy", 3, tasks, **macros, BACKWARD=0)
  out = empty(2, M).custom_kernel(rows, targets, fxn=function, grad_fxn=gradient)[0]
  losses = out[0].log() + out[1]
  return mask.reshape(M).where(losses, 0).sum() / mask.sum()
