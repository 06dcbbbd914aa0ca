"""BART is the 2017 Transformer with learned positions, GELU and a norm after the embeddings.

Source: Lewis et al. 2020, sec. 2.1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tinygrad import Tensor

from layers.attention import CachedAttention
from layers.parts import PLAIN, Parts
from layers.positions import check_context
from models.encoder_decoder import EncoderDecoder, Stack
from models.hf_config import HFConfig
from models.key_map import KeyMap
from transformer import Block, FeedForward


@dataclass(frozen=True)
class BartConfig:
  """The sizes and settings of a BART or a Marian.

  scale_embedding: whether the token embeddings are multiplied by sqrt(D).
  """

  vocab_size: int
  context: int
  dim: int
  encoder_heads: int
  decoder_heads: int
  encoder_ff_dim: int
  decoder_ff_dim: int
  encoder_layers: int
  decoder_layers: int
  activation: str = "gelu"
  scale_embedding: bool = False


class LearnedPositions:
  """A learned vector for each of `context` positions.

  Position p is row p + 2 of the table, because fairseq numbers positions from padding_id + 1 = 2.
  """

  def __init__(self, context: int, dim: int, parts: Parts):
    self.context = context
    self.table = parts.embedding(context + 2, dim)
    if parts.initialize:
      self.table.weight = Tensor.normal(context + 2, dim, std=0.02)

  def __call__(self, position_ids: Tensor) -> Tensor:
    """Return the vectors of positions (T): (T, D). Raises ValueError for more than `context`."""
    check_context(position_ids.shape[0], self.context)
    return self.table(position_ids + 2)


class BartModel(EncoderDecoder):
  """A BART without a head."""

  def __init__(self, config: BartConfig, parts: Parts = PLAIN):
    c = config
    encoder = self.stack(c.encoder_layers, c.encoder_heads, c.encoder_ff_dim, config, parts)
    decoder = self.stack(
      c.decoder_layers, c.decoder_heads, c.decoder_ff_dim, config, parts, is_decoder=True
    )
    scale = math.sqrt(c.dim) if c.scale_embedding else 1.0
    super().__init__(config, parts, encoder, decoder, scale)

  @classmethod
  def stack(
    cls,
    num_layers: int,
    heads: int,
    ff_dim: int,
    config: BartConfig,
    parts: Parts,
    is_decoder: bool = False,
  ) -> Stack:
    """Return the encoder or the decoder."""
    dim = config.dim

    def attn() -> CachedAttention:
      return CachedAttention(dim, heads, parts.linear, parts.attention)

    blocks = [
      Block(
        attn=attn(),
        ff=FeedForward(dim, ff_dim, parts.activations[config.activation], parts.linear),
        norm=lambda: parts.layer_norm(dim),
        cross=attn() if is_decoder else None,
      )
      for _ in range(num_layers)
    ]
    return Stack(blocks, cls.positions(config, parts), cls.embed_norm(config, parts))

  @staticmethod
  def positions(config: BartConfig, parts: Parts) -> Callable:
    """Return the positions of a stack: position ids (T) -> (T, D)."""
    return LearnedPositions(config.context, config.dim, parts)

  @staticmethod
  def embed_norm(config: BartConfig, parts: Parts) -> Callable:
    """Return the norm of a stack's embeddings."""
    return parts.layer_norm(config.dim)


class Bart(BartModel):
  """Compute the logits of the next target token from a source and the target so far."""

  def __init__(self, config: BartConfig, parts: Parts = PLAIN):
    super().__init__(config, parts)
    self.head_bias = Tensor.zeros(1, config.vocab_size)

  def head(self, x: Tensor) -> Tensor:
    """Return the dot products with all token embeddings, plus a bias: (..., D) -> (..., V)."""
    return self.tokens.as_linear(x) + self.head_bias


def from_hf(hf: HFConfig) -> BartConfig:
  """Translate a config.json.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  hf.only(tie_word_embeddings=True, share_encoder_decoder_embeddings=True)
  dim = hf.size("d_model")
  return BartConfig(
    vocab_size=hf.size("vocab_size"),
    context=hf.size("max_position_embeddings", 1024),
    dim=dim,
    encoder_heads=hf.size("encoder_attention_heads", divides=dim),
    decoder_heads=hf.size("decoder_attention_heads", divides=dim),
    encoder_ff_dim=hf.size("encoder_ffn_dim"),
    decoder_ff_dim=hf.size("decoder_ffn_dim"),
    encoder_layers=hf.size("encoder_layers"),
    decoder_layers=hf.size("decoder_layers"),
    activation=hf.activation("activation_function", "gelu"),
    scale_embedding=hf.flag("scale_embedding", False),
  )


# Encoder and decoder have the same names; `\1` is "en" or "de".
KEY_MAP = KeyMap(
  rules={
    r"tokens": "model.shared",
    r"head_bias": "final_logits_bias",
    r"(en|de)coder\.positions\.table": r"model.\1coder.embed_positions",
    r"(en|de)coder\.embed_norm": r"model.\1coder.layernorm_embedding",
    r"(en|de)coder\.blocks\.(\d+)\.attn_norm": r"model.\1coder.layers.\2.self_attn_layer_norm",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.([qkv])": r"model.\1coder.layers.\2.self_attn.\3_proj",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.out": r"model.\1coder.layers.\2.self_attn.out_proj",
    r"decoder\.blocks\.(\d+)\.cross_norm": r"model.decoder.layers.\1.encoder_attn_layer_norm",
    r"decoder\.blocks\.(\d+)\.cross\.([qkv])": r"model.decoder.layers.\1.encoder_attn.\2_proj",
    r"decoder\.blocks\.(\d+)\.cross\.out": r"model.decoder.layers.\1.encoder_attn.out_proj",
    r"(en|de)coder\.blocks\.(\d+)\.ff_norm": r"model.\1coder.layers.\2.final_layer_norm",
    r"(en|de)coder\.blocks\.(\d+)\.ff\.up": r"model.\1coder.layers.\2.fc1",
    r"(en|de)coder\.blocks\.(\d+)\.ff\.down": r"model.\1coder.layers.\2.fc2",
  },
  # Facebook saved its own files from a model without a head, which has no such prefix.
  legacy={r"^(?!model\.|lm_head|final_logits_bias)": "model."},
  ignored={
    r"model\.(en|de)coder\.embed_tokens\.weight": "a copy of the token embeddings",
    r"lm_head\.weight": "a copy of the token embeddings, to which the head is tied",
    r"model\.(en|de)coder\.version": "the version of fairseq's file format",
  },
  tied={"lm_head.weight": ("model.shared.weight",)},
  optional={"final_logits_bias": "zero if the file was saved from a model without a head"},
)
