import math

import numpy as np
import pytest
from conftest import normal
from tinygrad import Tensor, UOp

from layers import positions
from transformer import causal_mask, sinusoids


def test_sinusoids_in_halves_are_the_papers_in_another_order():
  np.testing.assert_allclose(
    positions.sinusoids_in_halves(2, 8).numpy()[1],
    [0.841471, 0.099833, 0.01, 0.001, 0.540302, 0.995004, 0.99995, 1.0],
    atol=1e-6,
  )
  plain, halves = sinusoids(50, 12).numpy(), positions.sinusoids_in_halves(50, 12).numpy()
  np.testing.assert_array_equal(halves, np.concatenate([plain[:, ::2], plain[:, 1::2]], 1))
  with pytest.raises(ValueError, match="odd"):
    positions.sinusoids_in_halves(3, 5)


@pytest.mark.parametrize("rope", [positions.apply_rope_half, positions.apply_rope_interleaved])
def test_turned_vectors_know_only_how_far_apart_they_stand(rope):
  q, k, f = Tensor(normal(1, 8)), Tensor(normal(1, 8, seed=1)), positions.rope_inv_freq(8)

  def product(a, b):
    return (
      (rope(q, *positions.rope_cos_sin(a, 1, f)) * rope(k, *positions.rope_cos_sin(b, 1, f)))
      .sum()
      .item()
    )

  assert (
    product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    and abs(product(7, 3) - product(7, 4)) > 1e-2
  )
  np.testing.assert_allclose(
    rope(q, *positions.rope_cos_sin(0, 1, f)).numpy(), q.numpy(), atol=1e-6
  )
  x = Tensor(normal(5, 8))
  np.testing.assert_allclose(
    rope(x, *positions.rope_cos_sin(3, 5, f)).square().sum(-1).numpy(),
    x.square().sum(-1).numpy(),
    rtol=1e-5,
  )


def test_each_pair_turns_by_its_angle():
  """In plain Python: pair i at place p by p / 10000^(2i / D), counted in both orders."""
  x, p, D = normal(1, 6)[0], 5, 6
  pairs = [
    (complex(*pair) * np.exp(1j * p / 10000 ** (2 * i / D)))
    for i, pair in enumerate(x.reshape(3, 2))
  ]
  c = positions.rope_cos_sin(p, 1, positions.rope_inv_freq(D))
  np.testing.assert_allclose(
    positions.apply_rope_interleaved(Tensor(x[None]), *c).numpy()[0],
    [y for z in pairs for y in (z.real, z.imag)],
    atol=1e-5,
  )
  np.testing.assert_allclose(
    positions.apply_rope_half(Tensor(x.reshape(3, 2).T.reshape(1, 6).copy()), *c).numpy()[0],
    [z.real for z in pairs] + [z.imag for z in pairs],
    atol=1e-5,
  )


def test_a_later_start_gives_the_later_rows():
  f, start = positions.rope_inv_freq(8), UOp.variable("start", 0, 90)
  whole = [t.numpy() for t in positions.rope_cos_sin(0, 20, f)]
  for first in (13, start.bind(13)):
    for got, want in zip(positions.rope_cos_sin(first, 4, f), whole):
      np.testing.assert_allclose(got.numpy(), want[13:17], atol=1e-6)


def test_scaled_frequencies():
  plain = positions.rope_inv_freq(8)
  assert positions.rope_inv_freq(8, scaling={"type": "linear", "factor": 4.0}) == [
    f / 4 for f in plain
  ]
  ntk = positions.rope_inv_freq(8, scaling={"rope_type": "ntk", "factor": 4.0})
  assert ntk[0] == 1 and ntk[-1] == pytest.approx(plain[-1] / 4)
  assert positions.rope_inv_freq(8, scaling={"rope_type": "default"}) == plain
  with pytest.raises(ValueError, match="yarn"):
    positions.rope_inv_freq(8, scaling={"rope_type": "yarn", "factor": 2})


def test_llama3s_scaling_keeps_short_waves_and_stretches_long_ones():
  words = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  plain, got = positions.rope_inv_freq(128, 5e5), positions.rope_inv_freq(128, 5e5, words)
  for f, g in zip(plain, got):
    wave = 2 * math.pi / f
    if wave < 8192 / 4:
      assert g == f
    elif wave > 8192:
      assert g == pytest.approx(f / 8)
    else:
      assert f / 8 < g < f
  assert got == sorted(got, reverse=True)


def later_rows_are_rows_of_the_whole(f):
  whole = f(12, 12).numpy()
  for T, S in ((5, 12), (1, 7)):
    np.testing.assert_allclose(f(T, S).numpy(), whole[..., S - T : S, :S], atol=1e-6)
  start = UOp.variable("start", 0, 11).bind(7)
  np.testing.assert_allclose(
    f(5, start + 5).sum(-1).numpy(), whole[..., 7:12, :12].sum(-1), atol=1e-4
  )


@pytest.mark.parametrize("window", [1, 3, 12])
def test_a_window(window):
  mask = positions.window_mask(12, 12, window).numpy()
  for i, j in np.ndindex(12, 12):
    assert mask[i, j] == (0 if 0 <= i - j < window else -math.inf)
  if window == 12:
    np.testing.assert_array_equal(mask, causal_mask(12, 12).numpy())
  later_rows_are_rows_of_the_whole(lambda T, S: positions.window_mask(T, S, window).maximum(-9))


def test_alibi():
  assert positions.alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
  np.testing.assert_allclose(
    positions.alibi_slopes(12),
    [2.0**-i for i in range(1, 9)] + [0.707107, 0.353553, 0.176777, 0.088388],
    atol=1e-6,
  )
  assert positions.alibi(6, 6, 2).numpy()[1, 5, 2] == -3 * 2.0**-8
  later_rows_are_rows_of_the_whole(lambda T, S: positions.alibi(T, S, 3))


def test_t5s_buckets():
  """Numbers of Raffel et al.'s own code, measured."""
  both = lambda q, keys: positions.bucket(Tensor([q - k for k in keys]), True).numpy().tolist()
  assert both(0, range(10)) == [0, 17, 18, 19, 20, 21, 22, 23, 24, 24] and both(9, range(10)) == [
    8,
    8,
    7,
    6,
    5,
    4,
    3,
    2,
    1,
    0,
  ]
  assert both(0, [7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 127, 500]) == [
    23,
    24,
    24,
    25,
    25,
    26,
    26,
    27,
    27,
    28,
    28,
    29,
    29,
    30,
    30,
    31,
    31,
    31,
  ]
  assert positions.bucket(
    Tensor([15, 16, 18, 19, 20, 21, 23, 24, 127, 999, 0, -1, -50]), False
  ).numpy().tolist() == [15, 16, 16, 17, 17, 18, 18, 19, 31, 31, 0, 0, 0]


def test_a_relative_bias_is_learned_by_bucket_and_depends_on_the_distance_alone():
  bias = positions.RelativeBias(3, both=True)
  got, weight = bias(9, 9).numpy(), bias.weight.numpy()
  assert (
    got.shape == (3, 9, 9)
    and (got[:, 4, 4] == weight[0]).all()
    and (got[:, 4, 2] == weight[2]).all()
    and (got[:, 2, 4] == weight[18]).all()
  )
  np.testing.assert_array_equal(got[:, :-1, :-1], got[:, 1:, 1:])
  later_rows_are_rows_of_the_whole(bias)
  assert np.abs(bias(9, 9).sum().gradient(bias.weight)[0].numpy()).sum() == 3 * 81
