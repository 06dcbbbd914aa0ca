"""layers/positions.py against plain Python, numpy and published values."""

import math
from functools import partial

import numpy as np
import pytest
from conftest import normal
from tinygrad import Tensor, UOp

from layers import positions
from transformer import causal_mask, sinusoids


def test_sinusoids_in_halves_are_reordered_sinusoids():
  np.testing.assert_allclose(
    positions.sinusoids_in_halves(Tensor.arange(2), 8).numpy()[1],
    [0.841471, 0.099833, 0.01, 0.001, 0.540302, 0.995004, 0.99995, 1.0],
    atol=1e-6,
  )
  interleaved = sinusoids(50, 12).numpy()
  halves = positions.sinusoids_in_halves(Tensor.arange(50), 12).numpy()
  expected = np.concatenate([interleaved[:, ::2], interleaved[:, 1::2]], 1)
  np.testing.assert_array_equal(halves, expected)
  with pytest.raises(ValueError, match="odd"):
    positions.sinusoids_in_halves(Tensor.arange(3), 5)


@pytest.mark.parametrize("rope", [positions.apply_rope_half, positions.apply_rope_interleaved])
def test_rope_products_depend_on_the_distance_only(rope):
  q, k = Tensor(normal(1, 8)), Tensor(normal(1, 8, seed=1))
  inv_freq = positions.rope_inv_freq(8)

  def product(a, b):
    rotated_q = rope(q, *positions.rope_cos_sin(Tensor([a]), inv_freq))
    rotated_k = rope(k, *positions.rope_cos_sin(Tensor([b]), inv_freq))
    return (rotated_q * rotated_k).sum().item()

  assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
  assert abs(product(7, 3) - product(7, 4)) > 1e-2
  at_position_0 = rope(q, *positions.rope_cos_sin(Tensor([0]), inv_freq))
  np.testing.assert_allclose(at_position_0.numpy(), q.numpy(), atol=1e-6)
  x = Tensor(normal(5, 8))
  rotated = rope(x, *positions.rope_cos_sin(Tensor.arange(3, 8), inv_freq))
  squared_lengths = [t.square().sum(-1).numpy() for t in (rotated, x)]
  np.testing.assert_allclose(*squared_lengths, rtol=1e-5)


def test_rope_rotates_each_pair_by_its_angle():
  """Pair i at position p is rotated by p / 10000^(2i / D), in both pairings."""
  x, p, D = normal(1, 6)[0], 5, 6
  pairs = [
    complex(*pair) * np.exp(1j * p / 10000 ** (2 * i / D)) for i, pair in enumerate(x.reshape(3, 2))
  ]
  cos_sin = positions.rope_cos_sin(Tensor([p]), positions.rope_inv_freq(D))
  interleaved = positions.apply_rope_interleaved(Tensor(x[None]), *cos_sin).numpy()[0]
  expected = [y for z in pairs for y in (z.real, z.imag)]
  np.testing.assert_allclose(interleaved, expected, atol=1e-5)
  reordered = Tensor(x.reshape(3, 2).T.reshape(1, 6).copy())
  half = positions.apply_rope_half(reordered, *cos_sin).numpy()[0]
  expected = [z.real for z in pairs] + [z.imag for z in pairs]
  np.testing.assert_allclose(half, expected, atol=1e-5)


def test_partial_rope_rotates_the_first_components_only():
  x = normal(2, 3, 5, 8)
  cos, sin = positions.rope_cos_sin(Tensor.arange(5), positions.rope_inv_freq(6))
  rope = partial(positions.apply_rope_half, cos=cos, sin=sin)
  rotated = positions.apply_rope_partial(Tensor(x), rope, 6).numpy()
  np.testing.assert_array_equal(rotated[..., 6:], x[..., 6:])
  expected = rope(Tensor(x[..., :6].copy())).numpy()
  np.testing.assert_allclose(rotated[..., :6], expected, atol=1e-6)


