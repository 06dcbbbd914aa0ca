"""Compute layer normalization and its gradient on the CPU with a C kernel.

tinygrad reads each row of x three times, the kernel reads a row from memory once.
"""

import math

from tinygrad import Tensor, UOp, dtypes, nn

from tinyformer.kernels.c_kernel import contiguous_buffer, empty, has_clang, kernel, num_tasks


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
      function = kernel("layer_norm", 4, tasks, **macros, BACKWARD=1)
      out = empty((M + 2 * tasks) * D).custom_kernel(*inputs, fxn=function)[0]
      dx = out[: M * D].reshape(M, D)
      sums = out[M * D :].reshape(tasks, 2, D).sum(0)
      return None, dx.uop, sums[0].uop, sums[1].uop

    inputs = [contiguous_buffer(t) for t in (x.reshape(M, D), weight, bias)]
    function = kernel("layer_norm", 4, tasks, **macros, BACKWARD=0)
    out = empty(M, D).custom_kernel(*inputs, fxn=function, grad_fxn=gradient)[0]
    return out.reshape(x.shape)
