"""The cross-entropy of transformer.loss as a kernel of its own for the CPU, with its gradient, which alone is stored in the size of the logits."""

import math

from tinygrad import Tensor, UOp, dtypes

import transformer
from tinyformer.kernels.c_kernel import (
  EXPONENTIAL,
  has_clang,
  num_tasks,
  empty,
  kernel,
  contiguous_buffer,
)

# Of each row x of logits (M, V), with `top` its largest: the sum of e^(x - top), and what its logarithm is to be added to: top - (1 - SMOOTHING) x[target]
# - SMOOTHING mean(x); out is (2, M). BACK gives instead the gradient (M, V) from theirs; what `top` adds to the one it takes from the other.
ROWS = (
  EXPONENTIAL
  + r"""
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict logits, const int *restrict targets, GIVEN int part) {
  for (long m = M*part/PARTS; m < M*(part + 1)/PARTS; m++) {
    const float *x = logits + m*V;
    int end = V / W * W, target = targets[m], known = target >= 0 && target < V;
    float top = x[0];
    vec high = (vec)top;
    for (int i = 0; i < end; i += W) high = __builtin_elementwise_max(high, *(const vec *)(x + i));
    top = most(high);
    for (int i = end; i < V; i++) if (x[i] > top) top = x[i];
#if BACK
    float *y = out + m*V, slope = slopes[m], other = slopes[M + m];
    for (int i = 0; i < end; i += W) *(vec *)(y + i) = exponential(*(const vec *)(x + i) - top) * slope - other * SMOOTHING / V;
    for (int i = end; i < V; i++) y[i] = exponential((vec)(x[i] - top))[0] * slope - other * SMOOTHING / V;
    if (known) y[target] -= other * (1 - SMOOTHING);
#else
    vec total = 0.0f, all = 0.0f;
    for (int i = 0; i < end; i += W) { vec y = *(const vec *)(x + i); total += exponential(y - top); all += y; }
    float sum_of_e = sum(total), sum_of_x = sum(all);
    for (int i = end; i < V; i++) { sum_of_e += exponential((vec)(x[i] - top))[0]; sum_of_x += x[i]; }
    out[m] = sum_of_e;
    out[M + m] = known ? top - (1 - SMOOTHING) * x[target] - (SMOOTHING > 0 ? SMOOTHING / V * sum_of_x : 0) : __builtin_nanf("");
#endif
  }
}
"""
)


def loss(logits: Tensor, target: Tensor, smoothing: float = 0.1, ignore: int = -1) -> Tensor:
  """transformer.loss; on the CPU, in float32, as the kernel above, which gives nan for a target that is no token."""
  V, M = logits.shape[-1], math.prod(target.shape)
  if (
    logits.shape[:-1] != target.shape
    or not (isinstance(M, int) and isinstance(V, int) and M and V)
    or logits.dtype != dtypes.float32
    or not has_clang(str(logits.device))
  ):
    return transformer.loss(logits, target, smoothing, ignore)
  keep, sizes = (
    target != ignore,
    dict(M=M, V=V, SMOOTHING=f"{float(smoothing)!r}f", parts=num_tasks(8 * M * V)),
  )

  def gradient(dy: UOp, call: UOp) -> tuple[UOp | None, ...]:
    fxn = kernel("loss_back", ROWS, 4, **sizes, BACK=1, GIVEN="const float *restrict slopes,")
    return (
      None,
      empty(M, V)
      .custom_kernel(*(Tensor(u) for u in call.src[2:4]), Tensor(dy).contiguous(), fxn=fxn)[0]
      .uop,
      None,
    )

  given = (
    contiguous_buffer(logits.reshape(M, V)),
    keep.where(target, 0).cast(dtypes.int32).reshape(M).contiguous(),
  )
  both = empty(2, M).custom_kernel(
    *given, fxn=kernel("loss", ROWS, 3, **sizes, BACK=0, GIVEN=""), grad_fxn=gradient
  )[0]
  return keep.reshape(M).where(both[0].log() + both[1], 0).sum() / keep.sum()
