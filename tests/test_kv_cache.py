"""Logits computed with a KV cache, in chunks or with an engine, equal those without a cache."""

import gc
import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
from conftest import FIXTURES, close, normal, randomise
from tinygrad import Tensor, UOp, dtypes, nn

from layers.attention import grouped_attention
from layers.parts import PLAIN
from models.gpt2 import GPT2, GPT2Config
from models.llama import Llama, LlamaConfig
from tinyformer import checkpoints
from tinyformer.generation import Engine, kv_cache
from tinyformer.generation.kv_cache import KVCache
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.parts import CPU_KERNELS, FUSED

V, C, B = 37, 100, 2
IDS = np.random.default_rng(0).integers(0, V, (B, C)).astype(np.int32)


@pytest.fixture(scope="module")
def model():
  return randomise(GPT2(GPT2Config(V, C, 12, 3, 2)))


@pytest.fixture(scope="module")
def expected(model):
  """The logits (B, C, V) without a cache."""
  return model(Tensor(IDS)).numpy()


def test_prefill_logits_equal_uncached_logits(model, expected):
  close(model(Tensor(IDS), KVCache.for_model(model, B)).numpy(), expected)


@pytest.mark.slow  # tests/test_decoders.py does the same with a shorter text
@pytest.mark.parametrize("bounds", [[1, 2, 50], [99], [33, 66]])
def test_logits_of_chunks_equal_uncached_logits(model, expected, bounds):
  cache = KVCache.for_model(model, B)
  for start, end in itertools.pairwise([0, *bounds, C]):
    close(model(Tensor(IDS[:, start:end]), cache).numpy(), expected[:, start:end])


def test_logits_of_a_compiled_step_equal_uncached_logits(model, expected):
  cache = KVCache.for_model(model, B)

  def logits(ids, start):
    cache.length = start
    return model(ids, cache).realize()

  step = CompiledStep(logits, (UOp.variable("start", 0, C - 1),))
  for i in range(C):
    close(step(IDS[:, i : i + 1], start=i), expected[:, i : i + 1])


@pytest.fixture(
  scope="module",
  params=[pytest.param(PLAIN, marks=pytest.mark.slow), CPU_KERNELS],
  ids=["plain parts", "CPU kernels"],
)
def model_with_parts(request, model):
  result = GPT2(GPT2Config(V, C, 12, 3, 2), request.param)
  nn.state.load_state_dict(result, nn.state.get_state_dict(model), verbose=False)
  return result


@pytest.mark.parametrize(
  "bounds",
  [
    [9],
    [20, 29, 95],
    *(pytest.param(bounds, marks=pytest.mark.slow) for bounds in ([], [1], [8], [64], [65])),
  ],
)
def test_logits_of_an_engine_equal_uncached_logits(model_with_parts, expected, bounds):
  engine = Engine(model_with_parts, B)
  for start, end in itertools.pairwise([0, *bounds, C]):
    close(engine(IDS[:, start:end]), expected[:, end - 1])
  assert engine.position == C


@pytest.mark.parametrize(
  "heads, kv_heads, window",
  [(4, 2, 30), *(pytest.param(4, n, None, marks=pytest.mark.slow) for n in (4, 2))],
)
def test_a_float16_cache_rounds_keys_and_values_and_nothing_else(heads, kv_heads, window):
  """The expected logits are those of attention that rounds all keys and values.

  The exact keys differ by the rounding of float32, so a few are rounded to the other neighbour.
  """

  def rounded_attention(q, k, v, *args):
    # Without contiguous(), tinygrad removes both casts.
    k, v = (x.half().contiguous().float() for x in (k, v))
    return grouped_attention(q, k, v, *args)

  config = LlamaConfig(V, C, 32, heads, kv_heads, 8, 2, 48, window=window)
  model = randomise(Llama(config, CPU_KERNELS))
  reference = Llama(config, replace(PLAIN, attention=rounded_attention))
  nn.state.load_state_dict(reference, nn.state.get_state_dict(model), verbose=False)
  expected = reference(Tensor(IDS)).numpy()
  effect = np.median(np.abs(model(Tensor(IDS)).numpy() - expected))
  engine = Engine(model, B, cache=KVCache.for_model(model, B, dtype=dtypes.float16))
  ends = [40, 57, *range(58, 70), C]
  actual = np.stack([engine(IDS[:, a:b]) for a, b in itertools.pairwise([0, *ends])])
  errors = np.abs(actual.swapaxes(0, 1) - expected[:, np.array(ends) - 1])
  assert 0 < np.median(errors) < effect / 10


