"""Parts that limit what tinygrad fuses, on any device.

tinygrad fuses an activation into the next matrix product, and then recomputes it for each output
feature. These parts materialize it instead: it is computed once and stored. They also read weights
in float16, bfloat16, int8 and int4.
"""

from collections.abc import Callable

from tinygrad import Tensor, UOp, dtypes, nn

import transformer
from layers.attention import repeat_kv
from layers.moe import MixtureOfExperts
from layers.positions import apply_rope_half
from tinyformer.kernels import decode_linear, decode_norm, tensor_cores
from tinyformer.kernels.quantization import (
  gather_rows,
  is_quantized,
  row_scales,
  to_float32,
)
from tinyformer.kernels.workgroup import contiguous_buffer
from transformer import attention_weights, scaled_dot_product

Size = int | UOp  # A dimension: an int, or a symbolic variable bound on each call of a step.


def materialize(x: Tensor) -> Tensor:
  """Return x, computed and stored once, in the forward and in the backward pass."""
  return x.contiguous_backward().contiguous()


def is_single_token(x: Tensor) -> bool:
  """Return whether x (B, 1, D) has one position, as when the engine decodes."""
  return x.ndim == 3 and isinstance(x.shape[1], int) and x.shape[1] == 1


def materialize_activation(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
  """Return activation(x), materialized for a single token.

  A gated feed-forward network multiplies it by another product, which would otherwise be computed
  in the same kernel. tinygrad parallelizes only one product per kernel.
  """
  y = activation(x)
  return y.contiguous() if is_single_token(x) else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
  """Return x W^T + b: (..., in), (out, in), (out) -> (..., out). W may have any dtype.

  The result for a single token is not materialized, so that what follows, such as an activation or
  a residual connection, is computed in the same kernel.
  """
  if is_single_token(x) and decode_linear.supports(x, weight) and bias is None:
    return decode_linear.product(x, weight)
  x = contiguous_buffer(x) if is_single_token(x) else materialize(x)
  if not is_single_token(x) and tensor_cores.supports(x, weight):
    y = tensor_cores.product(x, weight)
  elif weight.dtype == dtypes.int8:
    # The scale multiplies each sum, not each weight.
    y = x @ weight[..., :-4].float().T * row_scales(weight)
  else:
    y = x @ (to_float32(weight) if is_quantized(weight) else weight).T
  y = y if bias is None else y + bias
  return y if is_single_token(x) else materialize(y)


class FusedLinear(transformer.Linear):
  """A transformer.Linear whose input and output are materialized."""

  def __call__(self, x: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    return linear(x, self.weight, self.bias)


class FusedEmbedding(transformer.Embedding):
  """A transformer.Embedding whose results are materialized."""

  def __call__(self, ids: Tensor) -> Tensor:
    """ids (...) -> vectors (..., D) in float32."""
    is_float32 = self.weight.dtype == dtypes.float32
    x = super().__call__(ids) if is_float32 else gather_rows(self.weight, ids)
    return x if is_single_token(x) else materialize(x)

  def as_linear(self, x: Tensor) -> Tensor:
    """Return the dot product with each token's vector: (..., D) -> (..., V)."""
    return linear(x, self.weight)


class FusedLayerNorm(nn.LayerNorm):
  """An nn.LayerNorm whose output is materialized."""

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    if self.weight is None or not decode_norm.supports(x, self.weight):
      return materialize(super().__call__(x))

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
      return x.layernorm(eps=self.eps) * weight + bias

    return decode_norm.norm(x, self.weight, self.bias, self.eps, plain)


class FusedRMSNorm(nn.RMSNorm):
  """An nn.RMSNorm whose output is materialized."""

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    if self.weight is None or not decode_norm.supports(x, self.weight):
      return materialize(super().__call__(x))

    def plain(x: Tensor, weight: Tensor) -> Tensor:
      return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * weight

    return decode_norm.norm(x, self.weight, None, self.eps, plain)


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """Return layers.attention.grouped_attention, with materialized scores and weights."""

  def masked_scores(q: Tensor, k: Tensor) -> Tensor:
    scores = similarity(q, k)
    return materialize(scores if mask is None else scores + mask)

  weights = attention_weights(q, repeat_kv(k, q), similarity=masked_scores)
  return materialize(weights) @ repeat_kv(v, q)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """Return layers.positions.apply_rope_half, with cosines and sines that are computed once."""
  return apply_rope_half(x, cos.contiguous(), sin.contiguous())


class FusedMixtureOfExperts(MixtureOfExperts):
  """A layers.moe.MixtureOfExperts that reads only the selected experts if x is a single token."""

  linear = staticmethod(linear)

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    weights, indices = self.route(x)
    num_tokens = x.numel() // x.shape[-1]
    forward = self.forward_token if num_tokens == 1 else self.forward_dense
    return forward(x, weights, indices)

  def forward_token(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Run one token through the selected experts, reading only their weights."""
    y = x.reshape(1, -1)
    indices = indices.flatten()
    gate = self.activation(self.project(y, self.gate.weight, indices))
    y = (gate * self.project(y, self.up.weight, indices)).contiguous()
    outputs = self.project(y, self.down.weight, indices)
    return (outputs * weights.reshape(-1, 1)).sum(0).reshape(x.shape)

  def project(self, x: Tensor, stacked: Tensor, indices: Tensor) -> Tensor:
    """Multiply each row of x by the matrix of one of the selected experts.

    x (selected, in), or (1, in) if it is the same for all; stacked: the matrices (E * out, in);
    indices (selected) -> (selected, out).
    """
    matrices = stacked.reshape(self.experts, -1, stacked.shape[-1])
    return (x.unsqueeze(1) * gather_rows(matrices, indices)).sum(-1)

  def forward_dense(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Run all tokens through all experts; the weight of an expert that is not selected is 0."""
    selected = indices.unsqueeze(-1) == Tensor.arange(self.experts)
    dense_weights = selected.where(weights.unsqueeze(-1), 0).sum(-2)  # (..., E)

    def expert_rows(stacked: Tensor, e: int) -> Tensor:
      rows = stacked.shape[0] // self.experts
      return stacked[e * rows : (e + 1) * rows]

    def expert(e: int) -> Tensor:
      gate = self.linear(x, expert_rows(self.gate.weight, e))
      up = self.linear(x, expert_rows(self.up.weight, e))
      y = (self.activation(gate) * up).contiguous()
      return self.linear(y, expert_rows(self.down.weight, e))

    outputs = (expert(e) * dense_weights[..., e : e + 1] for e in range(self.experts))
    return sum(outputs, Tensor.zeros_like(x))
