"""Sampling, beam search and stop texts, compared with direct computations from the logits."""

import collections
import itertools

import numpy as np
import pytest
from conftest import randomise

from models.gpt2 import GPT2, GPT2Config
from tinyformer.generation import Engine, generate, probabilities, stop_at
from tinyformer.generation.beam_search import beam_search
from tinyformer.generation.sampling import most_probable

V, C = 13, 24
LOGITS = np.random.default_rng(3).standard_normal(V).astype(np.float32) * 2


@pytest.fixture(scope="module")
def model():
  return randomise(GPT2(GPT2Config(V, C, 12, 3, 2)))


@pytest.fixture(scope="module")
def engine(model):
  """Return a function: the batch size -> an engine at position 0, shared by all tests."""
  engines = {}

  def rewound_engine(batch=1):
    engines.setdefault(batch, Engine(model, batch)).position = 0
    return engines[batch]

  return rewound_engine


@pytest.fixture(scope="module")
def log_p(model):
  """Return a function: token IDs -> the log-probabilities (V,) of the next token.

  It uses an engine of its own; test_kv_cache.py compares engines with the model.
  """
  engine = Engine(model)

  def log_probabilities(ids):
    engine.position = 0
    logits = engine(np.array([ids]))[0].astype(np.float64)
    return logits - np.logaddexp.reduce(logits)

  return log_probabilities


# probabilities


def test_temperature_0_selects_the_largest_logit():
  assert probabilities(LOGITS, 0).tolist() == np.eye(V)[LOGITS.argmax()].tolist()


def test_temperature_divides_the_logits():
  for temperature in (0.5, 1, 2):
    exp = np.exp(LOGITS / temperature)
    np.testing.assert_allclose(probabilities(LOGITS, temperature), exp / exp.sum(), rtol=1e-6)
  # The exponential must not overflow.
  assert probabilities(LOGITS * 1e6, 1e-3).max() == 1


def test_top_k_selects_the_k_most_probable_tokens():
  full = probabilities(LOGITS)
  for k in range(1, V):
    p = probabilities(LOGITS, top_k=k)
    selected = np.argsort(-full)[:k]
    np.testing.assert_allclose(p[selected], full[selected] / full[selected].sum())
    assert (p > 0).sum() == k
  np.testing.assert_array_equal(probabilities(LOGITS, top_k=0), full)
  np.testing.assert_array_equal(probabilities(LOGITS, top_k=1000), full)


@pytest.mark.parametrize("spread", [0, 0.3, 4])
@pytest.mark.parametrize("total", [0.01, 0.5, 0.99, 1.0])
def test_the_most_probable_tokens_are_the_first_of_all_sorted_tokens(spread, total):
  # Rounding makes many probabilities equal.
  p = np.exp(spread * np.random.default_rng(0).normal(size=3000).round(1))
  p /= p.sum()
  tokens = most_probable(p, total)
  assert (tokens == np.argsort(-p, kind="stable")[: len(tokens)]).all()
  assert p[tokens].sum() > total - 1e-12


def test_top_p_selects_the_fewest_tokens_that_reach_p():
  full = probabilities(LOGITS)
  for top_p in (1e-9, 0.1, 0.5, 0.9, 0.999):
    selected = probabilities(LOGITS, top_p=top_p) > 0
    assert full[selected].sum() >= top_p > full[selected].sum() - full[selected].min()
    assert full[selected].min() > full[~selected].max(initial=0)


def test_logits_that_cannot_be_sampled_may_be_infinite():
  """The engine may set the logits that are not among the top k to -inf."""
  smallest = np.sort(LOGITS)[-5]
  candidates = np.where(smallest <= LOGITS, LOGITS, -np.inf)
  top_5 = probabilities(LOGITS, 0.8, 5)
  np.testing.assert_array_equal(probabilities(candidates, 0.8, 5), top_5)
  selected = probabilities(candidates, 0.8, 5, 0.5) > 0
  assert top_5[selected].sum() >= 0.5 > top_5[selected].sum() - top_5[selected].min()
  assert top_5[selected].min() > top_5[~selected].max()


# generate


def test_greedy_decoding_takes_the_most_probable_token_at_each_step(log_p, engine):
  ids = [1, 2, 3]
  for [token] in generate(engine(), ids, 10, temperature=0):
    assert token == log_p(ids).argmax()
    ids = [*ids, token]
  assert len(ids) == 13


def test_a_seed_determines_a_text_at_every_batch_size(engine):
  def texts(batch, seed):
    return list(zip(*generate(engine(batch), [5], 12, seed=seed), strict=True))

  assert texts(1, 7) == texts(1, 7)
  assert texts(3, 7)[0] == texts(1, 7)[0]
  assert len(set(texts(3, 7))) == 3
  assert texts(1, 8) != texts(1, 7)


