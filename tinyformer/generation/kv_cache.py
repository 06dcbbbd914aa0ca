"""Keys and values kept between calls, so that generating a token costs one new row of queries and not the whole text again."""

from collections.abc import Callable

import numpy as np
from tinygrad import Tensor, dtypes

from tinyformer.kernels.c_kernel import buffer_of
from transformer import Block, Size, padding_mask


class KVCache:
  """Room for the keys and values of `context` places in each layer, (B, H, context, K). What has not been written is never read.

  Made by the caller, passed to a model with the number of places that are already in it; the model writes the new ones behind them.
  window: how many places a query sees, its own the last. Room for two windows and a piece of text is then enough: what no query sees is dropped.
  """

  PIECE = 512  # the most tokens that are written at once, where there is a window

  def __init__(
    self,
    layers: int,
    batch: int,
    heads: int,
    context: int,
    head_dim: int,
    window: int | None = None,
  ):
    self.context, self.window, self.dropped = context, window, 0
    self.rows = min(context, 2 * window + self.PIECE) if window else context
    self.first = (
      Tensor.zeros(1, dtype=dtypes.int32).contiguous().realize() if window else None
    )  # `dropped`, for a traced step to read
    self.k, self.v = (
      [Tensor.empty(batch, heads, self.rows, head_dim).realize() for _ in range(layers)]
      for _ in "kv"
    )

  def reserve(self, position: int, count: int) -> int:
    """The row for a text's next `count` tokens, which begin at `place`: a model's `start`."""
    dropped = 0 if position == 0 else self.dropped
    if self.window and self.first is not None and position - dropped + count > self.rows:
      first, last = position - dropped - (self.window - 1), position - dropped
      for kept in self.k + self.v:
        kept[:, :, : last - first].assign(kept[:, :, first:last].contiguous()).realize()
      dropped += first
    if dropped != self.dropped and self.first is not None:
      self.first.assign(Tensor([dropped], dtype=dtypes.int32)).realize()
    self.dropped = dropped
    return position - dropped

  def position(self, row: Size) -> Size | Tensor:
    """The place in the text of what stands in a row."""
    return (
      row if self.first is None else self.first + (row if isinstance(row, int) else Tensor(row))
    )

  def resume_position(self, position: int) -> int:
    """Where a text has to be read on that shall stand as it was at an earlier place: there, or, if not enough is kept, at its beginning."""
    return position if not self.dropped or position - self.dropped >= (self.window or 1) - 1 else 0

  def layer(self, i: int, start: Size) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What MultiHeadAttention takes as `cache`: writes k and v (B, H, T, K) at `start` and gives back all `start + T` places."""

    def extend(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
      end = start + k.shape[2]
      for kept, new in ((self.k[i], k), (self.v[i], v)):
        kept[:, :, start:end].assign(new)
      return self.k[i][:, :, :end], self.v[i][:, :, :end]

    return extend

  def reorder(self, rows: list[int], end: int | None = None) -> None:
    """Row b of the batch becomes what row rows[b] was, in its first `end` places: beam search keeps some of its candidates twice and others not at all."""
    for kept in self.k + self.v:
      if (
        kept.device == "CPU"
      ):  # it is this process's own memory, and a plan of tinygrad's takes longer than the copy
        memory = np.frombuffer(
          buffer_of(kept).as_memoryview(force_zero_copy=True), np.float32
        ).reshape(kept.shape)
        memory[:, :, :end] = memory[rows, :, :end]
      else:
        kept.assign(kept[Tensor(rows, device=kept.device)].contiguous()).realize()


class EncoderDecoderCache(KVCache):
  """A decoder's Cache, with what its layers attend to in a source, which stays as it is: keys and values of each, computed once, and a padding mask.

  memories: (L, 2, B, H, S, K), the keys and values of each layer; mask (B, 1, 1, S). B is `batch`, or 1 where all texts share a source.
  """

  def __init__(self, cross_kv: Tensor, mask: Tensor | None, batch: int, context: int):
    layers, _, _, heads, _, head_dim = cross_kv.shape
    super().__init__(int(layers), batch, int(heads), context, int(head_dim))

    def each(x: Tensor) -> Tensor:
      return (
        x.float().expand(batch, *x.shape[1:]).contiguous()
      )  # float: contiguous passes over a dtype that is undecided

    self.cross_kv = [(each(cross_kv[i, 0]), each(cross_kv[i, 1])) for i in range(int(layers))]
    self.mask = None if mask is None else each(mask)
    Tensor.realize(
      *(t for pair in self.cross_kv for t in pair), *([] if self.mask is None else [self.mask])
    )


def continues(ids: Tensor, start: Size, cache: KVCache | None, context: int) -> Size:
  """T of ids (B, T). Raises ValueError if they cannot stand at place `start`: with no cache of what was before, or beyond the context."""
  T: Size = ids.shape[1]
  if isinstance(start, int) and start + T > context:
    raise ValueError(f"{start + T} tokens are more than the context of {context}")
  if cache is None and not (isinstance(start, int) and start == 0):
    raise ValueError(f"a text can start at place {start} only with a cache")
  return T


def select_position(
  block: Block, x: Tensor, at: Size, cache: Callable | None, rope: Callable | None = None
) -> Tensor:
  """x (B, T, D) -> its place `at`, (B, 1, D): the input of a last block that is asked for nothing else.

  Of the other places that one sees keys and values alone, and these are written to the cache here. cache, turn: as in MultiHeadAttention.
  Raises ValueError without a cache.
  """
  if cache is None:
    raise ValueError("one place alone can be asked for only with a cache")

  def write(seen: Tensor) -> Tensor:
    k, v = block.attn.keys_values(seen)
    cache(rope(k) if rope else k, v)
    return seen

  block.residual(
    x, write, block.attn_norm
  )  # for `write` to see what the attention would; the sum itself is never computed
  return x[:, at : at + 1]


def padded(mask: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
  """A mask of a text's queries and keys, of which padding is not kept either."""
  if attention_mask is None:
    return mask
  return padding_mask(attention_mask) if mask is None else mask + padding_mask(attention_mask)
