"""Run an encoder with a head, in compiled steps: one text at a time, or many in batches."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.tasks import InputError, Prediction


class Encoder:
  """An encoder with a head, and its tokenizer.

  key: identifies what determines the kernels, apart from the weights (see CompiledStep).
  """

  # A single text is padded to a multiple of this length: different texts use the same kernels.
  LENGTH_MULTIPLE = 32
  # The largest number of tokens in a batch. Larger batches are not faster, and need more padding.
  BATCH_TOKENS = 512
  # Fewer texts of a similar length are processed one at a time.
  MIN_BATCH = 4

  def __init__(self, module, tokenizer, key: str | None = None):
    self.module = module
    self.tokenizer = tokenizer
    self.context = module.context
    self.key = key
    self.parameters = nn.state.get_state_dict(module)
    Tensor.realize(*self.parameters.values())
    self.steps: dict[tuple[int, int], CompiledStep] = {}  # by batch size and padded length

  def forward(self, ids: Tensor, attention_mask: Tensor, segments: Tensor) -> Tensor:
    """Return the head's output in float32."""
    return self.module(ids, attention_mask, segments).float().realize()

  def __call__(self, ids: list[int], segments: list[int] | None = None) -> np.ndarray:
    """Return the model's output for one text of T tokens, without the batch axis.

    The output of a token-level head has a row per token, and more rows for the padding.
    segments: T segment IDs, all 0 if None. Raises InputError if T exceeds the context.
    """
    length = self.padded_length(len(ids), self.LENGTH_MULTIPLE)
    return self.run_batch([ids], [segments or [0] * len(ids)], 1, length)[0].copy()

  def run_many(
    self, texts: Sequence[list[int]], segments: Sequence[list[int]] | None = None
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and the output of each of N texts, as `__call__` returns it.

    Texts of similar length are processed in one batch, the longest texts first. Raises InputError
    before the first output if a text exceeds the context.
    segments: the segment IDs of each text, all 0 if None.
    """
    if segments is None:
      segments = [[0] * len(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    lengths = [len(texts[i]) for i in order]
    start = 0
    while start < len(order):
      longest = lengths[start]
      length = self.padded_length(longest, length_multiple(longest))
      remaining = lengths[start : start + self.BATCH_TOKENS]
      indices = order[start : start + self.batch_size(remaining, length)]
      rows = [texts[i] for i in indices]
      outputs = self.run_group(rows, [segments[i] for i in indices], length)
      yield from zip(indices, outputs, strict=True)
      start += len(indices)

  def batch_size(self, lengths: Sequence[int], length: int) -> int:
    """Return how many of the next texts form a batch: a power of two.

    lengths: those of the texts, the largest first.  length: the one to which they are padded.
    """
    limit = max(1, self.BATCH_TOKENS // length)
    # A text that would be padded to more than twice its length waits for a shorter batch.
    similar = sum(2 * n >= length for n in lengths[:limit])
    # With powers of two, the last batches of a file need few kernels of their own.
    batch = 1 << (max(1, similar).bit_length() - 1)
    return batch if batch >= self.MIN_BATCH else 1

  def run_group(
    self, texts: list[list[int]], segments: list[list[int]], length: int
  ) -> list[np.ndarray]:
    """Return the output of each of some texts, in one batch if there are several.

    length: the length to which they are padded in a batch.
    """
    if len(texts) == 1:
      return [self(texts[0], segments[0])]
    return list(self.run_batch(texts, segments, len(texts), length).copy())

  def padded_length(self, length: int, multiple: int) -> int:
    """Return the length to which a text is padded. Raises InputError if it exceeds the context."""
    if length > self.context:
      raise InputError(
        f"the text has {length:,} tokens, more than this model's context of {self.context:,}: "
        "shorten the text"
      )
    return min(self.context, -(-max(1, length) // multiple) * multiple)

  def run_batch(
    self, texts: list[list[int]], segments: list[list[int]], batch: int, length: int
  ) -> np.ndarray:
    """Return the output for a batch of at most `batch` texts of at most `length` tokens.

    The next call may overwrite the result.
    """
    # A row without a text has one token, because attention needs at least one key.
    ids = np.full((batch, length), self.tokenizer.pad or 0, dtype=np.int32)
    attention_mask = np.zeros((batch, length), dtype=bool)
    attention_mask[:, 0] = True
    all_segments = np.zeros((batch, length), dtype=np.int32)
    for row, (text, text_segments) in enumerate(zip(texts, segments, strict=True)):
      ids[row, : len(text)] = text
      attention_mask[row, : len(text)] = True
      all_segments[row, : len(text)] = text_segments
    shape = batch, length
    if shape not in self.steps:
      self.steps[shape] = CompiledStep(self.forward, captured_buffers=self.parameters, key=self.key)
    return self.steps[shape](ids, attention_mask, all_segments)


def length_multiple(length: int) -> int:
  """Return the multiple to which the longest text of a batch is padded: an eighth or less of it.

  Fewer lengths need fewer kernels, but more padding.
  """
  return max(4, 1 << max(0, (length - 1).bit_length() - 3))


def softmax(logits: np.ndarray) -> np.ndarray:
  """Return the softmax over the last axis."""
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def best_predictions(
  probabilities: np.ndarray, label: Callable[[int], str], top_k: int | None
) -> list[Prediction]:
  """Return the top_k most probable classes, or all if None, most probable first."""
  order: Sequence[int] = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
  return [Prediction(label(i), float(probabilities[i])) for i in order]
