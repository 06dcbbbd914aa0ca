"""Compute GELU and its gradient on the CPU with a C kernel that vectorizes the exponential."""

import math

from tinygrad import Tensor, UOp, dtypes

from tinyformer.kernels.c_kernel import (
  VEC_EXP,
  contiguous_buffer,
  empty,
  has_clang,
  kernel,
  num_tasks,
)

GELU = (
  VEC_EXP
  + r"""
// GELU in its tanh form (Hendrycks & Gimpel 2016, sec. 2), and its gradient, for x (N):
//
//   out[i] = x[i] * sigmoid(2 z), where z = sqrt(2 / pi) * (x[i] + 0.044715 * x[i]^3)
//
// x sigmoid(2 z) is x (1 + tanh z) / 2. RESULT is that or, with the input dy (N), the gradient
// dy sigmoid(2 z) (1 + x (1 - sigmoid(2 z)) 2 dz/dx). A task is a range of i.
INLINE vec gelu(vec x DY_ARG) {
  vec minus_2z = -1.5957691216f * x * (1.0f + 0.044715f * x * x);
  // The minimum keeps the exponential finite.
  vec sigmoid = 1.0f / (1.0f + vec_exp(__builtin_elementwise_min(minus_2z, (vec)87.0f)));
  return RESULT;
}

KERNEL NAME(float *restrict out, const float *restrict x, DY_PARAM int task) {
  enum { UNITS = (N + W - 1) / W };
  long i = UNITS * task / NUM_TASKS * W;
  long last = UNITS * (task + 1) / NUM_TASKS * W;
  for (; i < last; i += W) {
    if (i + W <= N) {
      *(vec *)(out + i) = gelu(*(const vec *)(x + i) DY_VECTOR);
      continue;
    }
    for (long j = i; j < N; j++)
      out[j] = gelu((vec)x[j] DY_SCALAR)[0];
  }
}
"""
)
FORWARD = {
  "DY_ARG": "",
  "DY_PARAM": "",
  "DY_VECTOR": "",
  "DY_SCALAR": "",
  "RESULT": "x * sigmoid",
}
BACKWARD = {
  "DY_ARG": ", vec dy",
  "DY_PARAM": "const float *restrict dy,",
  "DY_VECTOR": ", *(const vec *)(dy + i)",
  "DY_SCALAR": ", (vec)dy[j]",
  "RESULT": "dy * sigmoid * (1.0f + x * (1.0f - sigmoid) * 1.5957691216f * (1.0f + 0.134145f*x*x))",
}


def gelu(x: Tensor) -> Tensor:
  """Return Tensor.gelu(x), the tanh form of GELU (Hendrycks & Gimpel 2016, sec. 2).

  The shape of x is arbitrary. A C kernel computes it if x is float32 and on the CPU.
  """
  N = math.prod(x.shape)
  if not isinstance(N, int) or not N or x.dtype != dtypes.float32 or not has_clang(str(x.device)):
    return x.gelu()
  tasks = num_tasks(16 * N)

  def gradient(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
    dy = Tensor(grad).contiguous()
    function = kernel("gelu_back", GELU, 3, tasks, N=N, **BACKWARD)
    dx = empty(*x.shape).custom_kernel(Tensor(call.src[2]), dy, fxn=function)[0]
    return None, dx.uop

  function = kernel("gelu", GELU, 2, tasks, N=N, **FORWARD)
  out = empty(*x.shape)
  return out.custom_kernel(contiguous_buffer(x), fxn=function, grad_fxn=gradient)[0]
