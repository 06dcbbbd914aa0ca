"""The logits of the likeliest tokens without reading all of the head: a copy of it in 16 bits tells which they may be, and only these are computed in full."""

import math

from tinygrad import Tensor, dtypes

from tinyformer.kernels.c_kernel import (
  NARROW,
  has_clang,
  num_tasks,
  empty,
  kernel,
  contiguous_buffer,
  dtype_macros,
)
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.linear import PackedLinear

# The head (N, K) in bfloat16: of each number the upper 16 bits, rounded.
COPY = r"""
__attribute__((min_vector_width(512)))
ABI void NAME(unsigned short *restrict out, const float *restrict head, int part) {
  for (long i = N*K*part/PARTS; i < N*K*(part + 1)/PARTS; i++) { union { float f; unsigned u; } v = { head[i] }; out[i] = (v.u + 0x8000) >> 16; }
}
"""
# For each row w of it: how far w x may be from what the copy gives, for an x of length 1. That is the length of what rounding took off w
# (the inequality of Cauchy and Schwarz), and what float32 may lose: 2^-24 K of |w| |x| in either sum, and a little in what is computed here.
SLACK = (
  NARROW
  + r"""
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict head, const TYPE *restrict copy, int part) {
  for (long n = N*part/PARTS; n < N*(part + 1)/PARTS; n++) {
    const float *w = head + n*K;
    const TYPE *c = copy + n*K;
    vec lost = 0.0f, all = 0.0f;
    long k = 0;
    for (; k + W <= K; k += W) { vec y = *(const vec *)(w + k), z = y - widen(c + k); lost += z*z; all += y*y; }
    float l = sum(lost), a = sum(all);
    for (; k < K; k++) { float z = w[k] - one(c[k]); l += z*z; a += w[k]*w[k]; }
    out[n] = __builtin_sqrtf(l) + (K + 8) * 1.2e-7f * __builtin_sqrtf(a);
  }
}
"""
)
# For each row x of xs (M, K), whose logits by the copy are near (M, N): each logit is at least near - slack |x|, and out is the COUNTth largest of these.
LEVEL = r"""
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict xs, const float *restrict near, const float *restrict slack, int part) {
  for (long m = M*part/PARTS; m < M*(part + 1)/PARTS; m++) {
    float length = __builtin_sqrtf(dot(xs + m*K, xs + m*K, K)), best[COUNT];   // the largest so far, ascending
    for (int i = 0; i < COUNT; i++) best[i] = -__builtin_inff();
    for (long n = 0; n < N; n++) {
      float low = near[m*N + n] - slack[n] * length;
      if (!(low > best[0])) continue;
      int i = 0;
      for (; i + 1 < COUNT && best[i + 1] < low; i++) best[i] = best[i + 1];
      best[i] = low;
    }
    out[m] = best[0];
  }
}
"""
# x w of each row w of the head that may reach x's level, in the order of the sums of tinyformer/kernels/linear.py's kernel for few rows; -inf of the others.
LIKELY = r"""
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict xs, const float *restrict near, const float *restrict slack, const float *restrict level, const float *restrict head, int part) {
  for (long m = 0; m < M; m++) {
    const float *x = xs + m*K;
    float length = __builtin_sqrtf(dot(x, x, K));
    for (long n = N*part/PARTS; n < N*(part + 1)/PARTS; n++)   // NaN is not less than any level: it is computed, and stays NaN
      out[m*N + n] = near[m*N + n] + slack[n] * length < level[m] ? -__builtin_inff() : dot(head + n*K, x, K);
  }
}
"""


class ExactTopKHead:
  """A head that gives the logits of the `count` likeliest tokens, and of those that may be among them; those of the others are -inf."""

  def __init__(self, weight: Tensor, count: int, key: str | None = None):
    """weight (N, K): the head's.  key: as Jitted's, for the kernels that copy it."""
    (N, K), self.weight, self.count = (
      weight.shape,
      weight,
      1 << (count - 1).bit_length(),
    )  # no less: numbers near each other share their kernels
    self.copy, sizes = (
      Tensor.empty(N, K, dtype=dtypes.bfloat16, device="CPU").realize(),
      dict(N=N, K=K, parts=num_tasks(5 * N * K)),
    )

    def fill() -> Tensor:
      copy = self.copy.custom_kernel(weight, fxn=kernel("copy", COPY, 2, **sizes))[0]
      return (
        empty(N)
        .custom_kernel(
          weight, copy, fxn=kernel("slack", SLACK, 3, **sizes, **dtype_macros(dtypes.bfloat16))
        )[0]
        .realize()
      )

    self.slack = Tensor(
      CompiledStep(fill, captured_buffers={"weight": weight, "copy": self.copy}, key=key)().copy(),
      device="CPU",
    ).realize()

  @staticmethod
  def supports(weight: Tensor, batch: int, count: int) -> bool:
    """Whether it saves anything: on the CPU, for weights in float32, few texts (the product of many reads the head once for all) and a short list."""
    return (
      weight.dtype == dtypes.float32
      and batch <= 16
      and count <= 256
      and has_clang(str(weight.device))
    )

  def __call__(self, x: Tensor) -> Tensor:
    """x (..., K) in float32 -> logits (..., N)."""
    (N, K), M = self.weight.shape, math.prod(x.shape[:-1])
    xs = contiguous_buffer(x.reshape(M, K))
    near = contiguous_buffer(PackedLinear.product(xs, self.copy))
    level = empty(M).custom_kernel(
      xs,
      near,
      self.slack,
      fxn=kernel("level", LEVEL, 4, M=M, N=N, K=K, COUNT=self.count, parts=num_tasks(5 * M * N)),
    )[0]
    fxn = kernel("likely", LIKELY, 6, M=M, N=N, K=K, parts=num_tasks(5 * N * K))
    return (
      empty(M, N)
      .custom_kernel(xs, near, self.slack, level, self.weight, fxn=fxn)[0]
      .reshape(*x.shape[:-1], N)
    )