def test_sampled_frequencies_match_the_probabilities(log_p, engine):
  num_samples = 300
  counts = collections.Counter(
    next(generate(engine(), [5], 1, 1.0, top_k=0, seed=seed))[0] for seed in range(num_samples)
  )
  expected = np.exp(log_p([5]))
  for token in range(V):
    tolerance = 4 * np.sqrt(expected[token] / num_samples) + 0.005
    assert abs(counts[token] / num_samples - expected[token]) < tolerance


def test_a_text_yields_none_from_its_end_token_on(engine):
  greedy = [token for [token] in generate(engine(), [1], 12, temperature=0)]
  end = greedy[4]
  actual = [token for [token] in generate(engine(), [1], 12, temperature=0, end=end)]
  assert actual == [*greedy[: greedy.index(end)], None]
  rows = list(zip(*generate(engine(3), [5], 15, seed=1, end=greedy[0]), strict=True))
  for row in rows:
    assert None not in row or set(row[row.index(None) :]) == {None}


def test_generation_stops_at_the_end_of_the_context(engine):
  assert len(list(generate(engine(), [1] * 20, 100))) == C - 20
  with pytest.raises(ValueError, match=r"24 tokens leave no room .* context of 24"):
    next(generate(engine(), [1] * C, 5))


def test_a_second_call_continues_the_text_of_the_first(log_p, engine):
  continued = engine()
  first = [token for [token] in generate(continued, [1, 2], 3, temperature=0)]
  # The last generated token has not been processed yet.
  assert continued.position == 4
  [second] = next(generate(continued, [first[-1], 7], 1, temperature=0))
  assert second == log_p([1, 2, *first, 7]).argmax()


# beam search


def all_continuations(log_p, ids, n):
  """Return the sum of log-probabilities of every sequence of n tokens after ids."""
  return {
    tokens: sum(log_p(ids + list(tokens[:i]))[tokens[i]] for i in range(n))
    for tokens in itertools.product(range(V), repeat=n)
  }


def test_beam_search_with_v_beams_finds_the_best_two_tokens(log_p, engine):
  exact = sorted(all_continuations(log_p, [4], 2).items(), key=lambda item: -item[1])[:5]
  found = beam_search(engine(V), [4], 2, length_penalty=lambda n: 1)[:5]
  assert [tuple(ids) for ids, _ in found] == [ids for ids, _ in exact]
  np.testing.assert_allclose(
    [score for _, score in found], [score for _, score in exact], atol=1e-5
  )


def test_beam_search_with_one_beam_equals_greedy_decoding(engine):
  [(ids, score)] = beam_search(engine(1), [4, 5], 8)
  assert ids == [token for [token] in generate(engine(), [4, 5], 8, temperature=0)]
  assert score < 0


def test_more_beams_find_no_lower_score(engine):
  best = [beam_search(engine(n), [6], 8, lambda n: 1)[0][1] for n in (1, V)]
  assert best[1] >= best[0]


def test_the_length_penalty_selects_between_short_and_long_texts(log_p, engine):
  def best(penalty, end):
    return beam_search(engine(4), [4], 10, penalty, end)[0]

  # The second most probable token ends one of the beams at the first step.
  end = int(log_p([4]).argsort()[-2])
  short = best(lambda n: 1, end)
  long = best(lambda n: float(n) ** 3, end)
  assert len(short[0]) <= len(long[0])
  assert long[0] != short[0]
  for ids, score in (short, long):
    total = sum(log_p([4, *ids[:i]])[ids[i]] for i in range(len(ids)))
    penalty = 1 if ids == short[0] else len(ids) ** 3
    assert score == pytest.approx(total / penalty, abs=1e-5)


# stop texts


@pytest.mark.parametrize(
  "chunks, stops, expected",
  [
    (["ab", "cd"], [], "abcd"),
    (["ab", "cd"], ["bc"], "a"),
    (["ab", "cd", "e"], ["x"], "abcde"),
    (["a", "b", "a", "b", "c"], ["abc"], "ab"),
    (["abab"], ["c", "ba"], "a"),
    (["\n", "\n", "x"], ["\n\n"], ""),
    (["ab"], ["abc"], "ab"),
  ],
)
def test_a_text_ends_before_the_first_stop_text(chunks, stops, expected):
  assert "".join(stop_at(chunks, stops)) == expected


def test_text_is_yielded_as_soon_as_it_cannot_begin_a_stop_text():
  chunks = stop_at(iter(["x", "ya", "b", "c"]), ["abd"])
  assert [next(chunks) for _ in range(4)] == ["x", "y", "", "abc"]
