"""Compute the cross-entropy of transformer.loss and its gradient on the CPU with a C kernel.

The gradient is the only tensor of the size of the logits that is allocated.
"""

import math

from tinygrad import Tensor, UOp, dtypes

import transformer
from tinyformer.kernels.c_kernel import (
  VEC_EXP,
  contiguous_buffer,
  empty,
  has_clang,
  kernel,
  num_tasks,
)

CROSS_ENTROPY = (
  VEC_EXP
  + r"""
// Cross-entropy with label smoothing (Szegedy et al. 2016, sec. 7), of logits x (M, V), targets
// (M). The loss of row m is log(sum_exp[m]) + offset[m], where row_max = max(x[m]) and
//
//   sum_exp[m] = sum over i < V of exp(x[m][i] - row_max)
//   offset[m] = row_max - (1 - SMOOTHING) * x[m][targets[m]] - SMOOTHING * mean(x[m])
//
// out is sum_exp and offset (2, M). offset is NaN if the target is not in 0..V-1.
//
// If BACKWARD, out is the gradient (M, V) instead, from the gradients grads (2, M) of sum_exp and
// offset:
//
//   out[m][i] = exp(x[m][i] - row_max) * grads[0][m]
//               - grads[1][m] * (SMOOTHING / V + (i == targets[m] ? 1 - SMOOTHING : 0))
//
// The gradient by row_max is zero, because its parts by sum_exp and by offset cancel.
// A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict logits, const int *restrict targets,
            GRADS_PARAM int task) {
  for (long m = M * task / NUM_TASKS; m < M * (task + 1) / NUM_TASKS; m++) {
    const float *x = logits + m * V;
    int end = V / W * W;
    int target = targets[m];
    int valid = target >= 0 && target < V;
    float row_max = x[0];
    vec high = (vec)row_max;
    for (int i = 0; i < end; i += W)
      high = __builtin_elementwise_max(high, *(const vec *)(x + i));
    row_max = hmax(high);
    for (int i = end; i < V; i++)
      if (x[i] > row_max)
        row_max = x[i];
#if BACKWARD
    float *dx = out + m * V;
    float d_sum = grads[m];
    float d_offset = grads[M + m];
    for (int i = 0; i < end; i += W)
      *(vec *)(dx + i) =
          vec_exp(*(const vec *)(x + i) - row_max) * d_sum - d_offset * SMOOTHING / V;
    for (int i = end; i < V; i++)
      dx[i] = vec_exp((vec)(x[i] - row_max))[0] * d_sum - d_offset * SMOOTHING / V;
    if (valid)
      dx[target] -= d_offset * (1 - SMOOTHING);
#else
    vec vec_sum_exp = 0.0f;
    vec vec_sum_x = 0.0f;
    for (int i = 0; i < end; i += W) {
      vec y = *(const vec *)(x + i);
      vec_sum_exp += vec_exp(y - row_max);
      vec_sum_x += y;
    }
    float sum_exp = hsum(vec_sum_exp);
    float sum_x = hsum(vec_sum_x);
    for (int i = end; i < V; i++) {
      sum_exp += vec_exp((vec)(x[i] - row_max))[0];
      sum_x += x[i];
    }
    out[m] = sum_exp;
    // 0 times a logit of -inf would be NaN.
    out[M + m] =
        valid ? row_max - (1 - SMOOTHING) * x[target] - (SMOOTHING > 0 ? SMOOTHING / V * sum_x : 0)
              : __builtin_nanf("");
#endif
  }
}
"""
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
    param = "const float *restrict grads,"
    function = kernel("loss_back", CROSS_ENTROPY, 4, tasks, **macros, BACKWARD=1, GRADS_PARAM=param)
    return None, empty(M, V).custom_kernel(*inputs, fxn=function)[0].uop, None

  rows = contiguous_buffer(logits.reshape(M, V))
  targets = mask.where(target, 0).cast(dtypes.int32).reshape(M).contiguous()
  function = kernel("loss", CROSS_ENTROPY, 3, tasks, **macros, BACKWARD=0, GRADS_PARAM="")
  out = empty(2, M).custom_kernel(rows, targets, fxn=function, grad_fxn=gradient)[0]
  losses = out[0].log() + out[1]
  return mask.reshape(M).where(losses, 0).sum() / mask.sum()