def test_later_positions_have_the_later_rows():
  inv_freq, start = positions.rope_inv_freq(8), UOp.variable("start", 0, 90)
  all_rows = [t.numpy() for t in positions.rope_cos_sin(Tensor.arange(20), inv_freq)]
  for first in (13, start.bind(13)):
    later = positions.rope_cos_sin(Tensor.arange(4) + first, inv_freq)
    for actual, expected in zip(later, all_rows, strict=True):
      np.testing.assert_allclose(actual.numpy(), expected[13:17], atol=1e-6)


def test_rope_scaling_changes_the_frequencies():
  plain = positions.rope_inv_freq(8)
  linear = positions.rope_inv_freq(8, scaling={"type": "linear", "factor": 4.0})
  assert linear == [f / 4 for f in plain]
  ntk = positions.rope_inv_freq(8, scaling={"rope_type": "ntk", "factor": 4.0})
  assert ntk[0] == 1 and ntk[-1] == pytest.approx(plain[-1] / 4)
  assert positions.rope_inv_freq(8, scaling={"rope_type": "default"}) == plain
  # Within the context, dynamic scaling changes nothing.
  assert positions.rope_inv_freq(8, scaling={"rope_type": "dynamic", "factor": 2.0}) == plain
  with pytest.raises(ValueError, match="longrope"):
    positions.rope_inv_freq(8, scaling={"rope_type": "longrope", "factor": 2})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
  "settings, beta_fast, beta_slow",
  [({}, 32, 1), ({"beta_fast": 16, "beta_slow": 2}, 16, 2), ({"truncate": False}, 32, 1)],
)
def test_yarn_keeps_pairs_that_rotate_often_and_stretches_those_that_rotate_rarely(
  settings, beta_fast, beta_slow
):
  plain = positions.rope_inv_freq(128, 1e6)
  scaled = positions.rope_inv_freq(128, 1e6, YARN | settings)
  kinds = set()
  for f, g in zip(plain, scaled, strict=True):
    full_turns = 4096 * f / (2 * math.pi)
    if full_turns > beta_fast:
      assert g == pytest.approx(f, rel=1e-12)
      kinds.add("kept")
    elif full_turns < beta_slow:
      assert g == pytest.approx(f / 4, rel=1e-12)
      kinds.add("stretched")
    else:
      assert f / 4 <= g <= f
      kinds.add("between")
  assert len(kinds) == 3
  assert scaled == sorted(scaled, reverse=True)


