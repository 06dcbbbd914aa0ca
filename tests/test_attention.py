"""The attention kernels equal transformer.attention."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, UOp

import transformer
from layers.attention import grouped_attention
from tinyformer.generation.kv_cache import KVCache
from tinyformer.kernels.attention import attention, sum_of_variables
from transformer import causal_mask, dot_product, padding_mask, scaled_dot_product


def kernel_and_plain(q, k, v, mask=None, similarity=scaled_dot_product, gradients=True):
  """Return outputs and gradients of the kernel, and of plain attention with repeated KV heads."""
  group = q.shape[1] // k.shape[1]
  dy = Tensor(normal(*q.shape, seed=9))
  repeated = (k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
  results = []
  for function, keys_and_values in ((attention, (k, v)), (transformer.attention, repeated)):
    y = function(q, *keys_and_values, mask, similarity)
    tensors = (y, *((y * dy).sum().gradient(q, k, v) if gradients else ()))
    results.append([t.numpy() for t in tensors])
  return results


def check(*args, **options):
  for actual, expected in zip(*kernel_and_plain(*args, **options), strict=True):
    tolerance = 2e-5 * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, atol=tolerance)


def inputs(B, H, G, T, S, K):
  """Return random q (B, H, T, K), k and v (B, G, S, K)."""
  shapes = [(B, H, T, K), (B, G, S, K), (B, G, S, K)]
  return tuple(Tensor(normal(*shape, seed=i)).realize() for i, shape in enumerate(shapes))


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
def test_attention_and_its_gradients_equal_the_plain_form(sizes):
  check(*inputs(*sizes))


@pytest.mark.parametrize(
  "sizes",
  [
    (2, 2, 1, 50, 100, 64),
    (1, 2, 2, 48, 20, 16),
    *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in SIZES if 1 < sizes[3] != 50),
  ],
)
def test_causal_attention_and_its_gradients_equal_the_plain_form(sizes):
  check(*inputs(*sizes), causal_mask(sizes[3], sizes[4]))


def test_the_gradient_for_many_queries_does_not_overflow_the_stack():
  """Three floats for each of these queries exceed the usual stack of 8 MiB."""
  code = "from test_attention import *\ncheck(*inputs(1, 1, 1, 800_000, 2, 1))"
  path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
  command = [sys.executable, "-c", code]
  process = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
  assert process.returncode == 0, process.stderr.decode()


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_first_keys_of_a_buffer_is_0_for_its_other_keys(masked):
  """The kernel reads the keys in the buffer instead of copying them."""
  q, k, v = inputs(2, 4, 2, 3, 7, 5)
  mask = Tensor(normal(4, 3, 5, seed=5)).realize() if masked else None
  dy = Tensor(normal(2, 4, 3, 5, seed=9))
  results = []
  for function in (attention, grouped_attention):
    y = function(q, k[:, :, :5], v[:, :, :5], mask)
    results.append([t.numpy() for t in (y, *(y * dy).sum().gradient(q, k, v))])
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-5)
  assert not results[0][2][:, :, 5:].any()


@pytest.mark.parametrize("T", [1, 9])
def test_keys_and_values_in_buffers_of_different_capacities_equal_the_plain_form(T):
  q, k, v = inputs(2, 2, 2, T, 7, 5)
  _, other_k, other_v = inputs(2, 2, 2, T, 5, 5)
  for keys_and_values in ((k[:, :, :5], other_v), (other_k, v[:, :, :5])):
    actual = attention(q, *keys_and_values).numpy()
    np.testing.assert_allclose(
      actual, transformer.attention(q, *keys_and_values).numpy(), atol=1e-5
    )


@pytest.mark.parametrize("S", [1, 7])
def test_a_causal_mask_of_one_query_hides_no_key(S):
  check(*inputs(1, 2, 1, 1, S, 5), causal_mask(1, S))


@settings(max_examples=5, deadline=None)
@given(
  st.integers(1, 2),
  st.sampled_from([(1, 1), (2, 1), (3, 3)]),
  st.integers(1, 60),
  st.integers(1, 110),
  st.integers(1, 70),
  st.sampled_from(["none", "causal", "padding", "bias"]),
)
def test_attention_of_arbitrary_shapes_equals_the_plain_form(B, heads, T, S, K, kind):
  H, G = heads
  attention_mask = Tensor(np.random.default_rng(T).integers(0, 2, (B, S)))
  mask = {
    "none": None,
    "causal": causal_mask(T, S),
    "padding": padding_mask(attention_mask).realize(),
    "bias": Tensor(normal(H, T, S, seed=5)).realize(),
  }[kind]
  check(*inputs(B, H, G, T, S, K), mask, gradients=False)


@pytest.mark.parametrize("T", [1, 9])
def test_additive_masks_of_every_broadcastable_shape_equal_the_plain_form(T):
  masks = (
    padding_mask(Tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]])),
    Tensor(normal(3, T, 5)),
    Tensor(normal(2, 1, T, 5)),
    Tensor(normal(5)),
  )
  for mask in masks:
    check(*inputs(2, 3, 3, T, 5, 8), mask.realize())


def test_the_gradient_of_a_learned_mask_equals_the_plain_forms():
  q, k, v = inputs(2, 3, 3, 4, 5, 8)
  gradients = []
  for function in (attention, transformer.attention):
    mask = Tensor(normal(3, 4, 5)).realize()
    gradients.append((function(q, k, v, mask) * q).sum().gradient(mask)[0].numpy())
  np.testing.assert_allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("T", [1, 9])
def test_a_query_whose_keys_are_all_masked_gets_zeros(T):
  mask = Tensor.full((T, 5), -math.inf)
  assert not attention(*inputs(1, 1, 1, T, 5, 8), mask).numpy().any()


@pytest.mark.parametrize("T", [1, 9])
def test_other_similarities_and_very_large_scores_equal_the_plain_form(T):
  q, k, v = inputs(1, 2, 2, T, 50, 8)
  check(q, k, v, None, dot_product)
  # There is no kernel for this similarity.
  check(q, k, v, None, lambda q, k: scaled_dot_product(q, k) * 0.5)
  check(q * 100, k * 100, v, gradients=False)


@pytest.mark.parametrize("T", [1, 9])
def test_nan_queries_give_nan_outputs(T):
  q, k, v = inputs(1, 1, 1, T, 50, 8)
  assert np.isnan(attention(q * math.nan, k, v).numpy()).all()


@pytest.mark.parametrize("T", [1, 5])
def test_attention_over_a_kv_cache_equals_attention_over_its_contents(T):
  cache = KVCache(1, 2, 3, 40, 8)
  start = UOp.variable("start", 0, 35)
  k, v = (Tensor(normal(2, 3, 40, 8, seed=i)).realize() for i in (1, 2))

  def fill_cache():
    cache.k[0].assign(k).realize()
    cache.v[0].assign(v).realize()

  fill_cache()
  q = Tensor(normal(2, 3, T, 8)).realize()
  new = Tensor(normal(2, 3, T, 8, seed=4)).realize()
  for position in (0, 7, 35):
    bound = start.bind(position)
    mask = causal_mask(T, bound + T) if T > 1 else None
    cache.length = bound
    actual = attention(q, *cache.layer(0)(new, new), mask).numpy()
    contents = [t[:, :, :position].cat(new, dim=2).contiguous() for t in (k, v)]
    expected = transformer.attention(q, *contents, causal_mask(T, position + T)).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    fill_cache()


def test_a_number_of_keys_with_two_variables_equals_the_plain_form():
  cache = KVCache(1, 1, 2, 20, 8)
  first = UOp.variable("first", 0, 9)
  second = UOp.variable("second", 0, 9)
  q = Tensor(normal(1, 2, 3, 8)).realize()
  new = Tensor(normal(1, 2, 2, 8, seed=4)).realize()
  cache.k[0].assign(Tensor(normal(1, 2, 20, 8, seed=1))).realize()
  cache.v[0].assign(Tensor(normal(1, 2, 20, 8, seed=2))).realize()
  cache.length = first.bind(5) + second.bind(8)
  k, v = cache.layer(0)(new, new)
  actual = attention(q, k, v).numpy()
  contents = [t[:, :, :15].contiguous() for t in (cache.k[0], cache.v[0])]
  np.testing.assert_allclose(actual, transformer.attention(q, *contents).numpy(), atol=1e-5)


def test_only_sums_of_at_most_two_variables_and_a_constant_are_numbers_of_keys():
  a, b, c = (UOp.variable(name, 0, 9) for name in "abc")
  assert sum_of_variables(7) == ((), 7)
  assert sum_of_variables(a.bind(2) + 5) == ((a,), 5)
  variables, constant = sum_of_variables((a + 3) + (b + 4))
  assert {v.expr for v in variables} == {"a", "b"}
  assert constant == 7
  for other in (a * 2, a * 2 + b, a + b + c, a // 2 + 1):
    assert sum_of_variables(other) is None


@pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel runs on the CPU only")
def test_the_kernel_is_used_if_and_only_if_it_supports_the_inputs():
  def uses_kernel(q, k, v, *rest):
    return "attention_" in str(attention(q, k, v, *rest).schedule_linear())

  q, k, v = inputs(1, 2, 2, 4, 5, 8)
  assert uses_kernel(q, k, v)
  assert uses_kernel(q, k, v, causal_mask(4, 5))
  assert not uses_kernel(q.half(), k.half(), v.half())
  assert not uses_kernel(q, k, v, None, lambda q, k: scaled_dot_product(q, k) * 2)
