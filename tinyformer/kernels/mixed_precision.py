"""Products of numbers in bfloat16, summed up in float32, for a model whose parameters, norms, softmax and loss stay in float32 (Micikevicius et al. 2018, sec. 3).

A gradient comes back through the same casts: to a parameter, which the optimizer changes in float32, so that no small step is lost. The losses
need not be scaled (its sec. 3.2), as float16's must be: bfloat16 has float32's exponents, and what is small stays a number (Kalamkar et al. 2019).
"""

import math
from collections.abc import Callable

from tinygrad import Tensor, dtypes

import tinyformer.kernels.attention
import transformer
from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.linear import PackedLinear
from transformer import attention_weights, scaled_dot_product, repeat_kv, materialize


def to_bfloat16(x: Tensor) -> Tensor:
  """x in bfloat16, kept so."""
  return x.cast(dtypes.bfloat16).contiguous()


def product(a: Tensor, b: Tensor) -> Tensor:
  """a (..., M, K), b (..., K, N) -> (..., M, N) in float32: tinygrad's tensor cores take products of this form."""
  return to_bfloat16(a).dot(to_bfloat16(b), dtype=dtypes.float32)


class MixedLinear(PackedLinear):
  """transformer.Linear with a product of bfloat16. A CPU has none: there numbers are rounded to bfloat16 and multiplied in float32."""

  @staticmethod
  def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K), weight (N, K), both in float32 -> x weight^T + bias (..., N) in float32."""
    if has_clang(str(x.device)):
      return PackedLinear.product(to_bfloat16(x).float(), to_bfloat16(weight), bias)
    y = product(x, weight.T)
    return materialize(y if bias is None else y + bias)


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """transformer.attention with its two products as above, where queries and keys are compared by their scaled dot product; else as it is."""
  if similarity is not scaled_dot_product:
    return transformer.attention(q, k, v, mask, similarity)
  if has_clang(str(q.device)):
    return tinyformer.kernels.attention.attention(
      to_bfloat16(q).float(), to_bfloat16(k).float(), to_bfloat16(v).float(), mask
    )
  return product(
    attention_weights(
      q, k, mask, lambda q, k: product(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    ),
    repeat_kv(v, q),
  )


MIXED = {"linear": MixedLinear, "attention_fn": attention}
