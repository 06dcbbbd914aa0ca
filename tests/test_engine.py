import collections
import itertools

import numpy as np
import pytest
from conftest import randomise

from models.gpt2 import GPT2
from tinyformer.generation.engine import Engine, beam_search, generate, probabilities, stop_at

V, C = 13, 24
LOGITS = np.random.default_rng(3).standard_normal(V).astype(np.float32) * 2


@pytest.fixture(scope="module")
def model():
  return randomise(GPT2(V, C, 12, 3, 2))


@pytest.fixture(scope="module")
def readers(model):
  """One reader for each number of texts, read from the beginning each time it is asked for."""
  made = {}

  def reader(batch=1):
    made.setdefault(batch, Engine(model, batch)).position = 0
    return made[batch]

  return reader


@pytest.fixture(scope="module")
def log_p(model):
  """The log-probabilities of the token after ids, by a reader of its own: test_cache.py holds readers against the model."""
  reader = Engine(model)

  def of(ids):
    reader.position = 0
    x = reader(np.array([ids]))[0].astype(np.float64)
    return x - np.logaddexp.reduce(x)

  return of


# choosing a token


def test_a_temperature_of_zero_leaves_the_likeliest():
  assert probabilities(LOGITS, 0).tolist() == np.eye(V)[LOGITS.argmax()].tolist()


def test_temperature_divides_the_logits():
  for t in (0.5, 1, 2):
    np.testing.assert_allclose(
      probabilities(LOGITS, t), np.exp(LOGITS / t) / np.exp(LOGITS / t).sum(), rtol=1e-6
    )
  assert probabilities(LOGITS * 1e6, 1e-3).max() == 1  # no overflow


def test_top_k_keeps_the_k_likeliest():
  full = probabilities(LOGITS)
  for k in range(1, V):
    p = probabilities(LOGITS, top_k=k)
    kept = np.argsort(-full)[:k]
    np.testing.assert_allclose(p[kept], full[kept] / full[kept].sum())
    assert (p > 0).sum() == k
  np.testing.assert_array_equal(probabilities(LOGITS, top_k=0), full)
  np.testing.assert_array_equal(probabilities(LOGITS, top_k=1000), full)


def test_top_p_keeps_the_fewest_that_reach_p():
  full = probabilities(LOGITS)
  for top_p in (1e-9, 0.1, 0.5, 0.9, 0.999):
    kept = probabilities(LOGITS, top_p=top_p) > 0
    assert full[kept].sum() >= top_p > full[kept].sum() - full[kept].min()
    assert full[kept].min() > full[~kept].max(initial=0)


# texts


def test_greedy_takes_the_likeliest_each_time(log_p, readers):
  ids = [1, 2, 3]
  for [token] in generate(readers(), ids, 10, temperature=0):
    assert token == log_p(ids).argmax()
    ids = ids + [token]
  assert len(ids) == 13


def test_the_same_seed_writes_the_same_text_alone_or_among_others(readers):
  def texts(batch, seed):
    return list(zip(*generate(readers(batch), [5], 12, seed=seed)))

  assert texts(1, 7) == texts(1, 7) and texts(3, 7)[0] == texts(1, 7)[0]
  assert len(set(texts(3, 7))) == 3 and texts(1, 8) != texts(1, 7)


def test_draws_follow_the_probabilities(log_p, readers):
  seen = collections.Counter(
    next(generate(readers(), [5], 1, 1.0, top_k=0, seed=s))[0] for s in range(300)
  )
  want = np.exp(log_p([5]))
  assert all(abs(seen[t] / 300 - want[t]) < 4 * np.sqrt(want[t] / 300) + 0.005 for t in range(V))


def test_a_text_that_has_met_the_end_is_over(readers):
  greedy = [t for [t] in generate(readers(), [1], 12, temperature=0)]
  end = greedy[4]
  assert [t for [t] in generate(readers(), [1], 12, temperature=0, end=end)] == greedy[
    : greedy.index(end)
  ] + [None]
  rows = list(zip(*generate(readers(3), [5], 15, seed=1, end=greedy[0])))
  for row in rows:
    assert None not in row or set(row[row.index(None) :]) == {None}


def test_it_ends_where_the_context_does(readers):
  assert len(list(generate(readers(), [1] * 20, 100))) == C - 20
  with pytest.raises(ValueError, match="leave no room"):
    next(generate(readers(), [1] * C, 5))


def test_a_second_text_goes_on_from_the_first(log_p, readers):
  reader = readers()
  first = [t for [t] in generate(reader, [1, 2], 3, temperature=0)]
  assert reader.position == 4  # the last token is not read yet
  [second] = next(generate(reader, [first[-1], 7], 1, temperature=0))
  assert second == log_p([1, 2, *first, 7]).argmax()


# beams


def every_text(log_p, ids, n):
  return {
    t: sum(log_p(ids + list(t[:i]))[t[i]] for i in range(n))
    for t in itertools.product(range(V), repeat=n)
  }


def test_as_many_beams_as_texts_find_the_best(log_p, readers):
  exact = sorted(every_text(log_p, [4], 2).items(), key=lambda item: -item[1])
  found = beam_search(readers(V), [4], 2, length_penalty=lambda n: 1)
  assert [tuple(ids) for ids, _ in found[:5]] == [ids for ids, _ in exact[:5]]
  np.testing.assert_allclose(
    [score for _, score in found[:5]], [score for _, score in exact[:5]], atol=1e-5
  )


def test_one_beam_is_greedy(readers):
  [(ids, score)] = beam_search(readers(1), [4, 5], 8)
  assert ids == [t for [t] in generate(readers(), [4, 5], 8, temperature=0)] and score < 0


def test_more_beams_find_no_worse(readers):
  best = [beam_search(readers(n), [6], 8, lambda n: 1)[0][1] for n in (1, V)]
  assert best[1] >= best[0]


def test_the_length_penalty_chooses_between_short_and_long(log_p, readers):
  def best(penalty, end):
    return beam_search(readers(4), [4], 10, penalty, end)[0]

  end = int(log_p([4]).argsort()[-2])  # likely enough to be met at once
  short, long_ = best(lambda n: 1, end), best(lambda n: float(n) ** 3, end)
  assert len(short[0]) <= len(long_[0]) and long_[0] != short[0]
  for ids, score in (short, long_):
    total = sum(log_p([4] + ids[:i])[ids[i]] for i in range(len(ids)))
    assert score == pytest.approx(total / (1 if ids == short[0] else len(ids) ** 3), abs=1e-5)


# stop texts


@pytest.mark.parametrize(
  "pieces, stops, want",
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
def test_a_text_ends_before_its_stop(pieces, stops, want):
  assert "".join(stop_at(pieces, stops)) == want


def test_text_comes_as_soon_as_it_can():
  pieces = stop_at(iter(["x", "ya", "b", "c"]), ["abd"])
  assert [next(pieces) for _ in range(4)] == ["x", "y", "", "abc"]
