"""Weights in int8 and 16 bits: quantize them, and read them as float32."""

import numpy as np
from tinygrad import Tensor, dtypes


def quantize_int8(weight: np.ndarray) -> np.ndarray:
  """Return a matrix (N, K) quantized to int8, with one scale per row, as (N, K + 4).

  A row's scale is its largest absolute value / 127. Values are rounded to the nearest multiple of
  the scale. The last 4 bytes of each row are its scale as a float32.
  """
  largest = np.abs(weight).max(1, keepdims=True, initial=0).astype(np.float32)
  scale = largest / np.float32(127)
  quantized = np.rint(weight / np.where(scale == 0, 1, scale)).astype(np.int8)
  return np.concatenate([quantized, scale.view(np.int8)], 1)


def quantized_row_size(K: int, group: int) -> int:
  """Return the bytes in a row of K activations in int8, as c/int8_rows.h lays it out."""
  return -(-K // 4) * 4 + 8 * -(-K // group)


def to_float32(weight: Tensor) -> Tensor:
  """Return weights in float32. Int8 weights (..., K + 4) of quantize_int8 become (..., K)."""
  if weight.dtype != dtypes.int8:
    return weight.float()
  return weight[..., :-4].float() * weight[..., -4:].contiguous().bitcast(dtypes.float32)


def row_scales(weight: Tensor) -> Tensor:
  """Return the scales (N) of quantize_int8's weights (N, K + 4), without copying them first.

  tinygrad copies the bytes before it reads them as float32 numbers. The sum of shifted bytes has
  the same bits.
  """
  parts = [weight[:, i - 4].bitcast(dtypes.uint8).cast(dtypes.uint32) * 256**i for i in range(4)]
  return sum(parts[1:], parts[0]).bitcast(dtypes.float32)


def gather_rows(weight: Tensor, ids: Tensor) -> Tensor:
  """Return weight[ids] in float32, for weights in float32, float16, bfloat16 or quantize_int8's.

  16-bit rows are gathered as int16. tinygrad gathers by a sum with zeros, and a CPU without
  bfloat16 arithmetic cannot round that sum.
  """
  if weight.dtype == dtypes.float32:
    return weight[ids]
  if weight.dtype == dtypes.int8:
    return to_float32(weight[ids].contiguous())
  return weight.bitcast(dtypes.int16)[ids].contiguous().bitcast(weight.dtype).float()
