"""KV caches: keys and values of earlier positions, so that each call processes new tokens only."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes, nn

from tinyformer.kernels.compiled_step import CompiledStep, memory_view
from transformer import padding_mask

FLOAT16_MAX = 65504
# An int, or on tinygrad a symbolic variable, which is bound on each call of a compiled step.
Size = Any


class KVCache:
  """Buffers for the keys and values of each layer, (B, G, rows, K) with G key-value heads.

  Create a cache and pass it to a model, which appends the keys and values of new positions.
  There is a row for each of `context` positions.
  window: the number of positions that a query attends to, including its own; None is unlimited.
    With a window, the buffers have rows for two windows and a chunk: `reserve` evicts older keys.
  dtype: float32, or float16, which needs half the memory. Numbers beyond its range are clipped.

  Attributes: `length` is the number of rows in use. The last layer increases it when it has added
  its keys and values. The generation engine may set it, also to a symbolic variable. `bucket` is
  the number of rows that attention reads, of which the mask must hide those not in use; None reads
  the rows in use. The engine sets it where fixed shapes are faster.
  """

  # The maximum number of positions written at once if there is a window.
  CHUNK_SIZE = 512

  def __init__(  # noqa: PLR0913
    self,
    num_layers: int,
    batch: int,
    heads: int,
    context: int,
    head_dim: int,
    window: int | None = None,
    dtype: Any = dtypes.float32,
  ):
    self.context = context
    self.window = window
    self.length: Size = 0
    self.bucket: int | None = None
    self.dropped = 0  # number of evicted positions
    self.rows = min(context, 2 * window + self.CHUNK_SIZE) if window else context
    # `dropped` as a buffer, because a compiled step reads it.
    self.first_position: Tensor | None = None
    if window:
      self.first_position = Tensor.zeros(1, dtype=dtypes.int32).contiguous().realize()
    shape = (batch, heads, self.rows, head_dim)
    try:
      self.k = [Tensor.empty(*shape, dtype=dtype).realize() for _ in range(num_layers)]
      self.v = [Tensor.empty(*shape, dtype=dtype).realize() for _ in range(num_layers)]
      self.gather = compiled_gather(self.k + self.v)
    except (MemoryError, OSError, RuntimeError) as e:
      gigabytes = 2 * dtype.itemsize * num_layers * math.prod(shape) / 1e9
      raise ValueError(
        f"a KV cache for {batch:,} x {self.rows:,} tokens needs {gigabytes:,.0f} GB, which cannot "
        "be allocated: generate fewer texts, or use a model with a smaller context"
      ) from e

  @classmethod
  def for_model(
    cls, model, batch: int = 1, context: int | None = None, dtype: Any = None
  ) -> "KVCache":
    """Return an empty cache for `batch` sequences of up to `context` tokens of a decoder.

    context: the model's own if None.
    dtype: if None, float16 if the weights are narrower than float32 and the parts support it,
      otherwise float32.
    """
    attn = model.blocks[0].attn
    window = getattr(model, "window", None)
    context = context or model.context
    use_float16 = model.parts.float16_cache and has_narrow_weights(attn)
    dtype = dtype or (dtypes.float16 if use_float16 else dtypes.float32)
    return cls(len(model.blocks), batch, attn.kv_heads, context, attn.head_dim, window, dtype)

  def clear(self) -> None:
    """Set all keys and values to 0.

    If attention reads a bucket of rows, those not in use must be finite: a weight of 0 times NaN
    would be NaN.
    """
    for buffer in self.k + self.v:
      buffer.assign(Tensor.zeros_like(buffer)).realize()

  def reserve(self, position: int, count: int) -> int:
    """Return the first row for `count` tokens from `position` on, and set `length` to it.

    Evict the oldest keys and values if the rows do not suffice.
    """
    dropped = 0 if position == 0 else self.dropped
    if self.window and position - dropped + count > self.rows:
      # The next query attends to its own position and the window - 1 positions before it.
      end = position - dropped
      start = end - (self.window - 1)
      # If Ctrl-C interrupts the eviction, no position can be resumed from.
      self.dropped = position + 1
      for buffer in self.k + self.v:
        buffer[:, :, : end - start].assign(buffer[:, :, start:end].contiguous()).realize()
      dropped += start
    if dropped != self.dropped and self.first_position is not None:
      self.first_position.assign(Tensor([dropped], dtype=dtypes.int32)).realize()
    self.dropped = dropped
    self.length = position - dropped
    return self.length

  @property
  def position(self) -> Size | Tensor:
    """Return the position, in the text, of the next token."""
    if self.first_position is None:
      return self.length
    return self.first_position + self.length  # type: ignore[operator]

  def resume_position(self, position: int) -> int:
    """Return the position to resume from after a rewind to `position`.

    The result is 0 if the sliding window has evicted keys that are still needed.
    """
    retained = position - self.dropped
    needed = (self.window or 1) - 1
    return position if not self.dropped or retained >= needed else 0

  def layer(self, i: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the `cache` argument of layer i's attention.

    The returned function adds k and v (B, G, T, K), and returns those of all positions, or of the
    bucket. It raises ValueError if the cache is full, unless `length` is symbolic.
    """

    def extend(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
      start = self.length
      end = start + k.shape[2]
      if isinstance(end, int) and end > self.rows:
        raise ValueError(
          f"{end:,} positions are more than the {self.rows:,} of the KV cache: shorten the text"
        )
      for buffer, new in ((self.k[i], k), (self.v[i], v)):
        buffer[:, :, start:end].assign(self.converted(new))
      if i == len(self.k) - 1:
        self.length = end
      end = end if self.bucket is None else self.bucket
      return self.k[i][:, :, :end], self.v[i][:, :, :end]

    return extend

  def converted(self, x: Tensor) -> Tensor:
    """Return keys or values in the cache's dtype."""
    dtype = self.k[0].dtype
    return x.clip(-FLOAT16_MAX, FLOAT16_MAX).cast(dtype) if dtype == dtypes.float16 else x

  def block_inputs(self, i: int) -> dict[str, Any]:
    """Return the arguments of block i that come from the cache."""
    return {"cache": self.layer(i)}

  def reorder(self, texts: list[int], end: int | None = None) -> None:
    """Replace text b of the batch by text texts[b], up to row `end` or further.

    Beam search calls this function, because some beams have several successors and others none.
    """
    for buffer in self.k + self.v:
      memory = memory_view(buffer)
      if memory is None:
        self.gather(np.array(texts, dtype=np.int32))
        return
      # Copying the process's own memory takes less time than scheduling in tinygrad.
      memory[:, :, :end] = memory[texts, :, :end]


def has_narrow_weights(module) -> bool:
  """Return whether a matrix of a module has a dtype narrower than float32."""
  return any(t.ndim > 1 and t.dtype.itemsize < 4 for t in nn.state.get_parameters(module))


def compiled_gather(buffers: list[Tensor]) -> Callable[[np.ndarray], None]:
  """Return a function that replaces text b of each buffer by text texts[b], in one compiled step.

  It is a function, because the tensors in a cache's attributes are its buffers and nothing else.
  """

  def gather(texts: Tensor) -> Tensor:
    for buffer in buffers:
      buffer.assign(buffer[texts].contiguous())
    Tensor.realize(*buffers)
    return texts

  step = CompiledStep(gather)

  def run(texts: np.ndarray) -> None:
    step(texts)

  return run


class EncoderDecoderCache(KVCache):
  """A decoder's KV cache, with the constant keys, values and padding mask of its source.

  cross_kv: (L, 2, B, H, S, K), the keys and values of each layer's cross-attention.
  mask: (B, 1, 1, S), additive. B is `batch`, or 1 if all texts have the same source.
  """

  def __init__(self, cross_kv: Tensor, mask: Tensor | None, batch: int, context: int):
    num_layers, _, _, heads, _, head_dim = (int(size) for size in cross_kv.shape)
    super().__init__(num_layers, batch, heads, context, head_dim)

    def expand(x: Tensor) -> Tensor:
      # float() determines the dtype. Without it, contiguous() has no effect.
      return x.float().expand(batch, *x.shape[1:]).contiguous()

    self.cross_kv = [(expand(cross_kv[i, 0]), expand(cross_kv[i, 1])) for i in range(num_layers)]
    self.mask = None if mask is None else expand(mask)
    tensors = [tensor for pair in self.cross_kv for tensor in pair]
    if self.mask is not None:
      tensors.append(self.mask)
    Tensor.realize(*tensors)

  @classmethod
  def for_source(
    cls,
    model,
    source: Tensor,
    attention_mask: Tensor | None = None,
    batch: int | None = None,
    context: int | None = None,
  ) -> "EncoderDecoderCache":
    """Encode a source and return a cache for `batch` targets of up to `context` tokens.

    source: token ids (batch, S), or (1, S) if all targets have the same source.
    context: the model's own if None.
    """
    cross_kv = cross_keys_values(model, source, attention_mask)
    mask = None if attention_mask is None else padding_mask(attention_mask)
    return cls(cross_kv, mask, batch or int(source.shape[0]), context or model.context)

  def block_inputs(self, i: int) -> dict[str, Any]:
    """Return the arguments of block i that come from the cache, with those of cross-attention."""
    return {"cache": self.layer(i), "memory": self.cross_kv[i], "memory_mask": self.mask}


def cross_keys_values(model, source: Tensor, attention_mask: Tensor | None = None) -> Tensor:
  """Return the keys and values of a source in an encoder-decoder's L decoder blocks.

  source: ids (B, S).  attention_mask (B, S) with 0 for padding -> (L, 2, B, H, S, K).
  """
  memory = model.encode(source, attention_mask)
  pairs = [block.cross.keys_values(memory) for block in model.blocks]
  return Tensor.stack(*(Tensor.stack(k, v) for k, v in pairs))