def test_a_float16_cache_clips_large_numbers_and_keeps_nan():
  cache = KVCache(1, 1, 1, 2, 3, dtype=dtypes.float16)
  k, _ = cache.layer(0)(*[Tensor([[[[1e6, -1e30, np.nan]]]])] * 2)
  np.testing.assert_array_equal(k.numpy(), [[[[65504, -65504, np.nan]]]])


@pytest.mark.parametrize(
  "parts, dtype, expected",
  [
    (CPU_KERNELS, "float32", dtypes.float32),
    (CPU_KERNELS, "bfloat16", dtypes.float16),
    (CPU_KERNELS, "int4", dtypes.float16),
    (FUSED, "bfloat16", dtypes.float32),
  ],
)
def test_narrow_weights_have_a_float16_cache_if_the_parts_read_it(parts, dtype, expected):
  model = checkpoints.load_module(FIXTURES / "llama-a", dtype, parts)
  cache = KVCache.for_model(model)
  assert {buffer.dtype for buffer in cache.k + cache.v} == {expected}


def test_an_engine_can_restart_at_position_0(model, expected):
  engine = Engine(model, B)
  engine(IDS[:, ::-1])
  engine.position = 0
  close(engine(IDS[:, :70]), expected[:, 69])


def test_an_engine_that_is_not_used_any_more_is_freed_without_the_garbage_collector(model):
  """tinygrad never forgets a tensor that the garbage collector has freed."""
  engine = Engine(model, B)
  engine(IDS[:, :10])
  engine(IDS[:, 10:11])
  tensors = [weakref.ref(tensor) for tensor in (*engine.cache.k, *engine.cache.v)]
  gc.disable()
  try:
    del engine
    assert [tensor() for tensor in tensors] == [None] * len(tensors)
  finally:
    gc.enable()


def test_an_engine_rejects_invalid_shapes_and_long_texts(model):
  engine = Engine(model, B)
  with pytest.raises(ValueError, match="101 tokens are more than the context of 100"):
    engine(np.zeros((B, C + 1)))
  with pytest.raises(ValueError, match=r"shape \(2, 0\) are not 2 texts"):
    engine(np.zeros((B, 0)))
  with pytest.raises(ValueError, match=r"shape \(3, 4\) are not 2 texts"):
    engine(np.zeros((B + 1, 4)))


def test_reordered_texts_continue_as_the_texts_that_they_copy(model, expected):
  engine = Engine(model, B)
  engine(IDS[:, :10])
  engine.cache.reorder([1, 1])
  close(engine(IDS[[1, 1], 10:20]), expected[[1, 1], 19])


def test_texts_are_reordered_on_a_device_with_its_own_memory(monkeypatch):
  """Twice, because the second time the compiled step is replayed."""
  monkeypatch.setattr(kv_cache, "memory_view", lambda tensor: None)
  cache = KVCache(2, 3, 2, 5, 4)
  buffers = cache.k + cache.v
  expected = [normal(3, 2, 5, 4, seed=i) for i in range(4)]
  for buffer, array in zip(buffers, expected, strict=True):
    buffer.assign(Tensor(array)).realize()
  for texts in ([2, 0, 0], [1, 1, 0]):
    cache.reorder(texts)
    expected = [array[texts] for array in expected]
    for buffer, array in zip(buffers, expected, strict=True):
      np.testing.assert_array_equal(buffer.numpy(), array)


def test_no_position_is_resumed_after_an_eviction_that_ctrl_c_has_interrupted():
  """Some of the buffers have then been moved, and others have not."""

  class Interrupting:
    def __getitem__(self, key):
      raise KeyboardInterrupt

  cache = KVCache(1, 1, 1, 2000, 4, window=16)
  assert cache.reserve(500, 10) == 500
  values = cache.v
  cache.v = [Interrupting()]
  with pytest.raises(KeyboardInterrupt):
    cache.reserve(540, 10)
  assert [cache.resume_position(n) for n in (1, 300, 540)] == [0, 0, 0]
  cache.v = values
  assert cache.reserve(0, 10) == 0
  assert cache.reserve(540, 10) == 15
  assert cache.resume_position(540) == 540


def test_a_full_cache_is_rejected(model):
  cache = KVCache.for_model(model, B, context=5)
  model(Tensor(IDS[:, :4]), cache)
  assert cache.length == 4
  with pytest.raises(ValueError, match="6 positions are more than the 5 of the KV cache"):
    model(Tensor(IDS[:, 4:6]), cache)
