"""Shared code of the encoder-decoder architectures: a stack of blocks, and a pair of stacks.

The encoder reads the source once. The decoder attends to its output, the memory, and generates the
target token by token.
"""

from collections.abc import Callable
from typing import Any

from tinygrad import Tensor

from layers.parts import Parts
from layers.positions import check_context
from transformer import Block, causal_mask, padding_mask


def identity(x: Tensor) -> Tensor:
  """Return x unchanged. It replaces a norm that a stack does not have."""
  return x


class Stack:
  """The blocks of an encoder or decoder, with what surrounds them.

  positions: called with position ids (T), returns vectors (T, D) to add to the embeddings.
  embed_norm: norm that is applied to this sum.
  bias: called with (T, S), returns (H, T, S) to add to the self-attention scores of all blocks.
  norm: norm that is applied to the output of the last block.
  """

  def __init__(
    self,
    blocks: list[Block],
    positions: Callable | None = None,
    embed_norm: Callable = identity,
    bias: Callable | None = None,
    norm: Callable = identity,
  ):
    self.blocks = blocks
    self.positions = positions
    self.embed_norm = embed_norm
    self.bias = bias
    self.norm = norm

  def add_positions(self, x: Tensor, position_ids: Tensor) -> Tensor:
    """Return the input of the first block: token embeddings (B, T, D), ids (T) -> (B, T, D)."""
    return self.embed_norm(x + self.positions(position_ids) if self.positions else x)

  def add_bias(self, mask: Tensor | None, T, S) -> Tensor | None:
    """Return the mask plus the bias of T queries and S keys."""
    if self.bias is None:
      return mask
    return self.bias(T, S) if mask is None else mask + self.bias(T, S)


class EncoderDecoder:
  """Compute the logits of the next target token from a source and the target so far.

  Subclasses define `head`, which maps (..., D) to logits (..., V). The attributes `blocks` and
  `norm` and the method `embed` are the decoder's, as in a model without an encoder.

  config: has vocab_size, context (the maximum length of a target in tokens) and dim.
  scale: factor for the token embeddings, which the source and the target share.
  """

  task = "text2text-generation"
  head: Callable[[Tensor], Tensor]

  def __init__(self, config, parts: Parts, encoder: Stack, decoder: Stack, scale: float = 1.0):
    self.config, self.parts = config, parts
    self.vocab_size, self.context = config.vocab_size, config.context
    self.scale = scale
    self.tokens = parts.embedding(config.vocab_size, config.dim)
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
    memory_mask = None if attention_mask is None else padding_mask(attention_mask)
    return self.head(self.decode(target, memory, memory_mask))

  def encode(self, source: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return the memory that the decoder attends to: source ids (B, S) -> (B, S, D).

    attention_mask (B, S): 1 for tokens, 0 for padding, which must follow the tokens.
    """
    S = source.shape[1]
    x = self.encoder.add_positions(self.tokens(source) * self.scale, Tensor.arange(S))
    padding = None if attention_mask is None else padding_mask(attention_mask)
    mask = self.encoder.add_bias(padding, S, S)
    for block in self.encoder.blocks:
      x = block(x, mask=mask)
    return self.encoder.norm(x)

  def decode(self, target: Tensor, memory: Tensor, memory_mask=None, cache=None) -> Tensor:
    """Return the input of the head: target ids (B, T), memory (B, S, D) -> (B, T, D).

    memory_mask: additive mask that broadcasts to (B, H, T, S), usually a padding_mask.
    cache: a KVCache of the earlier target positions, to which the T new ones are added.
    Raises ValueError if the target exceeds the context.
    """
    x = self.embed(target, cache)
    inputs = self.attention_inputs(target, cache)
    for i, block in enumerate(self.blocks):
      layer_cache = None if cache is None else cache.layer(i)
      x = block(x, memory, memory_mask, **inputs, cache=layer_cache)
    return self.norm(x)

  def embed(self, ids: Tensor, cache=None) -> Tensor:
    """Return the input of the decoder's first block: target ids (B, T) -> (B, T, D)."""
    T = ids.shape[1]
    if cache is None:
      check_context(T, self.context)
    positions = Tensor.arange(T) + (0 if cache is None else cache.position)
    return self.decoder.add_positions(self.tokens(ids) * self.scale, positions)

  def attention_inputs(self, ids: Tensor, cache=None) -> dict[str, Any]:
    """Return the arguments of the decoder's self-attention besides x: a mask for (H, T, P + T).

    P is the number of positions in the cache.
    """
    T = ids.shape[1]
    S = T if cache is None else cache.length + T
    return {"mask": self.decoder.add_bias(causal_mask(T, S), T, S)}

  @property
  def blocks(self) -> list[Block]:
    """Return the decoder's blocks."""
    return self.decoder.blocks

  @property
  def norm(self) -> Callable:
    """Return the norm of the decoder's output."""
    return self.decoder.norm
