"""T5 is the 2017 Transformer with RMS pre-norm, relative positions and unscaled scores.

Source: Raffel et al. 2020, sec. 2.1. Each head adds a learned position bias to its scores, one per
bucket of distances. All blocks of a stack share these. Linear layers have no bias. T5 1.1, Flan-T5
and mT5 have gated feed-forward networks, and a head that is not scaled and usually not tied to the
token embeddings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tinygrad import Tensor

from layers.attention import CachedAttention
from layers.feedforward import GatedFeedForward
from layers.norms import pre_norm
from layers.parts import PLAIN, Parts
from layers.positions import RelativeBias
from models.encoder_decoder import EncoderDecoder, Stack
from models.hf_config import ACTIVATION_NAMES, HFConfig
from models.key_map import KeyMap
from transformer import Block, FeedForward, dot_product


@dataclass(frozen=True)
class T5Config:
  """The sizes and settings of a T5.

  context: capacity of the cache for a target. Relative positions do not limit a source.
  gated: whether the feed-forward networks are gated.
  buckets, max_distance: as in layers.positions.bucket.
  tied: whether the head shares the token embeddings.
  scaled: whether the input of a tied head is scaled by 1 / sqrt(D).
  """

  vocab_size: int
  dim: int
  heads: int
  head_dim: int
  ff_dim: int
  encoder_layers: int
  decoder_layers: int
  activation: str = "relu"
  gated: bool = False
  context: int = 512
  buckets: int = 32
  max_distance: int = 128
  eps: float = 1e-6
  tied: bool = True
  scaled: bool = True


class T5(EncoderDecoder):
  """Compute the logits of the next target token from a source and the target so far."""

  def __init__(self, config: T5Config, parts: Parts = PLAIN):
    c = config
    linear = partial(parts.linear, bias=False)
    unscaled = partial(parts.attention, similarity=dot_product)
    feed_forward = GatedFeedForward if c.gated else FeedForward

    def norm() -> Callable:
      return parts.rms_norm(c.dim, c.eps)

    def attn() -> CachedAttention:
      return CachedAttention(c.dim, c.heads, linear, unscaled, head_dim=c.head_dim)

    def block(is_decoder: bool) -> Block:
      ff = feed_forward(c.dim, c.ff_dim, parts.activations[c.activation], linear)
      return Block(attn(), ff, norm, pre_norm, cross=attn() if is_decoder else None)

    def stack(num_layers: int, is_decoder: bool) -> Stack:
      blocks = [block(is_decoder) for _ in range(num_layers)]
      bias = RelativeBias(c.heads, not is_decoder, c.buckets, c.max_distance)
      return Stack(blocks, bias=bias, norm=norm())

    encoder = stack(c.encoder_layers, is_decoder=False)
    decoder = stack(c.decoder_layers, is_decoder=True)
    super().__init__(config, parts, encoder, decoder)
    tied_head = self.scaled_head if c.scaled else self.tokens.as_linear
    self.head = tied_head if c.tied else linear(c.dim, c.vocab_size)

  def scaled_head(self, x: Tensor) -> Tensor:
    """Return the scaled dot products with all token embeddings: (..., D) -> (..., V)."""
    return self.tokens.as_linear(x * self.config.dim**-0.5)


# The values of feed_forward_proj, and our names of their activations. T5 1.1's GELU, "gated-gelu",
# is the tanh approximation.
GATED = {f"gated-{name}": activation for name, activation in ACTIVATION_NAMES.items()}
FEED_FORWARDS = ACTIVATION_NAMES | GATED | {"gated-gelu": "gelu_tanh"}


def from_hf(hf: HFConfig) -> T5Config:
  """Translate a config.json of T5 or mT5. with_tensors completes the result.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  num_layers = hf.size("num_layers")
  is_mt5 = hf.text("model_type", "t5") == "mt5"
  # Older versions of transformers write tie_word_embeddings: false if the head is not scaled.
  # Version 5 writes true for every T5, and scale_decoder_outputs.
  scaled_by_default = hf.flag("tie_word_embeddings", True) and not is_mt5
  scaled = hf.flag("scale_decoder_outputs", scaled_by_default)
  feed_forward = hf.choice("feed_forward_proj", FEED_FORWARDS, "gated-gelu" if is_mt5 else "relu")
  buckets = hf.integer("relative_attention_num_buckets", 32, minimum=4)
  return T5Config(
    vocab_size=hf.size("vocab_size"),
    dim=hf.size("d_model"),
    heads=hf.size("num_heads"),
    head_dim=hf.size("d_kv"),
    ff_dim=hf.size("d_ff"),
    encoder_layers=num_layers,
    decoder_layers=hf.size("num_decoder_layers", num_layers),
    activation=FEED_FORWARDS[feed_forward],
    gated=feed_forward.startswith("gated-"),
    context=hf.size("n_positions", 512),
    buckets=buckets,
    max_distance=hf.integer("relative_attention_max_distance", 128, minimum=buckets // 2 + 1),
    eps=hf.epsilon("layer_norm_epsilon", 1e-6),
    tied=scaled,
    scaled=scaled,
  )


def with_tensors(config: T5Config, tensors: Mapping[str, Any]) -> T5Config:
  """Return the config for a checkpoint with these tensors.

  A head that is not scaled has a matrix of its own, unless the checkpoint lacks it: config.json has
  no setting for this. transformers decides likewise.
  Raises ValueError if config.json ties a scaled head to the token embeddings, but the checkpoint
  has another matrix for it.
  """
  head = tensors.get("lm_head.weight")
  if not config.scaled:
    return replace(config, tied=head is None)
  if head is not None and "shared.weight" in tensors:
    tokens = tensors["shared.weight"]
    if head.shape != tokens.shape or (head.numpy() != tokens.numpy()).any():
      raise ValueError(
        "lm_head.weight differs from shared.weight, to which config.json ties the head: write "
        '"tie_word_embeddings": false if the head has its own matrix and its input is not scaled'
      )
  return config


# In the checkpoint, `layer.0`, `layer.1` and `layer.2` are the sublayers of a block: an encoder
# block has self-attention and feed-forward, a decoder block has cross-attention between them.
# Block 0 of each stack holds the bias table that all blocks of the stack share.
ATTENTION = r"\1coder.block.\2.layer.0.SelfAttention"
CROSS_ATTENTION = r"decoder.block.\1.layer.1.EncDecAttention"
ENCODER_FF = r"encoder.block.\1.layer.1.DenseReluDense"
DECODER_FF = r"decoder.block.\1.layer.2.DenseReluDense"
KEY_MAP = KeyMap(
  rules={
    r"tokens": "shared",
    r"head": "lm_head",
    r"(en|de)coder\.norm": r"\1coder.final_layer_norm",
    r"(en|de)coder\.bias": r"\1coder.block.0.layer.0.SelfAttention.relative_attention_bias",
    r"(en|de)coder\.blocks\.(\d+)\.attn_norm": r"\1coder.block.\2.layer.0.layer_norm",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.([qkv])": ATTENTION + r".\3",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.out": ATTENTION + ".o",
    r"decoder\.blocks\.(\d+)\.cross_norm": r"decoder.block.\1.layer.1.layer_norm",
    r"decoder\.blocks\.(\d+)\.cross\.([qkv])": CROSS_ATTENTION + r".\2",
    r"decoder\.blocks\.(\d+)\.cross\.out": CROSS_ATTENTION + ".o",
    r"encoder\.blocks\.(\d+)\.ff_norm": r"encoder.block.\1.layer.1.layer_norm",
    r"encoder\.blocks\.(\d+)\.ff\.gate": ENCODER_FF + ".wi_0",
    r"encoder\.blocks\.(\d+)\.ff\.up": ENCODER_FF + ".wi_1",
    r"encoder\.blocks\.(\d+)\.ff\.down": ENCODER_FF + ".wo",
    r"decoder\.blocks\.(\d+)\.ff_norm": r"decoder.block.\1.layer.2.layer_norm",
    r"decoder\.blocks\.(\d+)\.ff\.gate": DECODER_FF + ".wi_0",
    r"decoder\.blocks\.(\d+)\.ff\.up": DECODER_FF + ".wi_1",
    r"decoder\.blocks\.(\d+)\.ff\.down": DECODER_FF + ".wo",
  },
  # The first T5 has no gates, and calls the remaining matrix `wi`.
  legacy={r"DenseReluDense\.wi\.": "DenseReluDense.wi_1."},
  ignored={
    r"(en|de)coder\.embed_tokens\.weight": "a copy of the token embeddings",
    r"lm_head\.weight": "a copy of the token embeddings if the head is tied to them",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
      "unused: source and target positions have no distance"
    ),
  },
)
