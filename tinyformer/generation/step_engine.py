"""What a generation engine does besides its model's computations. This file needs no tinygrad."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyformer.backend import is_minigrad


class StepEngine:
  """Process a batch of texts of the same length incrementally: each token is processed once.

  A subclass provides `cache`, and `step`.

  Attributes: `position` is the number of tokens of each text processed so far; `context` is the
  maximum. To rewind the texts, set `position` to what KVCache.resume_position returns, or call
  `resume`. `tokens` (B, context) contains the processed tokens, unless beam search has reordered
  the texts.
  """

  # The numbers of tokens that one step processes, each compiled on first use. The largest size is
  # used of which the remaining tokens fill more than half; the rest of the chunk is padding. A GPU
  # reads a padded chunk faster than a few tokens one by one.
  CHUNK_SIZES = (512, 64, 1)

  cache: Any

  def __init__(self, batch: int, context: int, top_k: int | None):
    self.batch = batch
    self.context = context
    self.top_k = top_k or None
    self.position = 0
    self.tokens = np.zeros((batch, context), dtype=np.int32)

  def step(self, size: int, bucket: int | None) -> Callable[..., np.ndarray]:
    """Return the step for chunks of `size` tokens that attend to `bucket` rows of the cache."""
    raise NotImplementedError

  def bucket(self, rows: int) -> int | None:
    """Return the number of cached keys that a step reads if it needs the first `rows` of them.

    None reads exactly those.
    """
    return None

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    """Process the next tokens ids (B, T) of each text; return the logits (B, V) of the last one.

    Raises ValueError if T is 0, B is not the batch size, or the tokens exceed the context.
    """
    ids = np.asarray(ids, dtype=np.int32)
    if ids.ndim != 2 or ids.shape[0] != self.batch or not ids.size:
      raise ValueError(
        f"ids of shape {ids.shape} are not {self.batch} texts of at least one token: "
        f"pass the shape ({self.batch}, T)"
      )
    if self.position + ids.shape[1] > self.context:
      raise ValueError(
        f"{self.position + ids.shape[1]:,} tokens are more than the context of {self.context:,}: "
        "shorten the text"
      )
    while remaining := ids.shape[1]:
      size = self.chunk_size(remaining)
      chunk = ids[:, :size]
      ids = ids[:, size:]
      start = self.cache.reserve(self.position, size)
      tokens = chunk.shape[1]
      step = self.step(size, self.bucket(start + size))
      if size == 1:
        result = step(chunk, start=start)
      else:
        # Padding changes no result: its keys are masked here and overwritten by the next chunk.
        padded_chunk = np.pad(chunk, ((0, 0), (0, size - tokens)))
        result = step(padded_chunk, start=start, last=tokens - 1)
      self.cache.length = start + tokens
      self.tokens[:, self.position : self.position + tokens] = chunk
      self.position += tokens
    return self.read_logits(result)

  def read_logits(self, result: np.ndarray) -> np.ndarray:
    """Return the logits (B, V) in a step's result, which the next step may overwrite."""
    return result[:, -1].copy()

  def resume(self, ids: Sequence[int]) -> list[int]:
    """Rewind to the longest prefix of ids (T) in the cache, and return the tokens that remain.

    At least one token remains, because a call returns the logits of the last token that it
    processes. Only for a batch of one text.
    """
    common = 0
    for processed, token in zip(self.tokens[0, : self.position], ids[:-1], strict=False):
      if processed != token:
        break
      common += 1
    self.position = self.cache.resume_position(common)
    return list(ids[self.position :])

  def chunk_size(self, remaining: int) -> int:
    """Return the number of tokens to process next, of which some may be padding.

    minigrad compiles nothing, so each chunk has the size that remains.
    """
    largest = max(self.CHUNK_SIZES)
    if is_minigrad():
      return min(remaining, largest)
    fitting = [n for n in self.CHUNK_SIZES if self.position + n <= self.context]
    if self.bucket(0) and remaining > 1:
      return min((n for n in fitting if n >= min(remaining, fitting[0])), default=1)
    return next((n for n in fitting if remaining > n / 2), 1)
