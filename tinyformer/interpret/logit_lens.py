"""The logit lens: the predictions of a model if it ended after each of its layers.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from typing import NamedTuple

import numpy as np
from tinygrad import Tensor

from tinyformer.interpret.activations import Activations

HEAD_BATCH_SIZE = 64  # a fixed number of rows, so that the head's kernels compile only once


class LogitLens(NamedTuple):
  """The most probable predictions after the embeddings and after each layer.

  top_ids, probabilities (layers + 1, P, n): tokens or labels, from the most probable one down.
  logits (P, n): those of the last layer's predictions.
  """

  top_ids: np.ndarray
  probabilities: np.ndarray
  logits: np.ndarray


def head_logits(model, x: np.ndarray) -> np.ndarray:
  """Return the logits (P, V) of the model's head for vectors (P, D), independent of each other."""
  padded = np.pad(x.astype(np.float32), ((0, -len(x) % HEAD_BATCH_SIZE), (0, 0)))
  batches = []
  for i in range(0, len(x), HEAD_BATCH_SIZE):
    logits = model.head(Tensor(padded[i : i + HEAD_BATCH_SIZE, None]))
    batches.append(logits.float().numpy().reshape(HEAD_BATCH_SIZE, -1))
  return np.concatenate(batches)[: len(x)]


def apply_final_norm(activations: Activations, stream: np.ndarray) -> np.ndarray:
  """Return the input of the head (T, D) for a residual stream (T, D)."""
  return activations.final_norm(stream) if activations.final_norm else stream


def lens(
  model, activations: Activations, positions: slice = slice(None), top: int = 5
) -> LogitLens:
  """Return the `top` predictions after each layer. positions: the P positions of the text."""
  top_ids = []
  probabilities = []
  for stream in activations.residual_streams():
    logits = head_logits(model, apply_final_norm(activations, stream[positions]))
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    softmax = exp / exp.sum(-1, keepdims=True)
    top_ids.append(ids)
    probabilities.append(np.take_along_axis(softmax, ids, -1))
  top_logits = np.take_along_axis(logits, ids, -1)
  return LogitLens(np.stack(top_ids), np.stack(probabilities), top_logits)
