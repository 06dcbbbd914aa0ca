"""ExactTopKHead returns the exact logits of at least the top k tokens."""

import numpy as np
import pytest
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, dtypes

from models.gpt2 import GPT2, GPT2Config
from models.llama import Llama, LlamaConfig
from tinyformer.generation import Engine, generate
from tinyformer.generation.beam_search import beam_search
from tinyformer.kernels.exact_top_k import ExactTopKHead
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.kernels.quantization import quantize_int8

pytestmark = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernels run on the CPU only")
V = 300


def check(weight, x, count):
  """Check that each row's `count` largest logits are returned, and all returned ones are right.

  Returns the number of returned logits of each row.
  """
  actual = ExactTopKHead(Tensor(weight).realize(), count)(Tensor(x)).numpy()
  expected = x @ weight.T
  returned = np.isfinite(actual)
  scale = np.linalg.norm(weight, axis=1).max() * np.linalg.norm(x, axis=1).max()
  np.testing.assert_allclose(actual[returned], expected[returned], atol=1e-5 * scale)
  assert np.isneginf(actual[~returned]).all()
  exact = x.astype(np.float64) @ weight.T.astype(np.float64)
  smallest = np.sort(exact)[:, [-min(count, len(weight))]]
  assert (returned | (exact < smallest)).all()
  return returned.sum(1)


@settings(max_examples=12, deadline=None)
@given(
  st.integers(1, 400),
  st.integers(1, 70),
  st.integers(1, 3),
  st.integers(1, 9),
  st.floats(0, 3),
  st.integers(0, 99),
)
def test_the_top_k_logits_are_always_returned(N, K, M, count, similarity, seed):
  """Rows that differ by about 10^-similarity may be in another order after rounding."""
  normal = np.random.default_rng(seed).standard_normal
  weight = (normal((N, K)) * 10**-similarity + normal(K)).astype(np.float32)
  check(weight, normal((M, K)).astype(np.float32), count)


def test_the_top_token_is_returned_if_rounding_changes_the_order():
  """0.007 is rounded to 0 beside a 2, while two equal numbers are exact in int8."""
  weight = np.array([[1.0015, 1.0015], [2, 0.007]], np.float32)
  check(weight, np.ones((1, 2), np.float32), 1)


def test_the_top_tokens_are_returned_if_only_float32_rounding_separates_them():
  """All rows are permutations of the same numbers, which are exact in int8.

  Their sums are equal, but differ in float32.
  """
  rng = np.random.default_rng(0)
  q = rng.integers(-127, 128, 60)
  q[0] = 127
  row = q.astype(np.float32) * np.float32(1 + 2**-16)
  copy = quantize_int8(row[None])
  assert (copy[0, :-4] * copy[0, -4:].view(np.float32) == row).all()
  weight = np.stack([rng.permutation(row) for _ in range(300)])
  x = np.full((1, 60), 0.1, np.float32)
  assert len(set((x @ weight.T)[0].tolist())) > 1
  assert check(weight, x, 1) == 300


def test_few_logits_are_computed_exactly():
  normal = np.random.default_rng(0).standard_normal
  weight = normal((20_000, 96)).astype(np.float32)
  x = normal((2, 96)).astype(np.float32)
  assert (check(weight, x, 5) < 30).all()


def test_returned_logits_equal_the_full_heads_bit_for_bit():
  normal = np.random.default_rng(0).standard_normal
  weight = Tensor(normal((500, 45)).astype(np.float32)).realize()
  x = Tensor(normal((3, 45)).astype(np.float32)).realize()
  actual = ExactTopKHead(weight, 9)(x).numpy()
  expected = CPU_KERNELS.linear_fn(x, weight).numpy()
  returned = np.isfinite(actual)
  assert (actual[returned] == expected[returned]).all()


def test_all_tied_logits_are_returned():
  assert check(np.ones((50, 20), np.float32), np.ones((1, 20), np.float32), 2) == 50


def test_a_nan_input_gives_nan_logits():
  weight = Tensor(np.ones((40, 20), np.float32)).realize()
  x = np.ones((1, 20), np.float32)
  x[0, 3] = np.nan
  assert np.isnan(ExactTopKHead(weight, 2)(Tensor(x)).numpy()).all()


LLAMA = dict(
  vocab_size=V,
  context=40,
  dim=36,
  heads=4,
  kv_heads=2,
  num_layers=1,
  ff_dim=20,
  head_dim=10,
)
MODELS = {
  "gpt2": lambda: GPT2(GPT2Config(V, 40, 36, 3, 1), CPU_KERNELS),
  "llama": lambda: Llama(LlamaConfig(**LLAMA), CPU_KERNELS),
  "tied": lambda: Llama(LlamaConfig(**LLAMA, tied=True), CPU_KERNELS),
}


@pytest.mark.parametrize(
  "family", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "tied"))]
)
def test_an_engine_with_top_k_samples_the_same_tokens_as_one_without(family, monkeypatch):
  """The prompt is prefilled in one chunk, part of which is padding."""
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  model = randomise(MODELS[family]())
  full = Engine(model, 2)
  top_7 = Engine(model, 2, top_k=7)

  def sample(engine, seed):
    engine.position = 0
    return list(generate(engine, [seed, *range(10)], 20, top_k=7, seed=seed))

  for seed in range(3):
    assert sample(full, seed) == sample(top_7, seed)
  only_7 = r"logits of the top 7 tokens"
  with pytest.raises(ValueError, match=only_7):
    next(generate(top_7, [1], 5, top_k=8))
  with pytest.raises(ValueError, match=only_7):
    next(generate(top_7, [1], 5, top_k=0))
  with pytest.raises(ValueError, match=r"beam.* the logits of all"):
    beam_search(top_7, [1], 5)
  top_7.position = 0
  logits = top_7(np.array([[1, 2]] * 2))
  assert 7 <= np.isfinite(logits[0]).sum() < V / 2


def test_another_top_k_has_cached_kernels_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  model = randomise(MODELS["gpt2"]())
  counts = []
  for top_k in (2, 20):
    logits = Engine(model, key="the same", top_k=top_k)(np.array([[1, 2]]))
    counts.append(np.isfinite(logits).sum())
  assert 2 <= counts[0] < 32 <= counts[1]


def test_unsupported_heads_return_all_logits():
  """Weights in bfloat16, another device, a large batch and a large count are not supported."""
  weight = Tensor.ones(V, 20).realize()
  assert ExactTopKHead.supports(weight, 16, 40)
  assert not ExactTopKHead.supports(weight.cast(dtypes.bfloat16).realize(), 1, 40)
  assert not ExactTopKHead.supports(weight.to("PYTHON"), 1, 40)
  assert not ExactTopKHead.supports(weight, 17, 40)
  assert not ExactTopKHead.supports(weight, 1, 1000)
  model = randomise(GPT2(GPT2Config(V, 40, 36, 3, 1), CPU_KERNELS))
  assert np.isfinite(Engine(model, top_k=1000)(np.array([[1, 2]]))).all()
