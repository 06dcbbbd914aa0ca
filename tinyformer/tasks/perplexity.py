"""Measure how well a model predicts texts, in overlapping windows."""

from collections.abc import Iterator, Sequence

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.kernels.compiled_step import CompiledStep


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


def token_losses(
  model, documents: Sequence[Sequence[int]], stride: int, batch: int = 4
) -> Iterator[tuple[int, np.ndarray]]:
  """Yield (document index, losses in nats of the predicted tokens) for each window."""
  C = model.context

  def losses_of(x: Tensor, y: Tensor) -> Tensor:
    return -model(x).log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1).realize()

  step = CompiledStep(losses_of, captured_buffers=nn.state.get_state_dict(model))
  all_windows = [
    (i, *window) for i, ids in enumerate(documents) for window in windows(len(ids), C, stride)
  ]
  for start in range(0, len(all_windows), batch):
    rows = all_windows[start : start + batch]
    # A window is padded on the right, where no token of the window attends.
    x, y = np.zeros((2, batch, C), np.int32)
    for row, (i, begin, _, end) in enumerate(rows):
      length = end - 1 - begin
      x[row, :length] = documents[i][begin : end - 1]
      y[row, :length] = documents[i][begin + 1 : end]
    losses = step(x, y)
    for row, (i, begin, first, end) in enumerate(rows):
      yield i, losses[row, first - 1 - begin : end - 1 - begin].astype(np.float64)


def mean_loss(model, ids: Sequence[int], stride: int | None = None) -> float:
  """Return the mean loss in nats of the tokens after the first.

  stride: the number of tokens that each window predicts; None is half of the model's context.
  Raises ValueError if there is no token to predict, or if the stride exceeds the context.
  """
  stride = check_stride(model, stride)
  if len(ids) < 2:
    raise ValueError("the text has no token to predict")
  losses = [loss for _, window in token_losses(model, [ids], stride) for loss in window]
  return float(np.mean(losses))


def check_stride(model, stride: int | None) -> int:
  """Return the stride, or half of the model's context if None.

  Raises ValueError if it exceeds the context.
  """
  stride = stride or max(1, model.context // 2)
  if stride > model.context:
    raise ValueError(
      f"a stride of {stride} would skip tokens: the model's context is {model.context}"
    )
  return stride
