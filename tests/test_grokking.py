import numpy as np
from tinygrad import Tensor

from experiments.grokking import Adder, nats, pairs, shares, split, waves
from transformer import causal_mask


def wave(p: int, k: int, dim: int, seed: int = 0) -> np.ndarray:
  """(p, dim) of one frequency, every column with a phase and a height of its own."""
  draw = np.random.default_rng([seed, k])
  return (
    draw.uniform(1, 2, dim)
    * np.cos(2 * np.pi * k * np.arange(p)[:, None] / p + draw.uniform(0, 6, dim))
  ).astype(np.float32)


def test_pairs_are_all_there_are_and_sums_stay_below_the_prime():
  ids, sums = pairs(7)
  assert {tuple(row) for row in ids.tolist()} == {(a, b, 7) for a in range(7) for b in range(7)}
  assert all(s == (a + b) % 7 for (a, b, _), [s] in zip(ids.tolist(), sums.tolist()))


def test_no_pair_is_both_learned_and_held_out():
  learn, held = split(3481, 0.4, seed=3)
  assert sorted([*learn, *held]) == list(range(3481)) and len(learn) == 1392
  assert (split(3481, 0.4, seed=3)[0] == learn).all() and (
    split(3481, 0.4, seed=4)[0] != learn
  ).any()


def test_shares_are_those_of_the_waves_that_an_embedding_was_made_of():
  parts = {0: np.ones((11, 5), np.float32), 2: wave(11, 2, 5), 5: 3 * wave(11, 5, 5)}
  got, norms = shares(sum(parts.values())), {k: float((x**2).sum()) for k, x in parts.items()}
  assert len(got) == 6
  assert np.allclose(got, [norms.get(k, 0) / sum(norms.values()) for k in range(6)], atol=1e-6)


def test_waves_keep_what_they_are_asked_for_and_nothing_else():
  a, b = wave(11, 2, 5), wave(11, 4, 5)
  assert np.allclose(waves(a + b + 1, [2]), a, atol=1e-6)
  assert np.allclose(waves(a + b + 1, [0, 4]), b + 1, atol=1e-6)


def test_nats_of_no_opinion_are_the_logarithm_of_the_choices():
  assert np.isclose(nats(np.zeros((4, 59)), np.arange(4)[:, None]), np.log(59))
  sure = np.full((2, 3), -1e9)
  sure[0, 1] = sure[1, 2] = 1e9
  assert nats(sure, np.array([[1], [2]])) == 0 and nats(sure, np.array([[0], [2]])) > 1e8


def test_asking_at_the_last_place_alone_is_the_whole_layer_read_there():
  model, ids = Adder(5, dim=8, heads=2, ff_dim=12), Tensor([[1, 4, 5], [3, 3, 5]])
  whole = model.head(model.block(model.tokens(ids) + model.positions, mask=causal_mask(3, 3)))
  assert np.allclose(model(ids).numpy()[:, 0], whole.numpy()[:, 2], atol=1e-5)
