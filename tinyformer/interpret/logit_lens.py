"""The logit lens: what a model would predict if it ended after each of its layers (nostalgebraist 2020, "interpreting GPT: the logit lens")."""

from typing import NamedTuple

import numpy as np
from tinygrad import Tensor

from tinyformer.interpret.activations import Record


class Lens(NamedTuple):
  """Of each layer's stream, the embeddings' first, and each place: the likeliest tokens or labels (layers + 1, P, n), their chances and, of the last, the logits (P, n)."""

  best: np.ndarray
  chances: np.ndarray
  logits: np.ndarray


ROWS = 64  # vectors that a head reads at once, for the same kernels to serve any number of them


def read(model, x: np.ndarray) -> np.ndarray:
  """What the model's head says of vectors (P, D), each by itself -> logits (P, V)."""
  padded = np.pad(x.astype(np.float32), ((0, -len(x) % ROWS), (0, 0)))
  return np.concatenate(
    [
      model.head(Tensor(padded[i : i + ROWS, None])).float().numpy().reshape(ROWS, -1)
      for i in range(0, len(x), ROWS)
    ]
  )[: len(x)]


def normed(record: Record, stream: np.ndarray) -> np.ndarray:
  """A layer's stream (T, D) as the head reads it, through the model's last norm."""
  return record.last(stream) if record.last else stream


def lens(model, record: Record, places: slice = slice(None), top: int = 5) -> Lens:
  """places: those of the text at which the head is read."""
  best, chances = [], []
  for stream in record.streams():
    logits = read(model, normed(record, stream[places]))
    n = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    e = np.exp(logits - logits.max(-1, keepdims=True))
    best.append(n)
    chances.append(np.take_along_axis(e / e.sum(-1, keepdims=True), n, -1))
  return Lens(np.stack(best), np.stack(chances), np.take_along_axis(logits, n, -1))
