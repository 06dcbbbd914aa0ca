"""T5 is the 2017 Transformer with RMS pre-norm, relative positions, unscaled scores and no biases.

Source: Raffel et al. 2020, sec. 2.1. Each head learns one bias of its scores per bucket of
distances. All blocks of a stack share these biases. T5 1.1, Flan-T5 and mT5 have gated feed-forward
networks and a head that is not tied to the token embeddings.
"""

import functools
from collections.abc import Callable

from tinygrad import Tensor, nn

from layers.feedforward import GatedFeedForward
from layers.positions import RelativeBias
from models.encoder_decoder import EncoderDecoder, Stack
from models.key_map import KeyMap
from tinyformer.checkpoints.config import Config, loader
from tinyformer.kernels.gelu import gelu
from transformer import (
  Block,
  FeedForward,
  Linear,
  MultiHeadAttention,
  attention,
  dot_product,
  pre_norm,
)

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


class T5(EncoderDecoder):
  """Compute the logits of the next target token from a source and the target so far.

  num_layers: of the encoder and the decoder.
  ff: called as ff(dim, linear=...), returns the feed-forward network of a block.
  context: capacity of the cache for a target. Relative positions do not limit a source.
  buckets, max_distance: as in layers.positions.bucket.
  tied: whether the head shares the token embeddings; its input is then scaled by 1 / sqrt(D).
  """

  def __init__(  # noqa: PLR0913
    self,
    vocab_size: int,
    dim: int,
    heads: int,
    head_dim: int,
    num_layers: tuple[int, int],
    ff: Callable,
    context: int = 512,
    buckets: int = 32,
    max_distance: int = 128,
    eps: float = 1e-6,
    tied: bool = True,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
  ):
    projection = functools.partial(linear, bias=False)
    norm = functools.partial(nn.RMSNorm, dim, eps)

    def attn() -> MultiHeadAttention:
      return MultiHeadAttention(
        dim,
        heads,
        linear=projection,
        similarity=dot_product,
        attention_fn=attention_fn,
        head_dim=head_dim,
      )

    def bias(bidirectional: bool) -> RelativeBias:
      return RelativeBias(heads, bidirectional, buckets, max_distance)

    def tied_head(x: Tensor) -> Tensor:
      return linear.product(x * dim**-0.5, self.tokens.weight)

    encoder_layers, decoder_layers = num_layers
    encoder = [
      Block(attn(), ff(dim, linear=projection), norm, pre_norm) for _ in range(encoder_layers)
    ]
    decoder = [
      Block(attn(), ff(dim, linear=projection), norm, pre_norm, cross=attn())
      for _ in range(decoder_layers)
    ]
    super().__init__(
      vocab_size,
      context,
      dim,
      encoder=Stack(encoder, bias=bias(bidirectional=True), norm=norm()),
      decoder=Stack(decoder, bias=bias(bidirectional=False), norm=norm()),
    )
    self.head = tied_head if tied else projection(dim, vocab_size)


def from_config(
  config: Config, linear: type[Linear] = Linear, attention_fn: Callable = attention, **_
) -> T5:
  """Return an untrained model with the sizes of a config.json of T5 or mT5.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  num_layers = config.size("num_layers")
  # transformers 5 writes tie_word_embeddings: true for every T5, so scale_decoder_outputs decides.
  tied_by_default = config.get("tie_word_embeddings", True) and config.get("model_type") != "mt5"
  return T5(
    vocab_size=config.size("vocab_size"),
    dim=config.size("d_model"),
    heads=config.size("num_heads"),
    head_dim=config.size("d_kv"),
    num_layers=(num_layers, config.size("num_decoder_layers", num_layers)),
    ff=feed_forward(config),
    context=config.size("n_positions", 512),
    buckets=config.size("relative_attention_num_buckets", 32),
    max_distance=config.size("relative_attention_max_distance", 128),
    eps=config.get("layer_norm_epsilon", 1e-6),
    tied=config.get("scale_decoder_outputs", tied_by_default),
    linear=linear,
    attention_fn=attention_fn,
  )


def feed_forward(config: Config) -> Callable:
  """Return the feed-forward network of a config.json: a function of `dim` and `linear`."""
  setting = config.get("feed_forward_proj", "relu")
  name = setting.removeprefix("gated-")
  activation = Config({"feed_forward_proj": name}, config.source).activation(
    "feed_forward_proj", "relu"
  )
  if setting == "gated-gelu":
    # T5 1.1's GELU is the tanh approximation.
    activation = gelu
  network = GatedFeedForward if setting.startswith("gated-") else FeedForward
  return functools.partial(network, ff_dim=config.size("d_ff"), activation=activation)


load = loader(from_config, KEY_MAP)
