"""Shared code of the encoder-decoder architectures: a stack of blocks, and a pair of stacks.

The encoder reads the source once. The decoder attends to its output, the memory, and generates the
target token by token. The keys and values of the memory are computed once per source.
"""

from collections.abc import Callable, Sequence

from tinygrad import Tensor, nn

from tinyformer.generation.kv_cache import EncoderDecoderCache, KVCache, continues, padded
from tinyformer.kernels.linear import embed
from transformer import Block, Memory, Size, causal_mask, materialize


class Stack:
  """The blocks of an encoder or decoder, with positions and norms. None omits a part.

  positions: called with (start, T), returns (T, D), which is added to the embeddings.
  embed_norm: norm that is applied to this sum.
  bias: called with (T, S), returns (H, T, S), which is added to the self-attention scores of all
    blocks.
  norm: norm that is applied to the output of the last block.
  """

  def __init__(
    self,
    blocks: list[Block],
    positions: Callable | None = None,
    embed_norm: Callable | None = None,
    bias: Callable | None = None,
    norm: Callable | None = None,
  ):
    self.blocks = blocks
    self.positions = positions
    self.embed_norm = embed_norm
    self.bias = bias
    self.norm = norm

  def __call__(
    self,
    x: Tensor,
    mask: Tensor | None = None,
    start: Size = 0,
    cross_kv: Sequence[Memory] = (),
    memory_mask: Tensor | None = None,
    cache: KVCache | None = None,
  ) -> Tensor:
    """Apply all blocks to the embeddings of the positions from `start`: (B, T, D) -> (B, T, D).

    cross_kv: the `memory` argument of MultiHeadAttention for the cross-attention of each block.
    memory_mask: additive mask that broadcasts to (B, H, T, S), usually a padding_mask.
    """
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
        x,
        memory=cross_kv[i] if cross_kv else None,
        mask=mask,
        memory_mask=memory_mask,
        cache=cache and cache.layer(i, start),
      )
      if cache:
        # Inference only: realizing after each block lets tinygrad reuse one block's schedule.
        x.realize()
    return materialize(self.norm(x) if self.norm else x)


class EncoderDecoder:
  """Compute the logits of the next target token from a source and the target so far.

  Subclasses define `head`, which maps (..., D) to logits (..., V).

  context: maximum length of a target in tokens.
  scale: factor for the token embeddings, which the source and the target share.
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
    self.vocab_size = vocab_size
    self.context = context
    self.scale = scale
    self.tokens = nn.Embedding(vocab_size, dim)
    self.encoder = encoder
    self.decoder = decoder

  def __call__(
    self, source: Tensor, target: Tensor, attention_mask: Tensor | None = None
  ) -> Tensor:
    """Return the logits of the next target tokens: source (B, S), target (B, T) -> (B, T, V).

    source, target: token ids. The causal mask makes padding at the end of a target harmless.
    attention_mask (B, S): 1 for tokens of the source, 0 for padding.
    """
    memory = self.encode(source, attention_mask)
    cross_kv = [memory] * len(self.decoder.blocks)
    return self.head(self.decode(target, cross_kv, padded(None, attention_mask)))

  def embed(self, ids: Tensor) -> Tensor:
    """Return the scaled token embeddings: ids (B, T) -> (B, T, D)."""
    return embed(self.tokens, ids) * self.scale

  def encode(self, source: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return the memory that the decoder attends to: source ids (B, S) -> (B, S, D).

    attention_mask (B, S): 1 for tokens, 0 for padding, which must follow the tokens.
    """
    return self.encoder(self.embed(source), padded(None, attention_mask))

  def decode(
    self,
    target: Tensor,
    cross_kv: Sequence[Memory],
    memory_mask: Tensor | None = None,
    start: Size = 0,
    cache: KVCache | None = None,
  ) -> Tensor:
    """Return the input of the head: target ids (B, T) at the positions from `start` -> (B, T, D).

    The other arguments are those of Stack. Raises ValueError if the target exceeds the context, or
    if `start` is not 0 and there is no cache.
    """
    T = continues(target, start, cache, self.context)
    # A single query is the last position, so it sees every key.
    mask = causal_mask(T, start + T) if T > 1 else None
    return self.decoder(self.embed(target), mask, start, cross_kv, memory_mask, cache)

  def last_hidden_state(
    self, ids: Tensor, start: Size, cache: EncoderDecoderCache, at: Size | None = None
  ) -> Tensor:
    """Return the input of the head: target ids (B, T) at the positions from `start` -> (B, T, D).

    cache: holds the keys and values of the source and of the target positions before `start`.
    at: index of the only position to return, as (B, 1, D).
    """
    x = self.decode(ids, cache.cross_kv, cache.mask, start, cache)
    return x if at is None else x[:, at : at + 1]

  def cross_kv(self, source: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return the keys and values of a source in the L blocks: ids (B, S) -> (L, 2, B, H, S, K)."""
    memory = self.encode(source, attention_mask)
    pairs = [block.cross.keys_values(memory) for block in self.decoder.blocks]
    return Tensor.stack(*(Tensor.stack(k, v) for k, v in pairs))

  def cache(
    self,
    batch: int,
    source: Tensor,
    attention_mask: Tensor | None = None,
    context: int | None = None,
  ) -> EncoderDecoderCache:
    """Encode a source and return a cache for `batch` targets of up to `context` tokens.

    source: token ids (batch, S), or (1, S) if all targets have the same source.
    context: the model's own if None.
    """
    return EncoderDecoderCache(
      self.cross_kv(source, attention_mask),
      padded(None, attention_mask),
      batch,
      context or self.context,
    )
