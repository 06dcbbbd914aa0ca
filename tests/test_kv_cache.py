import numpy as np
import pytest
from conftest import close, randomise
from tinygrad import Tensor, UOp, nn

from models.gpt2 import GPT2
from tinyformer.generation.engine import Engine
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.parts import CPU_KERNELS

V, C, B = 37, 100, 2
IDS = np.random.default_rng(0).integers(0, V, (B, C)).astype(np.int32)


@pytest.fixture(scope="module")
def model():
  return randomise(GPT2(V, C, 12, 3, 2))


@pytest.fixture(scope="module")
def plain(model):
  return model(Tensor(IDS)).numpy()


def test_a_prefill_gives_the_same_logits(model, plain):
  close(model(Tensor(IDS), 0, model.cache(B)).numpy(), plain)


@pytest.mark.slow  # as tests/test_decoders.py does, on a longer text
@pytest.mark.parametrize("cuts", [[1, 2, 50], [99], [33, 66]])
def test_chunks_give_the_same_logits(model, plain, cuts):
  cache, ends = model.cache(B), [0, *cuts, C]
  for start, end in zip(ends, ends[1:]):
    close(model(Tensor(IDS[:, start:end]), start, cache).numpy(), plain[:, start:end])


def test_a_jitted_step_gives_the_same_logits(model, plain):
  cache = model.cache(B)
  step = CompiledStep(
    lambda ids, start: model(ids, start, cache).realize(), (UOp.variable("start", 0, C - 1),)
  )
  for i in range(C):
    close(step(IDS[:, i : i + 1], start=i), plain[:, i : i + 1])


@pytest.fixture(
  scope="module",
  params=[pytest.param({}, marks=pytest.mark.slow), CPU_KERNELS],
  ids=["plain parts", "fast parts"],
)
def built(request, model):
  made = GPT2(V, C, 12, 3, 2, **request.param)
  nn.state.load_state_dict(made, nn.state.get_state_dict(model), verbose=False)
  return made


@pytest.mark.parametrize(
  "cuts",
  [
    [9],
    [20, 29, 95],
    *(pytest.param(cuts, marks=pytest.mark.slow) for cuts in ([], [1], [8], [64], [65])),
  ],
)
def test_a_reader_gives_the_same_logits(built, plain, cuts):
  reader, ends = Engine(built, B), [0, *cuts, C]
  for start, end in zip(ends, ends[1:]):
    close(reader(IDS[:, start:end]), plain[:, end - 1])
  assert reader.position == C


def test_a_reader_can_begin_again(model, plain):
  reader = Engine(model, B)
  reader(IDS[:, ::-1])
  reader.position = 0
  close(reader(IDS[:, :70]), plain[:, 69])


def test_a_reader_refuses_what_does_not_fit(model):
  reader = Engine(model, B)
  with pytest.raises(ValueError, match="101 tokens are more than the context of 100"):
    reader(np.zeros((B, C + 1)))
  with pytest.raises(ValueError, match="not 2 texts"):
    reader(np.zeros((B, 0)))
  with pytest.raises(ValueError, match="not 2 texts"):
    reader(np.zeros((B + 1, 4)))


def test_reordered_rows_go_on_as_if_they_had_been_there(model, plain):
  reader = Engine(model, B)
  reader(IDS[:, :10])
  reader.cache.reorder([1, 1])
  close(reader(IDS[[1, 1], 10:20]), plain[[1, 1], 19])


def test_a_start_without_a_cache_is_refused(model):
  with pytest.raises(ValueError, match="place 3 only with a cache"):
    model(Tensor(IDS[:, :2]), 3)
