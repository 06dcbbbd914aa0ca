"""What the encoder-decoders have in common: a source is read at once, then a target piece by piece, and what its layers see of the source is kept."""

from collections.abc import Callable, Sequence

from tinygrad import Tensor, nn

from tinyformer.generation.kv_cache import KVCache, EncoderDecoderCache, continues, padded
from tinyformer.kernels.linear import embed
from transformer import Block, Memory, Size, causal_mask, materialize


class Stack:
  """The blocks of an encoder or a decoder and what stands around them, None where there is no such part.

  positions: (start, T) -> (T, D), added to the embeddings.  embed_norm: of that sum.  norm: of what the last block gives.
  bias: (T, S) -> (H, T, S), added to the scores of every block's self-attention.
  """

  def __init__(
    self,
    blocks: list[Block],
    positions: Callable | None = None,
    embed_norm: Callable | None = None,
    bias: Callable | None = None,
    norm: Callable | None = None,
  ):
    self.blocks, self.positions, self.embed_norm, self.bias, self.norm = (
      blocks,
      positions,
      embed_norm,
      bias,
      norm,
    )

  def __call__(
    self,
    x: Tensor,
    mask: Tensor | None = None,
    start: Size = 0,
    cross_kv: Sequence[Memory] = (),
    memory_mask: Tensor | None = None,
    cache: KVCache | None = None,
  ) -> Tensor:
    """Embeddings x (B, T, D) of the places from `start` on -> (B, T, D). memories: for each block what its cross-attention sees, as in MultiHeadAttention."""
    T = x.shape[1]
    if self.positions:
      x = x + self.positions(start, T)
    if self.embed_norm:
      x = self.embed_norm(x)
    if self.bias:
      bias = self.bias(T, start + T)
      mask = materialize(bias if mask is None else mask + bias)
    x = materialize(x)
    for i, block in enumerate(self.blocks):
      x = block(
        x, cross_kv[i] if cross_kv else None, mask, memory_mask, cache and cache.layer(i, start)
      )
      if cache:
        x.realize()
    return materialize(self.norm(x) if self.norm else x)


class EncoderDecoder:
  """Token ids of a source, and those so far of a target, to logits for the target's next. A family adds `head`: (..., D) -> logits (..., V).

  context: the most tokens of a target.  scale: what embeddings, which source and target share, are multiplied by.
  """

  task = "text2text-generation"
  head: Callable[[Tensor], Tensor]

  def __init__(
    self,
    vocab_size: int,
    context: int,
    dim: int,
    encoder: Stack,
    decoder: Stack,
    scale: float = 1.0,
  ):
    self.vocab_size, self.context, self.scale = vocab_size, context, scale
    self.tokens, self.encoder, self.decoder = nn.Embedding(vocab_size, dim), encoder, decoder

  def embed(self, ids: Tensor) -> Tensor:
    """ids (B, T) -> (B, T, D)."""
    return embed(self.tokens, ids) * self.scale

  def encode(self, source: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """source (B, S), token ids -> (B, S, D), the memory that the decoder attends to. keep (B, S): false where a shorter source is padded at its end."""
    return self.encoder(self.embed(source), padded(None, attention_mask))

  def decode(
    self,
    target: Tensor,
    cross_kv: Sequence[Memory],
    memory_mask: Tensor | None = None,
    start: Size = 0,
    cache: KVCache | None = None,
  ) -> Tensor:
    """target (B, T), ids of the places from `start` on -> (B, T, D), what the head reads. memories, and cache, as in Stack."""
    T = continues(target, start, cache, self.context)
    return self.decoder(
      self.embed(target),
      causal_mask(T, start + T) if T > 1 else None,
      start,
      cross_kv,
      memory_mask,
      cache,
    )

  def __call__(
    self, source: Tensor, target: Tensor, attention_mask: Tensor | None = None
  ) -> Tensor:
    """source (B, S), target (B, T), token ids -> logits (B, T, V); keep as in `encode`. What stands behind a target's end changes nothing before it."""
    memory = self.encode(source, attention_mask)
    return self.head(
      self.decode(target, [memory] * len(self.decoder.blocks), padded(None, attention_mask))
    )

  def cross_kv(self, source: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """source (B, S) -> (L, 2, B, H, S, K): the keys and values that each of the decoder's L blocks makes of it."""
    memory = self.encode(source, attention_mask)
    return Tensor.stack(
      *(Tensor.stack(*block.cross.keys_values(memory)) for block in self.decoder.blocks)
    )

  def cache(
    self,
    batch: int,
    source: Tensor,
    attention_mask: Tensor | None = None,
    context: int | None = None,
  ) -> EncoderDecoderCache:
    """Reads the source, (batch, S) or (1, S) for all: an empty cache for `batch` targets of up to `context` tokens, the model's own if None."""
    return EncoderDecoderCache(
      self.cross_kv(source, attention_mask),
      padded(None, attention_mask),
      batch,
      context or self.context,
    )

  def last_hidden_state(
    self, ids: Tensor, start: Size, cache: EncoderDecoderCache, at: Size | None = None
  ) -> Tensor:
    """The target's ids (B, T) from place `start` on -> (B, T, D), with what the cache holds of the source and of the places before them; at: as in GPT2.hidden."""
    x = self.decode(ids, cache.cross_kv, cache.mask, start, cache)
    return x if at is None else x[:, at : at + 1]
