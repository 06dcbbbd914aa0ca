import numpy as np
import pytest
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad import Device, Tensor, dtypes

from layers.positions import rope_inv_freq
from models.gpt2 import GPT2
from models.llama import Llama
from tinyformer.generation import Engine, beam_search, generate
from tinyformer.kernels.exact_top_k import ExactTopKHead
from tinyformer.kernels.parts import CPU_KERNELS

pytestmark = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="these kernels are for the CPU")
V = 300


def check(weight, x, count):
  """The `count` largest of each row are there, and what is there is right. Gives how many are there."""
  got, want = ExactTopKHead(Tensor(weight).realize(), count)(Tensor(x)).numpy(), x @ weight.T
  there = np.isfinite(got)
  np.testing.assert_allclose(
    got[there],
    want[there],
    atol=1e-5 * np.linalg.norm(weight, axis=1).max() * np.linalg.norm(x, axis=1).max(),
  )
  assert np.isneginf(got[~there]).all()
  exact = x.astype(np.float64) @ weight.T.astype(np.float64)
  assert (there | (exact < np.sort(exact)[:, [-min(count, len(weight))]])).all()
  return there.sum(1)


@settings(max_examples=12, deadline=None)
@given(
  st.integers(1, 400),
  st.integers(1, 70),
  st.integers(1, 3),
  st.integers(1, 9),
  st.floats(0, 3),
  st.integers(0, 99),
)
def test_the_likeliest_are_never_missing(N, K, M, count, alike, seed):
  """alike: how much of each row is the same in all, so that rounding turns their order."""
  draw = np.random.default_rng(seed).standard_normal
  check(
    (draw((N, K)) * 10**-alike + draw(K)).astype(np.float32), draw((M, K)).astype(np.float32), count
  )


def test_rounding_does_not_hide_the_likeliest():
  """1.0038 becomes 1 in 16 bits, 2 and 2^-8 stay as they are."""
  check(np.array([[1.0038, 1.0038], [2, 2**-8]], np.float32), np.ones((1, 2), np.float32), 1)


def test_what_float32_loses_does_not_hide_the_likeliest():
  """All rows have the same numbers in another order, each of 16 bits: their sums differ in float32, and are equal."""
  draw = np.random.default_rng(0)
  row = (draw.standard_normal(60) * 10 ** draw.uniform(-3, 3, 60)).astype(np.float32)
  row = (row.view(np.uint32) & 0xFFFF0000).view(np.float32)
  weight = np.stack([draw.permutation(row) for _ in range(300)])
  assert len({*(weight @ np.ones(60, np.float32)).tolist()}) > 1
  assert check(weight, np.ones((1, 60), np.float32), 1) == 300


def test_a_list_is_short():
  draw = np.random.default_rng(0).standard_normal
  assert (
    check(draw((20_000, 96)).astype(np.float32), draw((2, 96)).astype(np.float32), 5) < 30
  ).all()


def test_what_is_there_is_to_the_bit_what_the_whole_head_gives():
  draw = np.random.default_rng(0).standard_normal
  weight, x = (
    Tensor(draw((500, 45)).astype(np.float32)).realize(),
    Tensor(draw((3, 45)).astype(np.float32)).realize(),
  )
  got, want = ExactTopKHead(weight, 9)(x).numpy(), CPU_KERNELS["linear"].product(x, weight).numpy()
  assert (got[np.isfinite(got)] == want[np.isfinite(got)]).all()


def test_where_all_are_alike_none_is_left_out():
  assert check(np.ones((50, 20), np.float32), np.ones((1, 20), np.float32), 2) == 50


def test_what_is_no_number_stays_none():
  weight, x = np.ones((40, 20), np.float32), np.ones((1, 20), np.float32)
  x[0, 3] = np.nan
  assert np.isnan(ExactTopKHead(Tensor(weight).realize(), 2)(Tensor(x)).numpy()).all()


LLAMA = dict(
  vocab_size=V,
  context=40,
  dim=36,
  heads=4,
  kv_heads=2,
  num_layers=1,
  ff_dim=20,
  head_dim=10,
  inv_freq=rope_inv_freq(10),
  linear=CPU_KERNELS["linear"],
  attention_fn=CPU_KERNELS["attention_fn"],
)
MODELS = {
  "gpt2": lambda: GPT2(V, 40, 36, 3, 1, **CPU_KERNELS),
  "llama": lambda: Llama(**LLAMA),
  "tied": lambda: Llama(**LLAMA, tied=True),
}


@pytest.mark.parametrize(
  "family", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "tied"))]
)
def test_a_reader_asked_for_the_likeliest_alone_draws_the_same_texts(family, monkeypatch):
  """Of a prompt that is read in a piece, of which a part is padding."""
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  model = randomise(MODELS[family]())
  whole, short = Engine(model, 2), Engine(model, 2, top_k=7)

  def texts(reader, seed):
    reader.position = 0
    return list(generate(reader, [seed, *range(10)], 20, top_k=7, seed=seed))

  assert [texts(whole, seed) for seed in range(3)] == [texts(short, seed) for seed in range(3)]
  with pytest.raises(ValueError, match="logits of the top 7 tokens only"):
    next(generate(short, [1], 5, top_k=8))
  with pytest.raises(ValueError, match="logits of the top 7 tokens only"):
    next(generate(short, [1], 5, top_k=0))
  with pytest.raises(ValueError, match="beam search needs the logits of all"):
    beam_search(short, [1], 5)
  short.position = 0
  assert 7 <= np.isfinite(short(np.array([[1, 2]] * 2))[0]).sum() < V / 2


def test_another_number_of_tokens_has_kernels_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  model = randomise(MODELS["gpt2"]())
  short, long = (
    np.isfinite(Engine(model, key="the same", top_k=n)(np.array([[1, 2]]))).sum() for n in (2, 20)
  )
  assert 2 <= short < 32 <= long


def test_other_heads_are_computed_whole():
  """In 16 bits, on another device, for many texts or a long list."""
  weight = Tensor.ones(V, 20).realize()
  assert ExactTopKHead.supports(weight, 16, 40)
  others = (
    (weight.cast(dtypes.bfloat16).realize(), 1, 40),
    (weight.to("PYTHON"), 1, 40),
    (weight, 17, 40),
    (weight, 1, 1000),
  )
  assert not any(ExactTopKHead.supports(*other) for other in others)
  model = randomise(GPT2(V, 40, 36, 3, 1, **CPU_KERNELS))
  assert np.isfinite(Engine(model, top_k=1000)(np.array([[1, 2]]))).all()
