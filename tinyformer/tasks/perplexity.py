"""Measure how well a model predicts texts, in overlapping windows."""

from collections.abc import Iterator, Sequence

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.kernels.compiled_step import CompiledStep

# Document index, and begin, first and end as `windows` yields them.
Window = tuple[int, int, int, int]
# Document index, and the losses in nats of the tokens that a window predicts.
Losses = tuple[int, np.ndarray]

# Windows are padded to multiples of this length, and computed in batches of at most this size.
LENGTH_MULTIPLE = 64
MAX_BATCH_TOKENS = 4096


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """Yield (begin, first, end) for each window over a document of `length` tokens.

  The window's inputs start at token `begin`, and it predicts tokens `first` to `end` (exclusive).
  It has at most `context` inputs. Every token but the first is predicted once.
  """
  first = 1
  while first < length:
    end = min(length, first + (context if first == 1 else stride))
    yield max(0, end - 1 - context), first, end
    first = end


def encode_documents(
  tokenizer, documents: Sequence[str], max_tokens: int | None = None
) -> tuple[list[list[int]], list[str]]:
  """Return each document's token ids and the text that is predicted, all but the first token.

  The ids start with the end-of-text token, if the tokenizer has one. max_tokens: use only the first
  tokens of each document.
  """
  prefix = [] if tokenizer.end is None else [tokenizer.end]
  ids = [prefix + tokenizer.encode(d)[:max_tokens] for d in documents]
  if prefix and max_tokens is None:
    return ids, list(documents)
  return ids, [tokenizer.decode(document_ids[1:]) for document_ids in ids]


class WindowLosses:
  """Compute the losses of windows of the same length in one compiled step.

  batch, length: the shape of the inputs (B, T).
  first: the first position whose loss is computed.
  """

  # Logits in memory at the same time: 64 MiB in float32.
  MAX_LOGITS = 1 << 24

  def __init__(self, model, batch: int, length: int, first: int):
    self.model = model
    self.batch = batch
    self.length = length
    self.first = first
    self.chunk = max(1, self.MAX_LOGITS // (batch * model.vocab_size))
    parameters = nn.state.get_state_dict(model)
    Tensor.realize(*parameters.values())
    self.step = CompiledStep(self.losses, captured_buffers=parameters)

  def losses(self, x: Tensor, y: Tensor) -> Tensor:
    """Return the losses (B, T - first) of the tokens y (B, T) that follow x (B, T)."""
    hidden = self.model.last_hidden_state(x).realize()
    chunks = []
    for i in range(self.first, self.length, self.chunk):
      part = slice(i, min(i + self.chunk, self.length))
      log_probabilities = self.model.head(hidden[:, part]).float().log_softmax(-1)
      chunks.append(-log_probabilities.gather(-1, y[:, part, None]).squeeze(-1).realize())
    return chunks[0].cat(*chunks[1:], dim=1).realize()

  def __call__(self, documents: Sequence[Sequence[int]], windows: list[Window]) -> Iterator[Losses]:
    """Yield (document index, losses) for each of at most B windows."""
    # A window is padded on the right, where no token of the window attends.
    x, y = np.zeros((2, self.batch, self.length), np.int32)
    for row, (i, begin, _, end) in enumerate(windows):
      length = end - 1 - begin
      x[row, :length] = documents[i][begin : end - 1]
      y[row, :length] = documents[i][begin + 1 : end]
    losses = self.step(x, y)
    for row, (i, begin, first, end) in enumerate(windows):
      predicted = slice(first - 1 - begin - self.first, end - 1 - begin - self.first)
      yield i, losses[row, predicted].astype(np.float64)


def token_losses(
  model, documents: Sequence[Sequence[int]], stride: int, context: int | None = None
) -> Iterator[Losses]:
  """Yield (document index, losses in nats of the predicted tokens) for each window.

  context: the number of tokens of a window; None is the model's context.
  """
  C = context or model.context
  all_windows = [
    (i, *window) for i, ids in enumerate(documents) for window in windows(len(ids), C, stride)
  ]
  # The first window of a document predicts all its tokens. Later windows have C tokens, and predict
  # the last ones only.
  first_windows = [w for w in all_windows if w[2] == 1]
  later_windows = [w for w in all_windows if w[2] > 1]
  for first, group in ((0, first_windows), (C - stride, later_windows)):
    if not group:
      continue
    longest = max(end - 1 - begin for _, begin, _, end in group)
    length = min(C, -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    batch = min(len(group), max(1, MAX_BATCH_TOKENS // length))
    compute = WindowLosses(model, batch, length, first)
    for start in range(0, len(group), batch):
      yield from compute(documents, group[start : start + batch])


def mean_loss(
  model, ids: Sequence[int], stride: int | None = None, context: int | None = None
) -> float:
  """Return the mean loss in nats of the tokens after the first.

  stride: the number of tokens that each window predicts; None is half of the context.
  context: the number of tokens of a window; None is the model's context.
  Raises ValueError if there is no token to predict, if the context exceeds the model's, or if the
  stride exceeds the context.
  """
  context, stride = check_window(model, context, stride)
  if len(ids) < 2:
    raise ValueError("the text has no token to predict")
  losses = [loss for _, window in token_losses(model, [ids], stride, context) for loss in window]
  return float(np.mean(losses))


def check_window(model, context: int | None, stride: int | None) -> tuple[int, int]:
  """Return the context and the stride: by default the model's context, and half of the context.

  Raises ValueError if the context exceeds the model's, or the stride exceeds the context.
  """
  context = context or model.context
  if context > model.context:
    raise ValueError(f"a context of {context:,} exceeds that of the model, {model.context:,}")
  stride = stride or max(1, context // 2)
  if stride > context:
    raise ValueError(f"a stride of {stride:,} would skip tokens: the context is {context:,}")
  return context, stride
