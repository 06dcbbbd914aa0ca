"""T5 is the 2017 Transformer with RMS norms before the sublayers, no biases, unscaled scores, and distances in place of positions (Raffel et al. 2020, sec. 2.1).

Each head learns a bias of its scores for each bucket of distances, which all blocks share. 1.1, Flan-T5 and mT5 have gated feed-forwards and a head of their own.
"""

import functools
from collections.abc import Callable

from tinygrad import nn

from layers.feedforward import GatedFeedForward
from layers.positions import RelativeBias
from models.encoder_decoder import EncoderDecoder, Stack
from tinyformer.checkpoints import safetensors
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

KEY_MAP = safetensors.KeyMap(
  rules={
    r"tokens": "shared",
    r"head": "lm_head",
    r"(en|de)coder\.norm": r"\1coder.final_layer_norm",
    r"(en|de)coder\.bias": r"\1coder.block.0.layer.0.SelfAttention.relative_attention_bias",
    r"(en|de)coder\.blocks\.(\d+)\.attn_norm": r"\1coder.block.\2.layer.0.layer_norm",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.out": r"\1coder.block.\2.layer.0.SelfAttention.o",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.([qkv])": r"\1coder.block.\2.layer.0.SelfAttention.\3",
    r"decoder\.blocks\.(\d+)\.cross_norm": r"decoder.block.\1.layer.1.layer_norm",
    r"decoder\.blocks\.(\d+)\.cross\.out": r"decoder.block.\1.layer.1.EncDecAttention.o",
    r"decoder\.blocks\.(\d+)\.cross\.([qkv])": r"decoder.block.\1.layer.1.EncDecAttention.\2",
    r"encoder\.blocks\.(\d+)\.ff_norm": r"encoder.block.\1.layer.1.layer_norm",
    r"decoder\.blocks\.(\d+)\.ff_norm": r"decoder.block.\1.layer.2.layer_norm",
    **{
      rf"{side}\.blocks\.(\d+)\.ff\.{name}": rf"{side}.block.\1.layer.{n}.DenseReluDense.{theirs}"
      for side, n in (("encoder", 1), ("decoder", 2))
      for name, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo"))
    },
  },
  legacy={
    r"DenseReluDense\.wi\.": "DenseReluDense.wi_1."
  },  # of the first T5, whose networks have no gate
  ignored={
    r"(en|de)coder\.embed_tokens\.weight": "the token embeddings again: source and target share them",
    r"lm_head\.weight": "the token embeddings again, where the head is tied to them",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "never read: places of source and target are no distance apart",
  },
)


class T5(EncoderDecoder):
  """A source's and a target's token ids to logits. Distances have no end, so a source has none; `context`, of a target, is for the cache to have one.

  layers: of encoder and decoder.  ff: makes a feed-forward network of (D, linear=).  buckets, most: as in parts.positions.bucket.
  tied: the head is the embeddings, and what it reads is scaled by 1 / sqrt(D).
  """

  def __init__(
    self,
    vocab_size: int,
    dim: int,
    heads: int,
    head_dim: int,
    num_layers: tuple[int, int],
    ff: Callable,
    context: int = 512,
    buckets: int = 32,
    most: int = 128,
    eps: float = 1e-6,
    tied: bool = True,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
  ):
    plain, norm = functools.partial(linear, bias=False), functools.partial(nn.RMSNorm, dim, eps)

    def attn() -> MultiHeadAttention:
      return MultiHeadAttention(dim, heads, plain, dot_product, attention_fn, head_dim=head_dim)

    encoder = [Block(attn(), ff(dim, linear=plain), norm, pre_norm) for _ in range(num_layers[0])]
    decoder = [
      Block(attn(), ff(dim, linear=plain), norm, pre_norm, cross=attn())
      for _ in range(num_layers[1])
    ]
    super().__init__(
      vocab_size,
      context,
      dim,
      Stack(encoder, bias=RelativeBias(heads, True, buckets, most), norm=norm()),
      Stack(decoder, bias=RelativeBias(heads, False, buckets, most), norm=norm()),
    )
    self.head = (
      (lambda x: linear.product(x * dim**-0.5, self.tokens.weight))
      if tied
      else plain(dim, vocab_size)
    )


def from_config(
  config: Config, linear: type[Linear] = Linear, attention_fn: Callable = attention, **_
) -> T5:
  """An untrained model of the sizes that a config.json of T5 or mT5 states. Raises ValueError for what is not built here."""
  proj, num_layers = config.get("feed_forward_proj", "relu"), config.size("num_layers")
  activation = Config({"feed_forward_proj": proj.removeprefix("gated-")}, config.source).activation(
    "feed_forward_proj", "relu"
  )
  gated = functools.partial(
    GatedFeedForward, activation=gelu if proj == "gated-gelu" else activation
  )  # 1.1's gelu is the tanh form
  ff = functools.partial(
    gated if proj.startswith("gated-") else functools.partial(FeedForward, activation=activation),
    ff_dim=config.size("d_ff"),
  )
  tied = config.get(
    "scale_decoder_outputs",
    config.get("tie_word_embeddings", True) and config.get("model_type") != "mt5",
  )  # transformers 5 always writes the second as true
  return T5(
    config.size("vocab_size"),
    config.size("d_model"),
    config.size("num_heads"),
    config.size("d_kv"),
    (num_layers, config.size("num_decoder_layers", num_layers)),
    ff,
    config.size("n_positions", 512),
    config.size("relative_attention_num_buckets", 32),
    config.size("relative_attention_max_distance", 128),
    config.get("layer_norm_epsilon", 1e-6),
    tied,
    linear,
    attention_fn,
  )


load = loader(from_config, KEY_MAP)
