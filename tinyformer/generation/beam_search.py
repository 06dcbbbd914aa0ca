"""Beam search: find continuations with a high probability."""

from collections.abc import Callable, Sequence

import numpy as np

from tinyformer.generation.engine import Engine
from tinyformer.generation.logits_processors import LogitsProcessor, log_softmax, process_logits


def beam_search(  # noqa: PLR0913
  engine: Engine,
  ids: Sequence[int],
  max_new_tokens: int,
  length_penalty: Callable[[int], float] = float,
  end: int | None = None,
  logits_processors: Sequence[LogitsProcessor] = (),
  best_possible_score: Callable[[float, int], float] | None = None,
) -> list[tuple[list[int], float]]:
  """Return (token IDs, score) of the best continuations of `ids`, best first.

  The number of beams, and of results, is the engine's batch size. A score is the sum of
  log-probabilities (nats) divided by length_penalty(number of tokens): `float` makes the score the
  mean, `lambda n: 1` the sum. `lambda n: ((5 + n) / 6) ** 0.6` is the length penalty of Wu et al.
  2016, sec. 7. A continuation is finished after the token `end`, which it includes.
  best_possible_score: (sum, number of tokens) of an unfinished continuation -> upper bound of its
  final score; None assumes the current score. The search stops early if as many continuations as
  beams are finished, and no unfinished one can exceed the worst of them.
  Raises ValueError if the engine computes the logits of the top k tokens only.
  """
  if engine.top_k:
    raise ValueError(
      f"beam search needs the logits of all tokens, but the engine computes those of the top "
      f"{engine.top_k} tokens only: create the engine without top_k"
    )
  num_beams = engine.batch
  best_possible_score = best_possible_score or (lambda total, n: total / length_penalty(n))
  logits = engine(np.tile(np.array(ids, dtype=np.int32), (num_beams, 1)))
  beams: list[list[int]] = [[] for _ in range(num_beams)]
  # All beams are equal before the first step, so only one of them may have candidates.
  sums = np.array([0.0] + [-np.inf] * (num_beams - 1))
  finished: list[tuple[list[int], float]] = []
  for n in range(1, min(max_new_tokens, engine.context - engine.position) + 1):
    log_p = [
      process_logits(log_softmax([], row), [*ids, *beam], logits_processors)
      for row, beam in zip(logits.astype(np.float64), beams, strict=True)
    ]
    candidates = []  # (beam, token, sum)
    best = best_candidates(sums[:, None] + log_p, 2 * num_beams)
    for rank, (row, token, total) in enumerate(best):
      if token != end:
        candidates.append((row, token, total))
      elif rank < num_beams:
        finished.append(([*beams[row], token], total / length_penalty(n)))
    candidates = candidates[:num_beams]
    beams = [[*beams[row], token] for row, token, _ in candidates]
    sums = np.array([total for _, _, total in candidates])
    finished = sort_by_score(finished)[:num_beams]
    bound = best_possible_score(float(sums.max()), n)
    if len(finished) == num_beams and finished[-1][1] >= bound:
      return finished
    if n < max_new_tokens and engine.position < engine.context:
      engine.cache.reorder([row for row, _, _ in candidates], engine.position)
      logits = engine(np.array([[token] for _, token, _ in candidates]))
  unfinished = [
    (beam, float(total) / length_penalty(len(beam)))
    for beam, total in zip(beams, sums, strict=True)
  ]
  return sort_by_score(finished + unfinished)[:num_beams]


def best_candidates(totals: np.ndarray, count: int) -> list[tuple[int, int, float]]:
  """Return (row, column, value) of the `count` largest totals (beams, V), largest first.

  Of equal totals, the one with the smaller row and column comes first.
  """
  flat = totals.ravel()
  best = np.argpartition(-flat, count - 1)[:count]
  best = best[np.lexsort((best, -flat[best]))]
  rows, columns = divmod(best, totals.shape[1])
  return list(zip(rows.tolist(), columns.tolist(), flat[best].tolist(), strict=True))


def sort_by_score(results: list[tuple[list[int], float]]) -> list[tuple[list[int], float]]:
  return sorted(results, key=lambda result: -result[1])
