"""A text of token ids as pieces of one length: by lot to learn from, evenly spread to be measured by."""

import numpy as np


def inputs_and_targets(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(N, T + 1) -> inputs (N, T) and the tokens that follow each of them, (N, T)."""
  return pieces[:, :-1].copy(), pieces[:, 1:].copy()


def sample_batch(ids: np.ndarray, context: int, count: int, *seed: int) -> np.ndarray:
  """(count, context + 1): pieces that begin anywhere; the same seed draws the same ones."""
  starts = np.random.default_rng(seed).integers(0, len(ids) - context, count)
  return np.stack([ids[i : i + context + 1] for i in starts])


def windows(ids: np.ndarray, context: int) -> np.ndarray:
  """(N, context + 1): the text cut into pieces that overlap by one token, each token but the first once a target; the rest is left."""
  n = (len(ids) - 1) // context
  return np.stack([ids[i * context : (i + 1) * context + 1] for i in range(n)])


def eval_batches(pieces: np.ndarray, most: int, batch: int) -> np.ndarray:
  """So many of the pieces, evenly spread, in whole batches: (M, batch, T + 1). Some come twice where they do not fill a batch."""
  count = max(1, min(most, len(pieces)) // batch) * batch
  return pieces[np.linspace(0, len(pieces) - 1, count).astype(int)].reshape(
    -1, batch, pieces.shape[1]
  )
