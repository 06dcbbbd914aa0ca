"""Compute the exact logits of the top k tokens without reading the whole float32 head.

A bfloat16 copy of the head, half its size, bounds each logit. Only the logits that may be among the
top k are computed in float32.
"""

import math

from tinygrad import Tensor, dtypes

from tinyformer.kernels.c_kernel import (
  DTYPE_LOADS,
  contiguous_buffer,
  dtype_macros,
  empty,
  has_clang,
  kernel,
  num_tasks,
)
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.linear import MAX_GEMV_ROWS, PackedLinear

# The largest top k for which ExactTopKHead is used.
MAX_COUNT = 256

BF16_COPY = r"""
// out[n][k] = head[n][k] rounded to bfloat16, the upper half of a float32. (N, K). A task is a
// range.
KERNEL NAME(unsigned short *restrict out, const float *restrict head, int task) {
  for (long i = N * K * task / NUM_TASKS; i < N * K * (task + 1) / NUM_TASKS; i++) {
    union {
      float f;
      unsigned u;
    } value = {head[i]};
    out[i] = (value.u + 0x8000) >> 16;
  }
}
"""

ERROR_BOUND = (
  DTYPE_LOADS
  + r"""
// Bound the error of the approximate logits, per row w of the head (N, K) and c of its copy (N, K):
//
//   out[n] = |w[n] - c[n]| + (K + 8) * 1.2e-7 * |w[n]|        so that, for every x (K),
//   |logit - approximate logit| <= out[n] * |x|
//
// The first term bounds the rounding of the copy (Cauchy-Schwarz inequality). The second bounds the
// float32 rounding error, 2^-24 K |w| |x| in each of the two sums, and that of this computation.
// A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict head, const TYPE *restrict copy, int task) {
  for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++) {
    const float *w = head + n * K;
    const TYPE *c = copy + n * K;
    vec vec_error = 0.0f;
    vec vec_norm = 0.0f;
    long k = 0;
    for (; k + W <= K; k += W) {
      vec y = *(const vec *)(w + k);
      vec z = y - load_vec(c + k);
      vec_error += z * z;
      vec_norm += y * y;
    }
    float error = hsum(vec_error);
    float norm = hsum(vec_norm);
    for (; k < K; k++) {
      float z = w[k] - to_float(c[k]);
      error += z * z;
      norm += w[k] * w[k];
    }
    out[n] = __builtin_sqrtf(error) + (K + 8) * 1.2e-7f * __builtin_sqrtf(norm);
  }
}
"""
)

THRESHOLD = r"""
// Return a lower bound on the COUNT-th largest logit of each row x of xs (M, K): the COUNT-th
// largest of the logits' own lower bounds, approx[m][n] - error_bound[n] * |x|, with approx (M, N).
// out (M). A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict xs, const float *restrict approx,
            const float *restrict error_bound, int task) {
  for (long m = M * task / NUM_TASKS; m < M * (task + 1) / NUM_TASKS; m++) {
    float x_norm = __builtin_sqrtf(dot(xs + m * K, xs + m * K, K));
    // The COUNT largest lower bounds so far, in ascending order.
    float best[COUNT];
    for (int i = 0; i < COUNT; i++)
      best[i] = -__builtin_inff();
    for (long n = 0; n < N; n++) {
      float lower = approx[m * N + n] - error_bound[n] * x_norm;
      if (!(lower > best[0]))
        continue;
      int i = 0;
      for (; i + 1 < COUNT && best[i + 1] < lower; i++)
        best[i] = best[i + 1];
      best[i] = lower;
    }
    out[m] = best[0];
  }
}
"""

EXACT_LOGITS = r"""
// out[m][n] = dot(head[n], xs[m]) if this logit's upper bound reaches threshold[m], otherwise -inf.
// xs (M, K), approx (M, N), error_bound (N), threshold (M), head (N, K) -> out (M, N).
// The order of summation is that of GEMV in linear.py. A task is a range of n.
KERNEL NAME(float *restrict out, const float *restrict xs, const float *restrict approx,
            const float *restrict error_bound, const float *restrict threshold,
            const float *restrict head, int task) {
  for (long m = 0; m < M; m++) {
    const float *x = xs + m * K;
    float x_norm = __builtin_sqrtf(dot(x, x, K));
    // A NaN is not less than the threshold, so its logit is computed and remains NaN.
    for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++)
      out[m * N + n] = approx[m * N + n] + error_bound[n] * x_norm < threshold[m]
                           ? -__builtin_inff()
                           : dot(head + n * K, x, K);
  }
}
"""


class ExactTopKHead:
  """A head that returns the exact logits of at least the top `count` tokens, and -inf for the rest.

  The logits of all tokens whose upper bound reaches the top `count` are returned.
  """

  def __init__(self, weight: Tensor, count: int, key: str | None = None):
    """Copy the head's weight (N, K) to bfloat16 and bound the error of each row.

    count: the number of tokens, rounded up to a power of two so that similar counts share kernels.
    key: CompiledStep's key for the kernels that make the copy.
    """
    N, K = weight.shape
    self.weight = weight
    self.count = 1 << (count - 1).bit_length()
    self.copy = Tensor.empty(N, K, dtype=dtypes.bfloat16, device="CPU").realize()
    tasks = num_tasks(5 * N * K)

    def copy_and_bound() -> Tensor:
      copy_kernel = kernel("bf16_copy", BF16_COPY, 2, tasks, N=N, K=K)
      copy = self.copy.custom_kernel(weight, fxn=copy_kernel)[0]
      macros = dtype_macros(dtypes.bfloat16)
      bound_kernel = kernel("error_bound", ERROR_BOUND, 3, tasks, N=N, K=K, **macros)
      return empty(N).custom_kernel(weight, copy, fxn=bound_kernel)[0].realize()

    buffers = {"weight": weight, "copy": self.copy}
    error_bound = CompiledStep(copy_and_bound, captured_buffers=buffers, key=key)()
    self.slack = Tensor(error_bound.copy(), device="CPU").realize()

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
    xs = contiguous_buffer(x.reshape(M, K))
    approx = contiguous_buffer(PackedLinear.product(xs, self.copy))
    tasks = num_tasks(5 * M * N)
    threshold_kernel = kernel("threshold", THRESHOLD, 4, tasks, M=M, N=N, K=K, COUNT=self.count)
    threshold = empty(M).custom_kernel(xs, approx, self.slack, fxn=threshold_kernel)[0]
    logits_kernel = kernel("exact_logits", EXACT_LOGITS, 6, num_tasks(5 * N * K), M=M, N=N, K=K)
    inputs = (xs, approx, self.slack, threshold, self.weight)
    logits = empty(M, N).custom_kernel(*inputs, fxn=logits_kernel)[0]
    return logits.reshape(*x.shape[:-1], N)
