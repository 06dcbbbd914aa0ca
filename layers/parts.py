"""The parts of a model that can be exchanged for faster ones that compute the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinygrad import Tensor, nn

from layers.activations import ACTIVATIONS
from layers.attention import grouped_attention
from layers.moe import MixtureOfExperts
from layers.positions import apply_rope_half
from transformer import Embedding, Linear


def plain_linear(x: Tensor, weight: Tensor) -> Tensor:
  """Return x W^T: (..., in), (out, in) -> (..., out)."""
  return x @ weight.T


@dataclass(frozen=True)
class Parts:
  """What a model is built from. The defaults are the plain definitions.

  linear, embedding, layer_norm, rms_norm, moe: classes, or functions that make an instance.
  linear_fn: (x (..., in), weight (out, in)) -> x W^T (..., out).
  attention, rope: functions with the arguments and results of the defaults.
  activations: the name of an activation in a config -> a function.
  initialize: whether models draw initial values; a loader, which overwrites them, turns this off.
  dtypes: the dtypes of weights that these parts can read.
  top_k_head: (weight (V, D), k, batch size, key) -> a head that returns at least the k largest
    logits and may return -inf for all others, or None if it is not faster.
  top_k_selection: (batch size, V, k) -> an object that selects the k largest logits where they are
    computed (kernels/device_top_k.py), or None if that is not faster.
  decode_block: a block -> a block with the same result, for a single token.
  float16_cache: whether attention reads keys and values in float16 without a conversion.
  """

  linear: Any = Linear
  linear_fn: Callable = plain_linear
  embedding: Any = Embedding
  attention: Callable = grouped_attention
  layer_norm: Callable = nn.LayerNorm
  rms_norm: Callable = nn.RMSNorm
  moe: Callable = MixtureOfExperts
  rope: Callable = apply_rope_half
  activations: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=lambda: ACTIVATIONS)
  initialize: bool = True
  dtypes: tuple[str, ...] = ("float32",)
  top_k_head: Callable | None = None
  top_k_selection: Callable | None = None
  decode_block: Callable | None = None
  float16_cache: bool = False


PLAIN = Parts()
