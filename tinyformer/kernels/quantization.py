"""Weights in int8, int4 and 16 bits: quantize them, and read them as float32."""

import numpy as np
from tinygrad import Tensor, dtypes

# The weights in a group of an int4 matrix, which share a scale, and the bytes that hold them.
GROUP = 32
GROUP_BYTES = 18


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


def quantize_int4(weight: np.ndarray) -> np.ndarray:
  """Return a matrix (N, K) quantized to int4 in groups of 32 columns, as bytes (N, K / 32 * 18).

  A group is a block of GGUF's type Q4_0: a float16 scale d, then 16 bytes, whose lower halves are
  the first 16 weights and whose upper halves are the last 16. A weight is d * (q - 8) for its half
  q. The group's weight of largest absolute value gets q = 0, so d has the opposite sign.
  Raises ValueError if K is not a multiple of 32.
  Source: quantize_row_q4_0_ref in llama.cpp's ggml-quants.c.
  """
  N, K = weight.shape
  if K % GROUP:
    raise ValueError(f"a row of {K} weights does not consist of groups of {GROUP}: use int8")
  groups = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, GROUP)
  index = np.abs(groups).argmax(1, keepdims=True)
  scale = np.take_along_axis(groups, index, 1) / np.float32(-8)
  inverse = np.float32(1) / np.where(scale == 0, np.float32(np.inf), scale)
  q = np.minimum(15, (groups * inverse + np.float32(8.5)).astype(np.uint8))
  blocks = np.empty((len(groups), GROUP_BYTES), np.uint8)
  blocks[:, :2] = scale.astype(np.float16).view(np.uint8)
  blocks[:, 2:] = q[:, : GROUP // 2] | q[:, GROUP // 2 :] << 4
  return blocks.reshape(N, K // GROUP * GROUP_BYTES)


def is_quantized(weight: Tensor) -> bool:
  """Return whether weights are those of quantize_int8 or quantize_int4."""
  return weight.dtype in (dtypes.int8, dtypes.uint8)


def to_float32(weight: Tensor) -> Tensor:
  """Return weights in float32.

  Int8 weights (..., K + 4) of quantize_int8 become (..., K), and int4 weights (..., K / 32 * 18) of
  quantize_int4, whose dtype is uint8, too.
  """
  if not is_quantized(weight):
    return weight.float()
  if weight.dtype == dtypes.int8:
    return weight[..., :-4].float() * weight[..., -4:].contiguous().bitcast(dtypes.float32)
  blocks = weight.reshape(*weight.shape[:-1], -1, GROUP_BYTES)
  scale = float16_of_bytes(blocks[..., :1], blocks[..., 1:2])
  pairs = blocks[..., 2:]
  q = (pairs & 15).cat(pairs // 16, dim=-1)
  return ((q.float() - 8) * scale).flatten(-2)


def float16_of_bytes(low: Tensor, high: Tensor) -> Tensor:
  """Return the finite float16 numbers of these bytes as float32.

  A device without float16 arithmetic would take the smallest ones, which are subnormal, for 0.
  """
  bits = low.cast(dtypes.int32) + 256 * high.cast(dtypes.int32)
  exponent = (bits >> 10) & 31
  significand = (bits & 1023) + (exponent > 0).where(1024, 0)
  power = ((exponent.maximum(1) + 102) << 23).bitcast(dtypes.float32)  # 2^(exponent - 25)
  return (bits >> 15 > 0).where(-significand, significand).float() * power


def row_scales(weight: Tensor) -> Tensor:
  """Return the scales (...) of quantize_int8's weights (..., K + 4), without copying them first.

  tinygrad copies the bytes before it reads them as float32 numbers. The sum of shifted bytes has
  the same bits.
  """
  parts = [weight[..., i - 4].bitcast(dtypes.uint8).cast(dtypes.uint32) * 256**i for i in range(4)]
  return sum(parts[1:], parts[0]).bitcast(dtypes.float32)


def gather_rows(weight: Tensor, ids: Tensor) -> Tensor:
  """Return weight[ids] in float32, for weights in any dtype that `to_float32` reads.

  16-bit rows are gathered as int16. tinygrad gathers by a sum with zeros, and a CPU without
  bfloat16 arithmetic cannot round that sum.
  """
  if weight.dtype == dtypes.float32:
    return weight[ids]
  if weight.dtype == dtypes.int8 and weight.ndim == 2:
    rows = weight[ids].contiguous()
    return rows[..., :-4].float() * row_scales(rows).unsqueeze(-1)
  if is_quantized(weight):
    return to_float32(weight[ids].contiguous())
  return weight.bitcast(dtypes.int16)[ids].contiguous().bitcast(weight.dtype).float()
