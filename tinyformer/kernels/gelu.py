"""GELU as a kernel of its own for the CPU, with its gradient: tinygrad's numbers, an exponential of a whole vector at a time."""

import math

from tinygrad import Tensor, UOp, dtypes

from tinyformer.kernels.c_kernel import (
  EXPONENTIAL,
  has_clang,
  num_tasks,
  empty,
  kernel,
  contiguous_buffer,
)

# y = x / (1 + e^-2z), z = sqrt(2/pi) (x + 0.044715 x^3), which is x (1 + tanh z) / 2. BACK gives the gradient dy of y, times the slope of that.
GELU = (
  EXPONENTIAL
  + r"""
INLINE vec gelu(vec x SLOPE) {
  vec z = -1.5957691216f * x * (1.0f + 0.044715f*x*x), share = 1.0f / (1.0f + exponential(__builtin_elementwise_min(z, (vec)87.0f)));
  return RESULT;
}
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict x, GIVEN int part) {
  enum { UNITS = (N + W - 1) / W };
  for (long i = UNITS*part/PARTS*W, last = UNITS*(part + 1)/PARTS*W; i < last; i += W) {
    if (i + W <= N) { *(vec *)(out + i) = gelu(*(const vec *)(x + i) WHOLE); continue; }
    for (long j = i; j < N; j++) out[j] = gelu((vec)x[j] SINGLE)[0];
  }
}
"""
)
FORWARD = {"SLOPE": "", "GIVEN": "", "WHOLE": "", "SINGLE": "", "RESULT": "x * share"}
BACK = {
  "SLOPE": ", vec dy",
  "GIVEN": "const float *restrict dy,",
  "WHOLE": ", *(const vec *)(dy + i)",
  "SINGLE": ", (vec)dy[j]",
  "RESULT": "dy * share * (1.0f + x * (1.0f - share) * 1.5957691216f * (1.0f + 0.134145f*x*x))",
}


def gelu(x: Tensor) -> Tensor:
  """Tensor.gelu, in its tanh form (Hendrycks & Gimpel 2016, sec. 2); on the CPU, in float32, as the kernel above."""
  N = math.prod(x.shape)
  if not isinstance(N, int) or not N or x.dtype != dtypes.float32 or not has_clang(str(x.device)):
    return x.gelu()

  def gradient(dy: UOp, call: UOp) -> tuple[UOp | None, ...]:
    fxn = kernel("gelu_back", GELU, 3, N=N, parts=num_tasks(16 * N), **BACK)
    return None, empty(*x.shape).custom_kernel(
      Tensor(call.src[2]), Tensor(dy).contiguous(), fxn=fxn
    )[0].uop

  return empty(*x.shape).custom_kernel(
    contiguous_buffer(x),
    fxn=kernel("gelu", GELU, 2, N=N, parts=num_tasks(16 * N), **FORWARD),
    grad_fxn=gradient,
  )[0]
