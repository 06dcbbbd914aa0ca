"""The C kernels that replace parts of a model on the CPU: pass CPU_KERNELS to a constructor."""

from typing import Any

from tinyformer.kernels.attention import attention
from tinyformer.kernels.layer_norm import LayerNorm
from tinyformer.kernels.linear import PackedLinear

CPU_KERNELS: dict[str, Any] = {
  "linear": PackedLinear,
  "attention_fn": attention,
  "layer_norm": LayerNorm,
}
