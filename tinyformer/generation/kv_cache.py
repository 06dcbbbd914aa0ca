"""KV caches: keys and values of earlier positions, so that each call processes new tokens only."""

from collections.abc import Callable

import numpy as np
from tinygrad import Tensor, dtypes

from tinyformer.kernels.c_kernel import buffer_of
from transformer import Block, Size, padding_mask


class KVCache:
  """Buffers for the keys and values of `context` positions in each layer, (B, H, context, K).

  The caller creates the cache and passes it to the model, with the number of positions that the
  cache already contains. The model writes the new positions after these. Rows that have not been
  written are never read.
  window: the number of positions that a query attends to, including its own; None is unlimited.
    With a window, the buffers have rows for two windows and a chunk: `reserve` evicts older keys.
  """

  # The maximum number of positions written at once if there is a window.
  CHUNK_SIZE = 512

  def __init__(
    self,
    num_layers: int,
    batch: int,
    heads: int,
    context: int,
    head_dim: int,
    window: int | None = None,
  ):
    self.context = context
    self.window = window
    self.dropped = 0  # number of evicted positions
    self.rows = min(context, 2 * window + self.CHUNK_SIZE) if window else context
    # `dropped` as a buffer, because a compiled step reads it.
    self.first_position: Tensor | None = None
    if window:
      self.first_position = Tensor.zeros(1, dtype=dtypes.int32).contiguous().realize()
    shape = (batch, heads, self.rows, head_dim)
    self.k = [Tensor.empty(*shape).realize() for _ in range(num_layers)]
    self.v = [Tensor.empty(*shape).realize() for _ in range(num_layers)]

  def reserve(self, position: int, count: int) -> int:
    """Return the first row for `count` tokens from `position` on: a model's `start`.

    Evict the oldest keys and values if the rows do not suffice.
    """
    dropped = 0 if position == 0 else self.dropped
    if self.window and self.first_position is not None and position - dropped + count > self.rows:
      # The next query attends to its own position and the window - 1 positions before it.
      end = position - dropped
      start = end - (self.window - 1)
      for buffer in self.k + self.v:
        buffer[:, :, : end - start].assign(buffer[:, :, start:end].contiguous()).realize()
      dropped += start
    if dropped != self.dropped and self.first_position is not None:
      self.first_position.assign(Tensor([dropped], dtype=dtypes.int32)).realize()
    self.dropped = dropped
    return position - dropped

  def position(self, row: Size) -> Size | Tensor:
    """Return the position, in the text, of a row."""
    if self.first_position is None:
      return row
    return self.first_position + (row if isinstance(row, int) else Tensor(row))

  def resume_position(self, position: int) -> int:
    """Return the position to resume from after a rewind to `position`.

    The result is 0 if the sliding window has evicted keys that are still needed.
    """
    retained = position - self.dropped
    needed = (self.window or 1) - 1
    return position if not self.dropped or retained >= needed else 0

  def layer(self, i: int, start: Size) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the `cache` argument of layer i's MultiHeadAttention.

    The returned function writes k and v (B, H, T, K) from row `start` on. It returns all start + T
    rows.
    """

    def extend(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
      end = start + k.shape[2]
      for buffer, new in ((self.k[i], k), (self.v[i], v)):
        buffer[:, :, start:end].assign(new)
      return self.k[i][:, :, :end], self.v[i][:, :, :end]

    return extend

  def reorder(self, rows: list[int], end: int | None = None) -> None:
    """Replace text b of the batch by text rows[b], up to position `end`.

    Beam search calls this function, because some beams have several successors and others none.
    """
    for buffer in self.k + self.v:
      if buffer.device == "CPU":
        # Copying the process's own memory takes less time than scheduling in tinygrad.
        view = buffer_of(buffer).as_memoryview(force_zero_copy=True)
        memory = np.frombuffer(view, np.float32).reshape(buffer.shape)
        memory[:, :, :end] = memory[rows, :, :end]
      else:
        buffer.assign(buffer[Tensor(rows, device=buffer.device)].contiguous()).realize()


class EncoderDecoderCache(KVCache):
  """A decoder's KV cache, with the constant keys, values and padding mask of its source.

  cross_kv: (L, 2, B, H, S, K), the keys and values of each layer's cross-attention.
  mask: (B, 1, 1, S), additive. B is `batch`, or 1 if all texts have the same source.
  """

  def __init__(self, cross_kv: Tensor, mask: Tensor | None, batch: int, context: int):
    num_layers, _, _, heads, _, head_dim = (int(size) for size in cross_kv.shape)
    super().__init__(num_layers, batch, heads, context, head_dim)

    def expand(x: Tensor) -> Tensor:
      # contiguous() has no effect while the dtype is undetermined, hence float().
      return x.float().expand(batch, *x.shape[1:]).contiguous()

    self.cross_kv = [(expand(cross_kv[i, 0]), expand(cross_kv[i, 1])) for i in range(num_layers)]
    self.mask = None if mask is None else expand(mask)
    tensors = [tensor for pair in self.cross_kv for tensor in pair]
    if self.mask is not None:
      tensors.append(self.mask)
    Tensor.realize(*tensors)


def continues(ids: Tensor, start: Size, cache: KVCache | None, context: int) -> Size:
  """Return T of ids (B, T), the tokens from position `start` on.

  Raises ValueError if they exceed the context, or if `start` is not 0 and there is no cache.
  """
  T: Size = ids.shape[1]
  if isinstance(start, int) and start + T > context:
    raise ValueError(f"{start + T} tokens are more than the context of {context}: shorten the text")
  if cache is None and not (isinstance(start, int) and start == 0):
    raise ValueError(f"a text can start at position {start} only with a cache: pass one")
  return T


def select_position(
  block: Block, x: Tensor, at: Size, cache: Callable | None, rope: Callable | None = None
) -> Tensor:
  """Return row `at` of x (B, T, D), as (B, 1, D): the input of a last block that needs no other.

  The keys and values of all T positions are written to the cache, because the selected position
  attends to them. cache, rope: as in MultiHeadAttention. Raises ValueError without a cache.
  """
  if cache is None:
    raise ValueError("a single position can be selected only with a cache: pass one")

  def write(normalized: Tensor) -> Tensor:
    k, v = block.attn.keys_values(normalized)
    cache(rope(k) if rope else k, v)
    return normalized

  # The residual connection gives `write` the input of the attention; its sum is never computed.
  block.residual(x, write, block.attn_norm)
  return x[:, at : at + 1]


def padded(mask: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
  """Return the additive mask, extended to hide the padding of attention_mask (B, S)."""
  if attention_mask is None:
    return mask
  return padding_mask(attention_mask) if mask is None else mask + padding_mask(attention_mask)
