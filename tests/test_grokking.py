"""experiments/grokking.py: data, Fourier analysis and the model."""

import numpy as np
from tinygrad import Tensor

from experiments.grokking import (
  ModularAddition,
  all_pairs,
  cross_entropy,
  frequency_shares,
  project_frequencies,
  split_indices,
)
from transformer import causal_mask


def wave(p: int, k: int, dim: int, seed: int = 0) -> np.ndarray:
  """Return (p, dim) of frequency k; each column has its own phase and amplitude."""
  rng = np.random.default_rng([seed, k])
  amplitudes = rng.uniform(1, 2, dim)
  phases = rng.uniform(0, 6, dim)
  angles = 2 * np.pi * k * np.arange(p)[:, None] / p + phases
  return (amplitudes * np.cos(angles)).astype(np.float32)


def test_all_pairs_occur_with_their_sums_modulo_p():
  ids, sums = all_pairs(7)
  assert {tuple(row) for row in ids.tolist()} == {(a, b, 7) for a in range(7) for b in range(7)}
  rows = zip(ids.tolist(), sums.tolist(), strict=True)
  assert all(s == (a + b) % 7 for (a, b, _), [s] in rows)


def test_training_and_validation_indices_are_disjoint_and_depend_on_the_seed():
  train, val = split_indices(3481, 0.4, seed=3)
  assert sorted([*train, *val]) == list(range(3481))
  assert len(train) == 1392
  assert (split_indices(3481, 0.4, seed=3)[0] == train).all()
  assert (split_indices(3481, 0.4, seed=4)[0] != train).any()


def test_frequency_shares_recover_the_waves_in_an_embedding():
  parts = {0: np.ones((11, 5), np.float32), 2: wave(11, 2, 5), 5: 3 * wave(11, 5, 5)}
  norms = {k: float((x**2).sum()) for k, x in parts.items()}
  actual = frequency_shares(sum(parts.values()))
  expected = [norms.get(k, 0) / sum(norms.values()) for k in range(6)]
  assert len(actual) == 6
  assert np.allclose(actual, expected, atol=1e-6)


def test_projection_retains_only_the_given_frequencies():
  a, b = wave(11, 2, 5), wave(11, 4, 5)
  assert np.allclose(project_frequencies(a + b + 1, [2]), a, atol=1e-6)
  assert np.allclose(project_frequencies(a + b + 1, [0, 4]), b + 1, atol=1e-6)


def test_cross_entropy_is_log_p_for_uniform_logits_and_zero_for_certain_ones():
  assert np.isclose(cross_entropy(np.zeros((4, 59)), np.arange(4)[:, None]), np.log(59))
  certain = np.full((2, 3), -1e9)
  certain[0, 1] = certain[1, 2] = 1e9
  assert cross_entropy(certain, np.array([[1], [2]])) == 0
  assert cross_entropy(certain, np.array([[0], [2]])) > 1e8


def test_the_only_query_gives_the_same_logits_as_the_full_layer_at_that_position():
  model = ModularAddition(5, dim=8, heads=2, ff_dim=12)
  ids = Tensor([[1, 4, 5], [3, 3, 5]])
  x = model.tokens(ids) + model.positions
  expected = model.head(model.block(x, mask=causal_mask(3, 3))).numpy()[:, 2]
  assert np.allclose(model(ids).numpy()[:, 0], expected, atol=1e-5)
