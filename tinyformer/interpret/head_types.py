"""Which heads are of a known kind: how much each attends, on average, to what that kind attends to, in random tokens that come twice.

Olsson et al. 2022, "In-context Learning and Induction Heads"; Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Collection

import numpy as np

KINDS = {
  "previous": "the token before",
  "first": "the first token",
  "duplicate": "the same token, earlier",
  "induction": "what followed the same token, earlier",
}


def repeated(vocab: int, most: int, without: Collection[int] = (), seed: int = 0) -> list[int]:
  """At most `most` ids: different ones of 0 .. vocab - 1 in a random order, and all of them again."""
  known = np.setdiff1d(np.arange(vocab), list(without))
  half = np.random.default_rng(seed).permutation(known)[: most // 2].tolist()
  return half + half


def kinds(maps: np.ndarray, start: int = 0, length: int | None = None) -> dict[str, np.ndarray]:
  """maps (layers, H, T, T) of a text of whose tokens `length` are a repeated sequence, the first at `start` -> of each kind the scores (layers, H), from 0 to 1.

  previous, first: over all places but a text's first; duplicate, induction: over the places where the sequence comes again.
  """
  T = maps.shape[-1]
  half = (T - start if length is None else length) // 2
  every, again = np.arange(1, T), np.arange(start + half, start + 2 * half)
  return {
    "previous": maps[..., every, every - 1].mean(-1),
    "first": maps[..., every, 0].mean(-1),
    "duplicate": maps[..., again, again - half].mean(-1),
    "induction": maps[..., again, again - half + 1].mean(-1),
  }
