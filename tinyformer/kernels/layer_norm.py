"""Layer normalisation as a kernel of its own for the CPU, with its gradient: the numbers of tinygrad's, a row read once instead of three times."""

import math

from tinygrad import Tensor, UOp, dtypes, nn

from tinyformer.kernels.c_kernel import has_clang, num_tasks, empty, kernel, contiguous_buffer

# Rows of x (M, D): y = (x - mean) / sqrt(variance + EPS) * w + b. BACK gives instead, for the gradient dy of y, that of x, then for each part of the
# work the sums over its rows of dy times the normalised x, and of dy: out is (M, D), then (PARTS, 2, D).
ROWS = r"""
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict xs, const float *restrict w, const float *restrict OTHER, int part) {
#if BACK
  float *dw = out + (M + 2L*part)*D, *db = dw + D;
  for (int i = 0; i < 2*D; i++) dw[i] = 0;
#endif
  for (long m = M*part/PARTS; m < M*(part + 1)/PARTS; m++) {
    const float *x = xs + m*D;
    float *y = out + m*D, mean = 0, variance = 0;
    vec s = 0.0f;
    for (int i = 0; i + W <= D; i += W) s += *(const vec *)(x + i);
    mean = sum(s);
    for (int i = D / W * W; i < D; i++) mean += x[i];
    mean /= D;
    s = 0.0f;
    for (int i = 0; i + W <= D; i += W) { vec d = *(const vec *)(x + i) - mean; s += d*d; }
    variance = sum(s);
    for (int i = D / W * W; i < D; i++) variance += (x[i] - mean)*(x[i] - mean);
    float scale = 1 / __builtin_sqrtf(variance / D + EPS);
#if BACK
    const float *dy = slopes + m*D;
    float g = 0, gx = 0;   // the means of dy w, and of that times the normalised x
    vec vg = 0.0f, vgx = 0.0f;
    for (int i = 0; i + W <= D; i += W) { vec t = *(const vec *)(dy + i) * *(const vec *)(w + i); vg += t; vgx += t * (*(const vec *)(x + i) - mean); }
    g = sum(vg); gx = sum(vgx);
    for (int i = D / W * W; i < D; i++) { g += dy[i]*w[i]; gx += dy[i]*w[i]*(x[i] - mean); }
    g /= D; gx *= scale / D;
    for (int i = 0; i < D; i++) {
      float normal = (x[i] - mean)*scale;
      y[i] = (dy[i]*w[i] - g - normal*gx)*scale;
      dw[i] += dy[i]*normal; db[i] += dy[i];
    }
#else
    for (int i = 0; i < D; i++) y[i] = (x[i] - mean)*scale*w[i] + b[i];
#endif
  }
}
"""


class LayerNorm(nn.LayerNorm):
  """tinygrad's LayerNorm over the last axis; on the CPU, in float32, as the kernel above."""

  def __call__(self, x: Tensor) -> Tensor:
    D, M, weight, bias = x.shape[-1], math.prod(x.shape[:-1]), self.weight, self.bias
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
    sizes, parts = dict(M=M, D=D, EPS=f"{self.eps!r}f"), num_tasks(8 * M * D)

    def gradient(dy: UOp, call: UOp) -> tuple[UOp | None, ...]:
      fxn = kernel("norm", ROWS, 4, **sizes, BACK=1, OTHER="slopes", parts=parts)
      out = empty((M + 2 * parts) * D).custom_kernel(
        *(Tensor(u) for u in call.src[2:4]), Tensor(dy).contiguous(), fxn=fxn
      )[0]
      sums = out[M * D :].reshape(parts, 2, D).sum(0)
      return None, out[: M * D].reshape(M, D).uop, sums[0].uop, sums[1].uop

    fxn = kernel("norm", ROWS, 4, **sizes, BACK=0, OTHER="b", parts=parts)
    return (
      empty(M, D)
      .custom_kernel(
        contiguous_buffer(x.reshape(M, D)),
        contiguous_buffer(weight),
        contiguous_buffer(bias),
        fxn=fxn,
        grad_fxn=gradient,
      )[0]
      .reshape(x.shape)
    )
