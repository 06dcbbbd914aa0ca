import math

import numpy as np
import pytest
from conftest import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, UOp

import transformer
from tinyformer.generation.kv_cache import KVCache
from tinyformer.kernels.attention import attention
from transformer import causal_mask, dot_product, padding_mask, scaled_dot_product


def both(q, k, v, mask=None, similarity=scaled_dot_product, gradients=True):
  """Output and gradients of the kernel and of the plain form, whose heads share no keys."""
  share = q.shape[1] // k.shape[1]
  d, results = Tensor(normal(*q.shape, seed=9)), []
  for f, keys in (
    (attention, (k, v)),
    (transformer.attention, (k.repeat_interleave(share, 1), v.repeat_interleave(share, 1))),
  ):
    y = f(q, *keys, mask, similarity)
    results.append(
      [t.numpy() for t in (y, *((y * d).sum().gradient(q, k, v) if gradients else ()))]
    )
  return results


def check(*args, **options):
  for got, want in zip(*both(*args, **options)):
    np.testing.assert_allclose(got, want, atol=2e-5 * max(1, np.abs(want).max(initial=0)))


def inputs(B, H, G, T, S, K):
  return tuple(
    Tensor(normal(*shape, seed=i)).realize()
    for i, shape in enumerate([(B, H, T, K), (B, G, S, K), (B, G, S, K)])
  )


SIZES = [
  (1, 1, 1, 1, 1, 1),
  (2, 3, 3, 1, 70, 64),
  (2, 4, 2, 1, 65, 17),
  (1, 2, 2, 64, 64, 32),
  (2, 2, 1, 50, 100, 64),
  (1, 1, 1, 49, 48, 100),
  (1, 2, 2, 3, 200, 5),
]


@pytest.mark.parametrize(
  "sizes", [*SIZES[:4], *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in SIZES[4:])]
)
def test_it_and_its_gradients_are_the_plain_ones(sizes):
  check(*inputs(*sizes))


@pytest.mark.parametrize(
  "sizes",
  [
    (2, 2, 1, 50, 100, 64),
    (1, 2, 2, 48, 20, 16),
    *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in SIZES if 1 < sizes[3] != 50),
  ],
)
def test_under_a_causal_mask(sizes):
  check(*inputs(*sizes), causal_mask(sizes[3], sizes[4]))


def test_the_gradient_of_a_long_text_needs_no_long_stack():
  check(*inputs(1, 1, 1, 40_000, 2, 64))


@settings(max_examples=5, deadline=None)
@given(
  st.integers(1, 2),
  st.sampled_from([(1, 1), (2, 1), (3, 3)]),
  st.integers(1, 60),
  st.integers(1, 110),
  st.integers(1, 70),
  st.sampled_from(["none", "causal", "padding", "bias"]),
)
def test_odd_shapes(B, heads, T, S, K, kind):
  H, G = heads
  keep = Tensor(np.random.default_rng(T).integers(0, 2, (B, S)))
  mask = {
    "none": None,
    "causal": causal_mask(T, S),
    "padding": padding_mask(keep).realize(),
    "bias": Tensor(normal(H, T, S, seed=5)).realize(),
  }[kind]
  check(*inputs(B, H, G, T, S, K), mask, gradients=False)


@pytest.mark.parametrize("T", [1, 9])
def test_masks_that_add(T):
  for mask in (
    padding_mask(Tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]])),
    Tensor(normal(3, T, 5)),
    Tensor(normal(2, 1, T, 5)),
    Tensor(normal(5)),
  ):
    check(*inputs(2, 3, 3, T, 5, 8), mask.realize())


def test_the_gradient_of_a_learned_mask():
  q, k, v = inputs(2, 3, 3, 4, 5, 8)
  slopes = []
  for f in (attention, transformer.attention):
    mask = Tensor(normal(3, 4, 5)).realize()
    slopes.append((f(q, k, v, mask) * q).sum().gradient(mask)[0].numpy())
  np.testing.assert_allclose(*slopes, atol=1e-5)


@pytest.mark.parametrize("T", [1, 9])
def test_a_query_without_keys_gets_zeros(T):
  assert not attention(*inputs(1, 1, 1, T, 5, 8), Tensor.full((T, 5), -math.inf)).numpy().any()


@pytest.mark.parametrize("T", [1, 9])
def test_other_similarities_and_scores_beyond_reason(T):
  q, k, v = inputs(1, 2, 2, T, 50, 8)
  check(q, k, v, None, dot_product)
  check(q, k, v, None, lambda q, k: scaled_dot_product(q, k) * 0.5)  # no kernel for this one
  check(q * 100, k * 100, v, gradients=False)


@pytest.mark.parametrize("T", [1, 9])
def test_what_is_no_number_stays_one(T):
  q, k, v = inputs(1, 1, 1, T, 50, 8)
  assert np.isnan(attention(q * math.nan, k, v).numpy()).all()


@pytest.mark.parametrize("T", [1, 5])
def test_a_cache_is_read_where_it_lies(T):
  cache, start = KVCache(1, 2, 3, 40, 8), UOp.variable("start", 0, 35)
  k, v = (Tensor(normal(2, 3, 40, 8, seed=i)).realize() for i in (1, 2))
  for t, kept in ((k, cache.k[0]), (v, cache.v[0])):
    kept.assign(t).realize()
  q, new = Tensor(normal(2, 3, T, 8)).realize(), Tensor(normal(2, 3, T, 8, seed=4)).realize()
  for at in (0, 7, 35):
    got = attention(
      q,
      *cache.layer(0, start.bind(at))(new, new),
      causal_mask(T, start.bind(at) + T) if T > 1 else None,
    ).numpy()
    end = at + T
    parts = [t[:, :, :at].cat(new, dim=2).contiguous() for t in (k, v)]
    np.testing.assert_allclose(
      got, transformer.attention(q, *parts, causal_mask(T, end)).numpy(), atol=1e-5
    )
    for t, kept in ((k, cache.k[0]), (v, cache.v[0])):
      kept.assign(t).realize()


@pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel is for the CPU")
def test_a_kernel_is_used_where_it_serves_and_nowhere_else():
  def used(q, k, v, *rest):
    return "attention_" in str(attention(q, k, v, *rest).schedule_linear())

  q, k, v = inputs(1, 2, 2, 4, 5, 8)
  assert used(q, k, v) and used(q, k, v, causal_mask(4, 5))
  assert not used(q.half(), k.half(), v.half()) and not used(
    q, k, v, None, lambda q, k: scaled_dot_product(q, k) * 2
  )
