"""Faster parts for models (layers/parts.py): FUSED for any device, CPU_KERNELS for the CPU."""

from dataclasses import replace
from functools import partial

from tinygrad import Device, Tensor

from layers.activations import ACTIVATIONS
from layers.parts import PLAIN, Parts
from tinyformer.kernels import decode_attention, fused
from tinyformer.kernels.attention import attention
from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.decode_block import decode_block
from tinyformer.kernels.device_top_k import top_k_selection
from tinyformer.kernels.exact_top_k import ExactTopKHead
from tinyformer.kernels.gelu import gelu
from tinyformer.kernels.layer_norm import LayerNorm
from tinyformer.kernels.linear import PackedLinear, expert_products, supports_experts

# Parts that limit what tinygrad fuses.
FUSED = replace(
  PLAIN,
  linear=fused.FusedLinear,
  linear_fn=fused.linear,
  embedding=fused.FusedEmbedding,
  attention=decode_attention.attention,
  layer_norm=fused.FusedLayerNorm,
  rms_norm=fused.FusedRMSNorm,
  moe=fused.FusedMixtureOfExperts,
  rope=fused.apply_rope,
  activations={
    name: partial(fused.materialize_activation, function) for name, function in ACTIVATIONS.items()
  },
  dtypes=("float32", "float16", "bfloat16", "int8", "int4"),
  top_k_selection=top_k_selection,
  decode_block=decode_block,
)


class PackedEmbedding(fused.FusedEmbedding):
  """A FusedEmbedding whose product with vectors is a C kernel, if they are on the CPU."""

  def as_linear(self, x: Tensor) -> Tensor:
    """Return the dot product with each token's vector: (..., D) -> (..., V)."""
    return PackedLinear.product(x, self.weight)


class PackedMixtureOfExperts(fused.FusedMixtureOfExperts):
  """A FusedMixtureOfExperts whose products are C kernels, if x is on the CPU."""

  linear = staticmethod(PackedLinear.product)

  def project(self, x: Tensor, stacked: Tensor, indices: Tensor) -> Tensor:
    """Multiply each row of x by the matrix of one of the selected experts; see the base class."""
    if supports_experts(x, stacked):
      return expert_products(x, stacked, indices, self.experts)
    return super().project(x, stacked, indices)


def top_k_head(weight: Tensor, count: int, batch: int, key: str | None) -> ExactTopKHead | None:
  """Return an ExactTopKHead for a batch of this size, or None if it would not save time."""
  return ExactTopKHead(weight, count, key) if ExactTopKHead.supports(weight, batch, count) else None


# Parts whose hot loops are C kernels on the CPU. On another device they are those of FUSED.
CPU_KERNELS = replace(
  FUSED,
  linear=PackedLinear,
  linear_fn=PackedLinear.product,
  embedding=PackedEmbedding,
  attention=attention,
  layer_norm=LayerNorm,
  moe=PackedMixtureOfExperts,
  activations={**ACTIVATIONS, "gelu_tanh": gelu},
  top_k_head=top_k_head,
  float16_cache=True,
)


def default_parts() -> Parts:
  """Return the fastest parts for the default device."""
  return CPU_KERNELS if has_clang(Device.DEFAULT) else FUSED