def test_yarn_scales_queries_and_keys_by_the_logarithm_of_its_factor():
  assert positions.rope_scale({"rope_type": "linear", "factor": 4.0}) == 1
  assert positions.rope_scale(YARN) == pytest.approx(0.1 * math.log(4) + 1)
  assert positions.rope_scale(YARN | {"attention_factor": 1.3}) == 1.3
  ratio = (0.0707 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
  mscales = {"mscale": 0.707, "mscale_all_dim": 0.5}
  assert positions.rope_scale(YARN | mscales) == pytest.approx(ratio)
  inv_freq = positions.rope_inv_freq(8)
  cos, sin = positions.rope_cos_sin(Tensor.arange(5), inv_freq, scale=1.3)
  np.testing.assert_allclose((cos.square() + sin.square()).numpy(), 1.3**2, atol=1e-5)


def test_llama3_scaling_keeps_short_wavelengths_and_stretches_long_ones():
  scaling = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  plain, scaled = positions.rope_inv_freq(128, 5e5), positions.rope_inv_freq(128, 5e5, scaling)
  for f, g in zip(plain, scaled, strict=True):
    wavelength = 2 * math.pi / f
    if wavelength < 8192 / 4:
      assert g == f
    elif wavelength > 8192:
      assert g == pytest.approx(f / 8)
    else:
      assert f / 8 < g < f
  assert scaled == sorted(scaled, reverse=True)


def check_rows_are_aligned_with_the_last_key(bias):
  """A bias (..., T, S) must equal the last T rows of the (S, S) one, also for symbolic sizes."""
  square = bias(12, 12).numpy()
  for T, S in ((5, 12), (1, 7)):
    np.testing.assert_allclose(bias(T, S).numpy(), square[..., S - T : S, :S], atol=1e-6)
  start = UOp.variable("start", 0, 11).bind(7)
  symbolic = bias(5, start + 5).sum(-1).numpy()
  np.testing.assert_allclose(symbolic, square[..., 7:12, :12].sum(-1), atol=1e-4)


@pytest.mark.parametrize("window", [1, 3, 12])
def test_window_mask_allows_the_last_keys_only(window):
  mask = positions.window_mask(12, 12, window).numpy()
  for i, j in np.ndindex(12, 12):
    assert mask[i, j] == (0 if 0 <= i - j < window else -math.inf)
  if window == 12:
    np.testing.assert_array_equal(mask, causal_mask(12, 12).numpy())
  check_rows_are_aligned_with_the_last_key(
    lambda T, S: positions.window_mask(T, S, window).maximum(-9)
  )


@pytest.mark.parametrize("distance", [0, 3, 11])
def test_local_mask_allows_the_keys_near_the_query_on_both_sides(distance):
  mask = positions.local_mask(12, 12, distance).numpy()
  for i, j in np.ndindex(12, 12):
    assert mask[i, j] == (0 if abs(i - j) <= distance else -math.inf)


def test_alibi_slopes_and_biases():
  powers = [2.0**-i for i in range(1, 9)]
  assert positions.alibi_slopes(8) == powers
  expected = [*powers, 0.707107, 0.353553, 0.176777, 0.088388]
  np.testing.assert_allclose(positions.alibi_slopes(12), expected, atol=1e-6)
  assert positions.alibi(6, 6, 2).numpy()[1, 5, 2] == -3 * 2.0**-8
  check_rows_are_aligned_with_the_last_key(lambda T, S: positions.alibi(T, S, 3))


def test_t5_buckets():
  """The expected values were computed with Raffel et al.'s code."""

  def bidirectional(query, keys):
    return positions.bucket(Tensor([query - k for k in keys]), True).numpy().tolist()

  assert bidirectional(0, range(10)) == [0, 17, 18, 19, 20, 21, 22, 23, 24, 24]
  assert bidirectional(9, range(10)) == [8, 8, 7, 6, 5, 4, 3, 2, 1, 0]
  keys = [7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 127, 500]
  # fmt: off
  assert bidirectional(0, keys) == [
    23, 24, 24, 25, 25, 26, 26, 27, 27, 28, 28, 29, 29, 30, 30, 31, 31, 31,
  ]
  # fmt: on
  distances = Tensor([15, 16, 18, 19, 20, 21, 23, 24, 127, 999, 0, -1, -50])
  unidirectional = positions.bucket(distances, False).numpy().tolist()
  assert unidirectional == [15, 16, 16, 17, 17, 18, 18, 19, 31, 31, 0, 0, 0]


def test_relative_bias_depends_on_the_bucket_of_the_distance():
  relative_bias = positions.RelativeBias(3, bidirectional=True)
  bias, weight = relative_bias(9, 9).numpy(), relative_bias.weight.numpy()
  assert bias.shape == (3, 9, 9)
  assert (bias[:, 4, 4] == weight[0]).all()
  assert (bias[:, 4, 2] == weight[2]).all()
  assert (bias[:, 2, 4] == weight[18]).all()
  np.testing.assert_array_equal(bias[:, :-1, :-1], bias[:, 1:, 1:])
  check_rows_are_aligned_with_the_last_key(relative_bias)
  [gradient] = relative_bias(9, 9).sum().gradient(relative_bias.weight)
  assert np.abs(gradient.numpy()).sum() == 3 * 81
