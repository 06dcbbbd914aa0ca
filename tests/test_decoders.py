"""Every decoder of the family, each way of running it against the plain one: a text at once, without a cache, in float32, of plain parts."""

import functools

import conftest
import numpy as np
import pytest
from conftest import FIXTURES, randomise
from tinygrad import Device, Tensor, nn

from layers.feedforward import MixtureOfExperts
from layers.positions import rope_inv_freq
from models.gpt2 import GPT2
from models.llama import Llama
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.generation import Engine, generate
from tinyformer.generation.kv_cache import KVCache
from tinyformer.kernels.parts import CPU_KERNELS
from transformer import Linear, attention

V, C = 37, 40
LLAMA = dict(
  vocab_size=V,
  context=C,
  dim=12,
  heads=4,
  kv_heads=2,
  num_layers=2,
  ff_dim=20,
  head_dim=6,
  inv_freq=rope_inv_freq(6),
)
MODELS = {
  "gpt2": lambda **parts: GPT2(V, C, 12, 4, 2, **parts),
  "llama": lambda **parts: Llama(**LLAMA, **parts),
  "mistral": lambda **parts: Llama(**LLAMA, window=5, **parts),
  "mixtral": lambda **parts: Llama(
    **LLAMA, feed_forward=lambda *sizes, **kw: MixtureOfExperts(4, 2, *sizes, **kw), **parts
  ),
}
IDS = np.random.default_rng(0).integers(0, V, (2, 24)).astype(np.int32)


def params(*families: str) -> list:
  """All families: these by default, the others in .ci/run."""
  return [pytest.param(name, marks=[] if name in families else pytest.mark.slow) for name in MODELS]


SHORT = 7  # so much shorter is the second text where they are padded


@pytest.fixture(params=params("gpt2", "mistral"))
def family(request):
  return request.param


@functools.cache
def made(family):
  return randomise(MODELS[family]())


@functools.cache
def said(family, rows, end):
  return made(family)(Tensor(IDS[rows:, :end])).numpy()


@pytest.fixture
def model(family):
  return made(family)


@pytest.fixture
def plain(family):
  return said(family, 0, None)


@pytest.fixture
def alone(family):
  return said(family, 1, -SHORT)[0]


def close(got, want):
  conftest.close(got, want, 2e-5)


def in_pieces(model, ids, cuts, attention_mask=None):
  """The logits of ids, read piece by piece with a cache."""
  cache, ends = model.cache(len(ids)), [0, *cuts, ids.shape[1]]
  return np.concatenate(
    [
      model(
        Tensor(ids[:, a:b]),
        a,
        cache,
        None if attention_mask is None else Tensor(attention_mask[:, :b]),
      ).numpy()
      for a, b in zip(ends, ends[1:])
    ],
    1,
  )


def padded_left():
  """IDS, the second text without its end and moved to the right, and where there is text."""
  ids, attention_mask = IDS.copy(), np.ones(IDS.shape, bool)
  ids[1, :SHORT], ids[1, SHORT:], attention_mask[1, :SHORT] = 0, IDS[1, :-SHORT], False
  return ids, attention_mask


@pytest.mark.parametrize("family", params("mistral"))  # tests/test_cache.py has GPT-2's
def test_a_cache_and_chunks_change_nothing(model, plain):
  close(in_pieces(model, IDS, [1, 12, 23]), plain)


@pytest.mark.parametrize("family", params("mistral"))
def test_padding_on_the_left_changes_nothing(model, plain, alone):
  ids, attention_mask = padded_left()
  got = model(Tensor(ids), attention_mask=Tensor(attention_mask)).numpy()
  close(got[0], plain[0])
  close(got[1, SHORT:], alone)


@pytest.mark.parametrize("family", params("mistral"))
def test_padding_on_the_right_changes_nothing(model, plain, alone):
  ids = IDS.copy()
  ids[1, -SHORT:] = 0
  got = model(Tensor(ids)).numpy()
  close(got[0], plain[0])
  close(got[1, :-SHORT], alone)


@pytest.mark.parametrize("family", params("gpt2"))
def test_padding_on_the_left_in_chunks_with_a_cache_changes_nothing(model, plain, alone):
  ids, attention_mask = padded_left()
  got = in_pieces(model, ids, [1, 12], attention_mask)
  close(got[0], plain[0])
  close(got[1, SHORT:], alone)


