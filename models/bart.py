"""BART is the 2017 Transformer with learned positions, GELU and a norm after the embeddings.

Source: Lewis et al. 2020, sec. 2.1.
"""

import math
from collections.abc import Callable

from tinygrad import Tensor, nn

from models.encoder_decoder import EncoderDecoder, Stack
from models.key_map import KeyMap
from tinyformer.checkpoints.config import Config, loader
from tinyformer.kernels.linear import to_float32
from transformer import Block, FeedForward, Linear, MultiHeadAttention, Size, attention

KEY_MAP = KeyMap(
  rules={
    r"tokens": "model.shared",
    r"head_bias": "final_logits_bias",
    r"(en|de)coder\.positions": r"model.\1coder.embed_positions",
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
  optional={"final_logits_bias": "zero if the file was saved from a model without a head"},
)


class LearnedPositions:
  """A learned vector for each of `context` positions, as a part of Stack.

  Position 0 is row 2 of the table: fairseq numbers positions from its padding id, 1, plus 1.
  """

  def __init__(self, context: int, dim: int):
    self.weight = Tensor.normal(context + 2, dim, std=0.02)
    self.context = context

  def __call__(self, start: Size, T: Size) -> Tensor:
    """Return the vectors of T positions from `start`: (T, D).

    Raises ValueError if they exceed the context.
    """
    if isinstance(start, int) and start + T > self.context:
      raise ValueError(
        f"{start + T} tokens are more than the context of {self.context}: shorten the text"
      )
    return to_float32(self.weight[start + 2 : start + T + 2])


class Bart(EncoderDecoder):
  """Compute the logits of the next target token from a source and the target so far.

  heads, ff_dim, num_layers: of the encoder and the decoder.
  positions: called with (context, dim), returns the `positions` of a Stack.
  embed_norm: called with (dim), returns the norm of the embeddings; None if there is no such norm.
  scale: factor for the token embeddings.
  """

  def __init__(  # noqa: PLR0913
    self,
    vocab_size: int,
    context: int,
    dim: int,
    heads: tuple[int, int],
    ff_dim: tuple[int, int],
    num_layers: tuple[int, int],
    activation: Callable,
    positions: Callable,
    embed_norm: Callable | None,
    scale: float = 1.0,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
    layer_norm: Callable = nn.LayerNorm,
  ):
    def attn(side: int) -> MultiHeadAttention:
      return MultiHeadAttention(dim, heads[side], linear, attention_fn=attention_fn)

    # side: 0 for the encoder, 1 for the decoder
    def stack(side: int) -> Stack:
      blocks = [
        Block(
          attn=attn(side),
          ff=FeedForward(dim, ff_dim[side], activation, linear),
          norm=lambda: layer_norm(dim),
          cross=attn(side) if side == 1 else None,
        )
        for _ in range(num_layers[side])
      ]
      return Stack(blocks, positions(context, dim), embed_norm and embed_norm(dim))

    super().__init__(vocab_size, context, dim, stack(0), stack(1), scale)
    self.product = linear.product
    self.head_bias = Tensor.zeros(1, vocab_size).contiguous()

  def head(self, x: Tensor) -> Tensor:
    """Return the dot products with all token embeddings, plus a bias: (..., D) -> (..., V)."""
    return self.product(x, self.tokens.weight) + self.head_bias


def from_config(
  config: Config,
  linear: type[Linear] = Linear,
  attention_fn: Callable = attention,
  layer_norm: Callable = nn.LayerNorm,
  positions: Callable = LearnedPositions,
  embed_norm: bool = True,
) -> Bart:
  """Return an untrained model with the sizes of a config.json.

  positions: as in Bart. embed_norm: whether the embeddings have a norm.
  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  config.only(tie_word_embeddings=True, share_encoder_decoder_embeddings=True)

  def sizes(name: str) -> tuple[int, int]:
    return config.size(f"encoder_{name}"), config.size(f"decoder_{name}")

  dim = config.size("d_model")
  return Bart(
    vocab_size=config.size("vocab_size"),
    context=config.size("max_position_embeddings", 1024),
    dim=dim,
    heads=sizes("attention_heads"),
    ff_dim=sizes("ffn_dim"),
    num_layers=sizes("layers"),
    activation=config.activation("activation_function", "gelu"),
    positions=positions,
    embed_norm=layer_norm if embed_norm else None,
    scale=math.sqrt(dim) if config.get("scale_embedding") else 1.0,
    linear=linear,
    attention_fn=attention_fn,
    layer_norm=layer_norm,
  )


load = loader(from_config, KEY_MAP)
