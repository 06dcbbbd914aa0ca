"""Compute layer normalization and its gradient on the CPU with a C kernel.

tinygrad reads each row of x three times, the kernel reads a row from memory once.
"""

import math

from tinygrad import Tensor, UOp, dtypes, nn

from tinyformer.kernels.c_kernel import contiguous_buffer, empty, has_clang, kernel, num_tasks

LAYER_NORM = r"""
// Layer normalization (Ba et al. 2016, sec. 3) of x (M, D) with weight and bias (D):
//
//   normed[m][i] = (x[m][i] - mean(x[m])) * scale[m], where scale[m] = 1 / sqrt(var(x[m]) + EPS)
//   out[m][i] = normed[m][i] * weight[i] + bias[i]
//
// If BACKWARD, the gradients instead, from the gradient dy (M, D) of the output:
//
//   g[m][i] = dy[m][i] * weight[i]
//   dx[m][i] = (g[m][i] - mean(g[m]) - normed[m][i] * mean(g[m] * normed[m])) * scale[m]
//   dweight[i] = sum over m of dy[m][i] * normed[m][i]        dbias[i] = sum over m of dy[m][i]
//
// out is then dx (M, D), followed by the sums dweight and dbias of each task (NUM_TASKS, 2, D).
// LAST_INPUT is bias or dy. A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict xs, const float *restrict weight,
            const float *restrict LAST_INPUT, int task) {
#if BACKWARD
  float *dweight = out + (M + 2L * task) * D;
  float *dbias = dweight + D;
  for (int i = 0; i < 2 * D; i++)
    dweight[i] = 0;
#endif
  for (long m = M * task / NUM_TASKS; m < M * (task + 1) / NUM_TASKS; m++) {
    const float *x = xs + m * D;
    float *y = out + m * D;
    vec s = 0.0f;
    for (int i = 0; i + W <= D; i += W)
      s += *(const vec *)(x + i);
    float mean = hsum(s);
    for (int i = D / W * W; i < D; i++)
      mean += x[i];
    mean /= D;
    s = 0.0f;
    for (int i = 0; i + W <= D; i += W) {
      vec d = *(const vec *)(x + i) - mean;
      s += d * d;
    }
    float variance = hsum(s);
    for (int i = D / W * W; i < D; i++)
      variance += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / __builtin_sqrtf(variance / D + EPS);
#if BACKWARD
    const float *row_dy = dy + m * D;
    vec sum_g = 0.0f;
    vec sum_gx = 0.0f;
    for (int i = 0; i + W <= D; i += W) {
      vec g = *(const vec *)(row_dy + i) * *(const vec *)(weight + i);
      sum_g += g;
      sum_gx += g * (*(const vec *)(x + i) - mean);
    }
    float mean_g = hsum(sum_g);
    float mean_gx = hsum(sum_gx);
    for (int i = D / W * W; i < D; i++) {
      mean_g += row_dy[i] * weight[i];
      mean_gx += row_dy[i] * weight[i] * (x[i] - mean);
    }
    mean_g /= D;
    mean_gx *= scale / D;
    for (int i = 0; i < D; i++) {
      float normed = (x[i] - mean) * scale;
      y[i] = (row_dy[i] * weight[i] - mean_g - normed * mean_gx) * scale;
      dweight[i] += row_dy[i] * normed;
      dbias[i] += row_dy[i];
    }
#else
    for (int i = 0; i < D; i++)
      y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
#endif
  }
}
"""


class LayerNorm(nn.LayerNorm):
  """An nn.LayerNorm over the last axis, computed by a C kernel if x is float32 and on the CPU."""

  def __call__(self, x: Tensor) -> Tensor:
    """Return x, normalized over its last axis (Ba et al. 2016, sec. 3): (..., D) -> (..., D)."""
    D = x.shape[-1]
    M = math.prod(x.shape[:-1])
    weight = self.weight
    bias = self.bias
    if (
      not isinstance(M, int)
      or not M
      or weight is None
      or bias is None
      or self.normalized_shape != (D,)
      or x.dtype != dtypes.float32
      or not has_clang(str(x.device))
    ):
      return super().__call__(x)
    tasks = num_tasks(8 * M * D)
    macros = {"M": M, "D": D, "EPS": f"{self.eps!r}f"}

    def gradient(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
      inputs = [Tensor(u) for u in call.src[2:4]]
      inputs.append(Tensor(grad).contiguous())
      function = kernel("norm", LAYER_NORM, 4, tasks, **macros, BACKWARD=1, LAST_INPUT="dy")
      out = empty((M + 2 * tasks) * D).custom_kernel(*inputs, fxn=function)[0]
      dx = out[: M * D].reshape(M, D)
      sums = out[M * D :].reshape(tasks, 2, D).sum(0)
      return None, dx.uop, sums[0].uop, sums[1].uop

    inputs = [contiguous_buffer(t) for t in (x.reshape(M, D), weight, bias)]
    function = kernel("norm", LAYER_NORM, 4, tasks, **macros, BACKWARD=0, LAST_INPUT="bias")
    out = empty(M, D).custom_kernel(*inputs, fxn=function, grad_fxn=gradient)[0]
    return out.reshape(x.shape)