@pytest.mark.parametrize("family", params("gpt2"))
def test_one_place_alone_is_what_it_is_among_others_and_the_text_goes_on(model, plain, alone):
  """Of texts in two pieces, and padded on the left."""
  ids, attention_mask = padded_left()
  cache = model.cache(2)
  model(Tensor(ids[:, :9]), 0, cache, Tensor(attention_mask[:, :9]))
  got = model.head(
    model.last_hidden_state(Tensor(ids[:, 9:20]), 9, cache, Tensor(attention_mask[:, :20]), at=8)
  ).numpy()
  close(got, np.stack([plain[0, 17:18], alone[17 - SHORT : 18 - SHORT]]))
  got = model(Tensor(ids[:, 20:]), 20, cache, Tensor(attention_mask)).numpy()
  close(got, np.stack([plain[0, 20:], alone[20 - SHORT :]]))


def test_one_place_alone_without_a_cache_is_refused():
  with pytest.raises(ValueError, match="only with a cache"):
    made("gpt2").last_hidden_state(Tensor(IDS), at=3)


@pytest.mark.parametrize("family", params("mistral"))
def test_a_traced_reader_writes_the_same_also_after_another_text(model, monkeypatch):
  """Across the edge of the window, and past the end of a piece."""
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  reader = Engine(model)
  for first in (IDS[0, :9].tolist(), IDS[1, :3].tolist(), IDS[1, :11].tolist()):
    reader.position, ids = 0, first[:]
    for [token] in generate(reader, first, C - len(first), temperature=0):
      ids.append(token)
    assert (
      len(ids) == C
      and model(Tensor([ids])).numpy()[0].argmax(-1)[len(first) - 1 : -1].tolist()
      == ids[len(first) :]
    )


def test_a_reader_of_fast_parts_gives_the_same_logits_and_keeps_its_kernels(
  family, model, plain, tmp_path, monkeypatch
):
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  fast = MODELS[family](
    **{name: part for name, part in CPU_KERNELS.items() if family == "gpt2" or name != "layer_norm"}
  )
  nn.state.load_state_dict(fast, nn.state.get_state_dict(model), verbose=False)
  reader = Engine(fast, 2, key=family)
  for start, end in ((0, 20), (20, 21), (21, 24)):
    close(reader(IDS[:, start:end]), plain[:, end - 1])
  if Device.DEFAULT == "CPU":
    assert list((tmp_path / "tinyformer" / "steps").iterdir())


def rounded(x, dtype):
  return (
    x.astype(np.float16).astype(np.float32)
    if dtype == "float16"
    else (safetensors.bfloat16(x).astype(np.uint32) << 16).view(np.float32)
  )


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  "case",
  [
    "gpt2-a",
    *(pytest.param(case, marks=pytest.mark.slow) for case in ("llama-a", "mistral-a", "mixtral-a")),
  ],
)
def test_sixteen_bit_weights_give_what_the_rounded_numbers_do(case, dtype):
  """Within 1e-4, as float32 does: only the numbers are rounded, not what is computed with them."""
  narrow = checkpoints.load_module(FIXTURES / case, dtype)
  wide = checkpoints.load_module(FIXTURES / case, linear=Linear, attention_fn=attention)
  for t in nn.state.get_parameters(wide):
    if t.ndim == 2:
      t.replace(Tensor(rounded(t.numpy(), dtype)))
  ids = IDS[:1] % 61
  want = wide(Tensor(ids)).numpy()
  close(narrow(Tensor(ids)).numpy(), want)
  reader = Engine(narrow)
  for start, end in ((0, 20), (20, 21), (21, 24)):
    close(reader(ids[:, start:end]), want[:, end - 1])


def test_a_window_bounds_the_cache(monkeypatch):
  """A text of many windows, of which only the last fits, gives at each place what those tokens that its windows reach give."""
  monkeypatch.setattr(KVCache, "CHUNK_SIZE", 16)
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  model, ids = (
    randomise(Llama(**LLAMA | dict(context=4000, num_layers=1), window=5)),
    np.random.default_rng(1).integers(0, V, 90).astype(np.int32),
  )
  reader, ends = Engine(model), [14, *range(15, 31), 60, 90]  # at 26 it is full
  assert reader.cache.rows == 26
  want = model(Tensor(np.stack([ids[end - 5 : end] for end in ends]))).numpy()[:, -1:]
  for start, end, logits in zip([0, *ends], ends, want):
    close(reader(ids[None, start:end]), logits)
  reader.position = 0
  close(reader(ids[None, :14]), want[0])


def test_a_text_that_went_too_far_back_is_read_again():
  cache = KVCache(1, 1, 1, 4000, 2, window=5)
  assert [
    cache.reserve(position, count) for position, count in ((0, 512), (512, 10), (522, 78))
  ] == [
    0,
    512,
    4,
  ] and cache.dropped == 518
  assert (
    cache.resume_position(599) == 599
    and cache.resume_position(522) == 522
    and cache.resume_position(521) == 0
  )
