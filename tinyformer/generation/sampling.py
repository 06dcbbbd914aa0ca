"""Greedy decoding and sampling: choose one token after another."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from tinyformer.generation.logits_processors import LogitsProcessor, process_logits
from tinyformer.generation.step_engine import StepEngine


def probabilities(
  logits: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
  """Return the probabilities (V,) with which the next token is sampled from its logits (V,).

  The result is the softmax of logits / temperature, restricted to the top_k most probable tokens
  (0: all). Of these, only the most probable with a total probability of top_p remain. At
  temperature 0 the most probable token has probability 1.
  Sources: Fan et al. 2018, sec. 5.3 (top-k); Holtzman et al. 2020, sec. 3.1 (top-p).
  """
  if temperature == 0:
    return np.eye(1, len(logits), int(logits.argmax()))[0]
  # Most logits are -inf if an engine computes the largest ones only.
  indices = np.flatnonzero(logits != -np.inf)
  x = (logits[indices].astype(np.float64) - logits.max()) / temperature
  if 0 < top_k < len(x):
    is_candidate = x >= np.partition(x, -top_k)[-top_k]
    indices, x = indices[is_candidate], x[is_candidate]
  p = np.zeros(len(logits))
  p[indices] = np.exp(x)
  p /= p.sum()
  if top_p < 1:
    order = most_probable(p, top_p)
    preceding = np.cumsum(p[order]) - p[order]
    # The first token with which the total reaches top_p remains.
    remains = np.zeros(len(p), bool)
    remains[order[preceding < top_p]] = True
    p[~remains] = 0
    p /= p.sum()
  return p


def most_probable(p: np.ndarray, total: float, count: int = 256) -> np.ndarray:
  """Return the most probable tokens of p (V,), most probable first.

  Their probabilities sum to at least `total`. Usually `count` tokens suffice. Sorting all tokens
  takes as long as a step of a small model.
  """
  tokens = np.arange(len(p))
  if count < len(p):
    tokens = np.flatnonzero(p >= np.partition(p, -count)[-count])
    if p[tokens].sum() < total:
      tokens = np.arange(len(p))
  return tokens[np.argsort(-p[tokens], kind="stable")]


def generate(  # noqa: PLR0913
  engine: StepEngine,
  ids: Sequence[int],
  max_new_tokens: int,
  temperature: float = 0.8,
  top_k: int = 40,
  top_p: float = 1.0,
  seed: int | None = None,
  end: int | Collection[int] | None = None,
  logits_processors: Sequence[LogitsProcessor] = (),
) -> Iterator[list[int | None]]:
  """Process `ids`, then yield the next token of each of the engine's texts, step by step.

  A text that generates the token `end`, or one of several, is finished: its items are None from
  this step on.
  Generation ends after max_new_tokens steps, if all texts are finished, or if the context is full.
  temperature, top_k, top_p: see `probabilities`.
  seed: the same seed generates the same texts. A text does not depend on the batch size.
  Raises ValueError if `ids` is empty or fills the context. Raises ValueError if the engine's top_k
  is smaller than the number of tokens to sample from.
  """
  num_candidates = top_k if temperature else 1
  if engine.top_k and (logits_processors or not 0 < num_candidates <= engine.top_k):
    raise ValueError(
      f"the engine computes the logits of the top {engine.top_k} tokens only: for top_k={top_k} "
      "or logits processors, create it with a larger top_k or None"
    )
  length = engine.position + len(ids)
  if length >= engine.context:
    raise ValueError(
      f"{length:,} tokens leave no room for new ones in a context of {engine.context:,}: "
      "shorten the prompt"
    )
  ends = [end] if end is None or isinstance(end, int) else end
  rows = range(engine.batch)
  generators = [np.random.default_rng(None if seed is None else [seed, row]) for row in rows]
  texts = [list(ids) for _ in rows]
  unfinished = [True] * engine.batch
  logits = engine(np.tile(np.array(ids, dtype=np.int32), (engine.batch, 1)))
  for remaining in reversed(range(min(max_new_tokens, engine.context - engine.position))):
    tokens = []
    for text, generator, row in zip(texts, generators, logits, strict=True):
      scores = process_logits(row, text, logits_processors)
      p = probabilities(scores, temperature, top_k, top_p)
      token = int(generator.choice(len(scores), p=p))
      text.append(token)
      tokens.append(token)
    unfinished = [u and token not in ends for u, token in zip(unfinished, tokens, strict=True)]
    yield [token if u else None for u, token in zip(unfinished, tokens, strict=True)]
    if not remaining or not any(unfinished):
      return
    logits = engine(np.array([[token] for token in tokens]))
