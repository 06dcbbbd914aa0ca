"""The types of tensors in GGUF files: blocks of quantized weights, and how to dequantize them.

A block has a scale d and, in some types, a minimum m: a weight is d * q + m for an integer q of few
bits. In the K types, a block of 256 weights has a scale for each 16 or 32 of them.
Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class GGMLType(NamedTuple):
  """A type of tensor.

  block_size: the number of weights in a block.  block_bytes: the bytes of a block.
  dequantize: bytes (N, block_bytes) -> float32 weights (N, block_size).
  """

  name: str
  block_size: int
  block_bytes: int
  dequantize: Callable[[np.ndarray], np.ndarray]


def half(blocks: np.ndarray, start: int) -> np.ndarray:
  """Return the float16 numbers at a byte of each block as float32: (N, bytes) -> (N, 1)."""
  return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def low_then_high(bytes_: np.ndarray) -> np.ndarray:
  """Return the lower halves of all bytes, then the upper halves: (..., n) -> (..., 2 * n)."""
  return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)


def fifth_bits(bytes_: np.ndarray) -> np.ndarray:
  """Return each bit as 0 or 16, the lowest bit of a byte first: (N, n) -> (N, 8 * n)."""
  return np.unpackbits(bytes_, axis=-1, bitorder="little") << 4


def dequantize_f32(blocks: np.ndarray) -> np.ndarray:
  """Return float32 numbers, one per block."""
  return blocks.view(np.float32)


def dequantize_f16(blocks: np.ndarray) -> np.ndarray:
  """Return float16 numbers, one per block, as float32."""
  return blocks.view(np.float16).astype(np.float32)


def dequantize_bf16(blocks: np.ndarray) -> np.ndarray:
  """Return bfloat16 numbers, one per block, as float32."""
  return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def dequantize_q8_0(blocks: np.ndarray) -> np.ndarray:
  """Return d * q for 8-bit q. A block is d, then 32 signed bytes."""
  return half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def dequantize_q4_0(blocks: np.ndarray) -> np.ndarray:
  """Return d * (q - 8) for 4-bit q. A block is d, then 16 bytes with two q each."""
  q = low_then_high(blocks[:, 2:]).astype(np.float32)
  return half(blocks, 0) * (q - 8)


def dequantize_q4_1(blocks: np.ndarray) -> np.ndarray:
  """Return d * q + m for 4-bit q. A block is d, m, then 16 bytes with two q each."""
  q = low_then_high(blocks[:, 4:]).astype(np.float32)
  return half(blocks, 0) * q + half(blocks, 2)


def dequantize_q5_0(blocks: np.ndarray) -> np.ndarray:
  """Return d * (q - 16) for 5-bit q. A block is d, 32 fifth bits, then 16 bytes."""
  q = low_then_high(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])
  return half(blocks, 0) * (q.astype(np.float32) - 16)


def dequantize_q5_1(blocks: np.ndarray) -> np.ndarray:
  """Return d * q + m for 5-bit q. A block is d, m, 32 fifth bits, then 16 bytes."""
  q = low_then_high(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])
  return half(blocks, 0) * q.astype(np.float32) + half(blocks, 2)


def scales_and_minimums(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Unpack the eight 6-bit scales and minimums of a K block: (N, 12) -> twice (N, 8, 1) float32.

  The first four of each are in the lower six bits of bytes 0 to 7. The last four have their lower
  bits in bytes 8 to 11 and their two upper bits in the two upper bits of bytes 0 to 7.
  """
  a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
  scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=-1)
  minimums = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=-1)
  return scales.astype(np.float32)[..., None], minimums.astype(np.float32)[..., None]


def dequantize_k(blocks: np.ndarray, q: np.ndarray) -> np.ndarray:
  """Return d * scale * q - dmin * minimum for q (N, 8, 32). A block begins with d, dmin, scales."""
  scales, minimums = scales_and_minimums(blocks[:, 4:16])
  d, dmin = half(blocks, 0)[..., None], half(blocks, 2)[..., None]
  return ((d * scales) * q.astype(np.float32) - dmin * minimums).reshape(len(blocks), 256)


def dequantize_q4_k(blocks: np.ndarray) -> np.ndarray:
  """Return the weights of blocks with 4-bit q, which are in bytes 16 to 143."""
  q = low_then_high(blocks[:, 16:].reshape(-1, 4, 32))
  return dequantize_k(blocks, q.reshape(-1, 8, 32))


def dequantize_q5_k(blocks: np.ndarray) -> np.ndarray:
  """Return the weights of blocks with 5-bit q.

  Bit g of byte i in bytes 16 to 47 is the fifth bit of weight i in group g of 32 weights.
  """
  q = low_then_high(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
  groups = np.arange(8, dtype=np.uint8)[:, None]
  return dequantize_k(blocks, q | (blocks[:, None, 16:48] >> groups & 1) << 4)


def dequantize_q6_k(blocks: np.ndarray) -> np.ndarray:
  """Return d * scale * (q - 32) for 6-bit q.

  A block is 128 bytes with the lower four bits, 64 with the upper two, 16 signed scales, and d.
  Both halves of a block have 128 weights: four groups of 32.
  """
  low = low_then_high(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
  shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
  high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
  q = (low | high << 4).astype(np.float32) - 32
  scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
  d = half(blocks, 208) * scales
  return (d[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def quantize_q8_0(rows: np.ndarray) -> np.ndarray:
  """Return the blocks (N, 34) of float32 weights whose rows are multiples of 32.

  d is the largest absolute value of a block / 127. Half a step is rounded away from zero.
  Source: quantize_row_q8_0_ref in llama.cpp's ggml-quants.c.
  """
  weights = np.ascontiguousarray(rows, np.float32).reshape(-1, 32)
  d = np.abs(weights).max(1, keepdims=True) / np.float32(127)
  steps = weights * (np.float32(1) / np.where(d == 0, np.float32(np.inf), d))
  truncated = np.trunc(steps)
  q = truncated + np.trunc(2 * (steps - truncated))
  return np.concatenate([d.astype(np.float16).view(np.uint8), q.astype(np.int8).view(np.uint8)], 1)


# The number of each type in a file.
GGML_TYPES = {
  0: GGMLType("F32", 1, 4, dequantize_f32),
  1: GGMLType("F16", 1, 2, dequantize_f16),
  2: GGMLType("Q4_0", 32, 18, dequantize_q4_0),
  3: GGMLType("Q4_1", 32, 20, dequantize_q4_1),
  6: GGMLType("Q5_0", 32, 22, dequantize_q5_0),
  7: GGMLType("Q5_1", 32, 24, dequantize_q5_1),
  8: GGMLType("Q8_0", 32, 34, dequantize_q8_0),
  12: GGMLType("Q4_K", 256, 144, dequantize_q4_k),
  13: GGMLType("Q5_K", 256, 176, dequantize_q5_k),
  14: GGMLType("Q6_K", 256, 210, dequantize_q6_k),
  30: GGMLType("BF16", 1, 2, dequantize_bf16),
}
# Types that other programs write and this one does not read, for the error message.
OTHER_TYPES = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"}
OTHER_TYPES |= {18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"}
OTHER_TYPES |= {24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0"}
OTHER_TYPES |= {35: "TQ2_0", 39: "MXFP4"}
