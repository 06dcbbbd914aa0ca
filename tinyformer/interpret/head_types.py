"""Scores for four head types: the mean attention weight to the position that defines the type.

The text is a sequence of random tokens, repeated once.
Sources: Olsson et al. 2022, "In-context Learning and Induction Heads"; Elhage et al. 2021,
"A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Collection

import numpy as np

HEAD_TYPES = {
  "previous": "the previous token",
  "first": "the first token",
  "duplicate": "an earlier occurrence of the token",
  "induction": "the token after an earlier occurrence",
}


def repeated_random_ids(
  vocab_size: int, max_length: int, exclude: Collection[int] = (), seed: int = 0
) -> list[int]:
  """Return distinct random ids below vocab_size, followed by the same ids again.

  max_length: the maximum length of the whole sequence.  exclude: ids that do not occur in it.
  """
  candidates = np.setdiff1d(np.arange(vocab_size), list(exclude))
  half = np.random.default_rng(seed).permutation(candidates)[: max_length // 2].tolist()
  return half + half


def scores(maps: np.ndarray, start: int = 0, length: int | None = None) -> dict[str, np.ndarray]:
  """Return the scores (layers, H) of each head type, from 0 to 1.

  maps (layers, H, T, T): attention weights of a text that contains a repeated sequence.
  start, length: the position and the length of that sequence, both occurrences included.
  `previous` and `first` are means over all positions except the first one of the text.
  `duplicate` and `induction` are means over the second occurrence of the sequence.
  """
  T = maps.shape[-1]
  half = (T - start if length is None else length) // 2
  queries = np.arange(1, T)
  repeats = np.arange(start + half, start + 2 * half)
  return {
    "previous": maps[..., queries, queries - 1].mean(-1),
    "first": maps[..., queries, 0].mean(-1),
    "duplicate": maps[..., repeats, repeats - half].mean(-1),
    "induction": maps[..., repeats, repeats - half + 1].mean(-1),
  }
