"""Mixed-precision training: products of bfloat16 matrices that are accumulated in float32.

Parameters, norms, softmax and loss stay in float32 (Micikevicius et al. 2018, sec. 3). Gradients
pass back through the same casts. The optimizer updates float32 parameters, so no small update is
lost. Unlike float16, bfloat16 needs no loss scaling (sec. 3.2), because it has the exponent range
of float32 (Kalamkar et al. 2019).
"""

import math
from collections.abc import Callable
from dataclasses import replace

from tinygrad import Tensor, dtypes

import tinyformer.kernels.attention
from layers.attention import repeat_kv
from tinyformer.kernels import fused
from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.fused import materialize
from tinyformer.kernels.linear import PackedLinear
from tinyformer.kernels.parts import CPU_KERNELS, PackedEmbedding
from tinyformer.kernels.tensor_cores import tensor_cores_support
from transformer import attention_weights, scaled_dot_product


def to_bfloat16(x: Tensor) -> Tensor:
  """Return x in bfloat16, materialized."""
  return x.cast(dtypes.bfloat16).contiguous()


def matmul(a: Tensor, b: Tensor) -> Tensor:
  """Return the product of a (..., M, K) and b (..., K, N), rounded to bfloat16, in float32.

  The result has shape (..., M, N). Without tensor cores for these sizes, tinygrad would also round
  the product of each pair of elements to bfloat16. Then the rounded inputs are multiplied in
  float32.
  """
  a = to_bfloat16(a)
  b = to_bfloat16(b)
  # tinygrad merges the rows of all matrices in a if they are multiplied by one matrix.
  M = math.prod(a.shape[:-1]) if b.ndim == 2 else a.shape[-2]
  if tensor_cores_support(str(a.device), dtypes.bfloat16, M, *b.shape[-2:]):
    return a.dot(b, dtype=dtypes.float32)
  return a.float().dot(b.float())


class MixedLinear(PackedLinear):
  """A transformer.Linear with a bfloat16 product.

  On a CPU, which has no bfloat16 product, the inputs are rounded to bfloat16 and multiplied in
  float32.
  """

  @staticmethod
  def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias (..., N) in float32.

    x (..., K), weight (N, K) and bias (N) are float32.
    """
    if has_clang(str(x.device)):
      return PackedLinear.product(to_bfloat16(x).float(), to_bfloat16(weight), bias)
    y = matmul(x, weight.T)
    return materialize(y if bias is None else y + bias)


def bfloat16_scores(q: Tensor, k: Tensor) -> Tensor:
  """Return scaled_dot_product(q, k) (..., T, S) with a bfloat16 product."""
  return matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """Return grouped attention with bfloat16 products and a float32 softmax.

  q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K), all float32. If `similarity` is not
  scaled_dot_product, the call is passed on to fused.attention.
  """
  if similarity is not scaled_dot_product:
    return fused.attention(q, k, v, mask, similarity)
  if has_clang(str(q.device)):
    q, k, v = (to_bfloat16(x).float() for x in (q, k, v))
    return tinyformer.kernels.attention.attention(q, k, v, mask)
  weights = attention_weights(q, repeat_kv(k, q), mask, bfloat16_scores)
  return matmul(weights, repeat_kv(v, q))


class MixedEmbedding(PackedEmbedding):
  """A PackedEmbedding whose product with vectors is rounded to bfloat16."""

  def as_linear(self, x: Tensor) -> Tensor:
    """Return the dot product with each token's vector: (..., D) -> (..., V)."""
    return MixedLinear.product(x, self.weight)


MIXED = replace(
  CPU_KERNELS,
  linear=MixedLinear,
  linear_fn=MixedLinear.product,
  embedding=MixedEmbedding,
  attention=attention,
)
