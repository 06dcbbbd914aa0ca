"""Matrix products of 16-bit numbers with float32 sums, on devices with tensor cores."""

import math
from typing import Any

from tinygrad import Device, Tensor, dtypes

# The largest finite float16.
MAX_FLOAT16 = 65504.0


def tensor_cores_support(device: str, dtype: Any, *sizes: Any) -> bool:
  """Return whether the device has tensor cores that multiply matrices of this dtype and sizes.

  sizes: M, K and N. The gradients are products of the same sizes in another order, so each size
  must be a multiple of the largest dimension of a tensor core.
  """
  for core in Device[device].renderer.tensor_cores:
    if (core.dtype_in, core.dtype_out) == (dtype, dtypes.float32):
      multiple = max(core.dims)
      if all(isinstance(size, int) and size % multiple == 0 for size in sizes):
        return True
  return False


def supports(x: Tensor, weight: Tensor) -> bool:
  """Return whether `product` computes x W^T for 16-bit weights W."""
  return (
    weight.dtype in (dtypes.float16, dtypes.bfloat16)
    and isinstance(x.device, str)
    and tensor_cores_support(x.device, weight.dtype, math.prod(x.shape[:-1]), *weight.shape)
  )


def product(x: Tensor, weight: Tensor) -> Tensor:
  """Return x W^T (..., N) in float32, for x (..., K) rounded to the dtype of W (N, K).

  The largest error of an output is 2^-8 times the sum of |x w| for bfloat16, and 2^-11 for float16,
  besides float32 rounding. Values of x beyond the largest float16 are replaced by it, and those
  below the smallest normal one, 2^-14, have an absolute error of 2^-25.
  """
  if weight.dtype == dtypes.float16:
    x = x.clip(-MAX_FLOAT16, MAX_FLOAT16)
  return x.cast(weight.dtype).contiguous().dot(weight.T, dtype=dtypes.float32)
