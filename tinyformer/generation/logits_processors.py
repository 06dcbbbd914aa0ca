"""Logits processors: functions that forbid or force tokens during generation."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

# (token IDs so far, including the prompt; scores (V,) of the next token) -> new scores (V,).
LogitsProcessor = Callable[[Sequence[int], np.ndarray], np.ndarray]


def process_logits(
  scores: np.ndarray, ids: Sequence[int], logits_processors: Sequence[LogitsProcessor]
) -> np.ndarray:
  """Apply the processors, in order, to the scores (V,) of the token after ids."""
  return functools.reduce(lambda scores, process: process(ids, scores), logits_processors, scores)


def suppress(scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
  """Return a copy of the scores (V,) in which those of the tokens are -inf."""
  scores = scores.copy()
  scores[list(tokens)] = -np.inf
  return scores


def no_repeat_ngram(n: int) -> LogitsProcessor:
  """Forbid tokens that would repeat an n-gram. Source: Paulus et al. 2018, sec. 2.5."""

  def process(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
    prefix = list(ids[len(ids) - n + 1 :])
    starts = [i for i in range(len(ids) - n + 1) if list(ids[i : i + n - 1]) == prefix]
    return suppress(scores, [ids[i + n - 1] for i in starts])

  return process


def no_bad_words(words: Sequence[Sequence[int]]) -> LogitsProcessor:
  """Forbid tokens that would complete one of the words. A word is a sequence of token IDs."""

  def process(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
    tokens = []
    for *prefix, last in words:
      if list(ids[max(0, len(ids) - len(prefix)) :]) == prefix:
        tokens.append(last)
    return suppress(scores, tokens)

  return process


def min_length(length: int, token: int) -> LogitsProcessor:
  """Forbid the end-of-sequence token until there are `length` tokens."""
  return lambda ids, scores: suppress(scores, [token]) if len(ids) < length else scores


def forced_token(length: int, token: int) -> LogitsProcessor:
  """Force the token that follows the first `length` tokens."""

  def process(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
    if len(ids) != length:
      return scores
    return np.where(np.arange(len(scores)) == token, 0.0, -np.inf)

  return process


def log_softmax(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
  """Normalize scores (V,), some of which may be -inf, to log-probabilities in nats."""
  top = scores.max()
  return scores - top - np.log(np.exp(scores - top).sum())
