"""Sequences of token ids: random batches for training, evenly spaced batches for validation."""

import numpy as np


def inputs_and_targets(sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the inputs and the next tokens, both (N, T), of sequences (N, T + 1)."""
  return sequences[:, :-1].copy(), sequences[:, 1:].copy()


def sample_batch(ids: np.ndarray, context: int, batch_size: int, *seed: int) -> np.ndarray:
  """Return sequences of token ids that start at random positions, (batch_size, context + 1).

  The same seed returns the same sequences.
  """
  starts = np.random.default_rng(seed).integers(0, len(ids) - context, batch_size)
  return np.stack([ids[i : i + context + 1] for i in starts])


def windows(ids: np.ndarray, context: int) -> np.ndarray:
  """Split token ids into sequences that overlap by one token, (N, context + 1).

  Each token except the first is a target once. Tokens after the last full window are dropped.
  """
  n = (len(ids) - 1) // context
  return np.stack([ids[i * context : (i + 1) * context + 1] for i in range(n)])


def eval_batches(sequences: np.ndarray, max_sequences: int, batch_size: int) -> np.ndarray:
  """Return full batches of up to `max_sequences` evenly spaced sequences, (M, batch_size, T + 1).

  There is at least one batch. If the sequences do not fill it, some of them are repeated.
  """
  num_batches = max(1, min(max_sequences, len(sequences)) // batch_size)
  indices = np.linspace(0, len(sequences) - 1, num_batches * batch_size).astype(int)
  return sequences[indices].reshape(-1, batch_size, sequences.shape[1])
