"""BART is the 2017 Transformer with learned positions, a norm of the embeddings and GELU (Lewis et al. 2020, sec. 2.1)."""

import math
from collections.abc import Callable

from tinygrad import Tensor, nn

from models.encoder_decoder import EncoderDecoder, Stack
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import Config, loader
from tinyformer.kernels.linear import to_float32
from transformer import Block, FeedForward, Linear, MultiHeadAttention, Size, attention

KEY_MAP = safetensors.KeyMap(
  rules={
    r"tokens": "model.shared",
    r"head_bias": "final_logits_bias",
    r"(en|de)coder\.positions": r"model.\1coder.embed_positions",
    r"(en|de)coder\.embed_norm": r"model.\1coder.layernorm_embedding",
    r"(en|de)coder\.blocks\.(\d+)\.attn_norm": r"model.\1coder.layers.\2.self_attn_layer_norm",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.out": r"model.\1coder.layers.\2.self_attn.out_proj",
    r"(en|de)coder\.blocks\.(\d+)\.attn\.([qkv])": r"model.\1coder.layers.\2.self_attn.\3_proj",
    r"decoder\.blocks\.(\d+)\.cross_norm": r"model.decoder.layers.\1.encoder_attn_layer_norm",
    r"decoder\.blocks\.(\d+)\.cross\.out": r"model.decoder.layers.\1.encoder_attn.out_proj",
    r"decoder\.blocks\.(\d+)\.cross\.([qkv])": r"model.decoder.layers.\1.encoder_attn.\2_proj",
    r"(en|de)coder\.blocks\.(\d+)\.ff_norm": r"model.\1coder.layers.\2.final_layer_norm",
    r"(en|de)coder\.blocks\.(\d+)\.ff\.up": r"model.\1coder.layers.\2.fc1",
    r"(en|de)coder\.blocks\.(\d+)\.ff\.down": r"model.\1coder.layers.\2.fc2",
  },
  legacy={
    r"^(?!model\.|lm_head|final_logits_bias)": "model."
  },  # Facebook's own files were saved without a head, and so without the prefix
  ignored={
    r"model\.(en|de)coder\.embed_tokens\.weight": "the token embeddings again: source and target share them",
    r"lm_head\.weight": "the token embeddings again: the head is tied to them",
    r"model\.(en|de)coder\.version": "of fairseq's file format",
  },
  optional={"final_logits_bias": "zeros, where the file was saved without a head"},
)


class LearnedPositions:
  """A vector for each of `context` places. The table's first two rows belong to none: fairseq counted from its padding, token 1."""

  def __init__(self, context: int, dim: int):
    self.weight, self.context = Tensor.normal(context + 2, dim, std=0.02), context

  def __call__(self, start: Size, T: Size) -> Tensor:
    """(T, D), from place `start` on. Raises ValueError beyond the last place."""
    if isinstance(start, int) and start + T > self.context:
      raise ValueError(f"{start + T} tokens are more than the {self.context} places")
    return to_float32(self.weight[start + 2 : start + T + 2])


class Bart(EncoderDecoder):
  """A source's and a target's token ids to logits.

  heads, hidden, layers: of encoder and decoder.  positions: (context, D) -> what Stack takes.  embed_norm: D -> the norm of the embeddings, or None.
  """

  def __init__(
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
    def attn(n: int) -> MultiHeadAttention:
      return MultiHeadAttention(dim, heads[n], linear, attention_fn=attention_fn)

    def stack(n: int) -> Stack:
      blocks = [
        Block(
          attn(n),
          FeedForward(dim, ff_dim[n], activation, linear),
          lambda: layer_norm(dim),
          cross=attn(n) if n else None,
        )
        for _ in range(num_layers[n])
      ]
      return Stack(blocks, positions(context, dim), embed_norm and embed_norm(dim))

    super().__init__(vocab_size, context, dim, stack(0), stack(1), scale)
    self.product, self.head_bias = linear.product, Tensor.zeros(1, vocab_size).contiguous()

  def head(self, x: Tensor) -> Tensor:
    """(..., D) -> logits (..., V): how well each token's embedding fits, and a number of its own."""
    return self.product(x, self.tokens.weight) + self.head_bias


def from_config(
  config: Config,
  linear: type[Linear] = Linear,
  attention_fn: Callable = attention,
  layer_norm: Callable = nn.LayerNorm,
  positions: Callable = LearnedPositions,
  embed_norm: bool = True,
) -> Bart:
  """An untrained model of the sizes that a config.json states, of the parts given. Raises ValueError for what is not built here."""
  config.only(tie_word_embeddings=True, share_encoder_decoder_embeddings=True)

  def both(name: str) -> tuple[int, int]:
    return config.size(f"encoder_{name}"), config.size(f"decoder_{name}")

  dim = config.size("d_model")
  return Bart(
    config.size("vocab_size"),
    config.size("max_position_embeddings", 1024),
    dim,
    both("attention_heads"),
    both("ffn_dim"),
    both("layers"),
    config.activation("activation_function", "gelu"),
    positions,
    layer_norm if embed_norm else None,
    math.sqrt(dim) if config.get("scale_embedding") else 1.0,
    linear,
    attention_fn,
    layer_norm,
  )


load = loader(from_config, KEY_MAP)
