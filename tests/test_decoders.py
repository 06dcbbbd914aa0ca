"""Each way to run a decoder-only model gives the logits of the plainest way.

The plainest way is one uncached call on the whole sequence, in float32, with the default parts.
"""

import functools
import itertools

import conftest
import numpy as np
import pytest
from conftest import FIXTURES, parameter, randomise
from tinygrad import Device, Tensor, dtypes, nn

from layers.parts import PLAIN
from models.gpt2 import GPT2, GPT2Config
from models.gpt_neox import GPTNeoX, GPTNeoXConfig
from models.llama import Llama, LlamaConfig
from models.mixtral import Mixtral, MixtralConfig
from models.qwen2 import Qwen2
from models.qwen3 import Qwen3
from models.smollm3 import SmolLM3, SmolLM3Config
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.generation import Engine, generate
from tinyformer.generation.engine import hidden_state_at
from tinyformer.generation.kv_cache import KVCache
from tinyformer.kernels.parts import CPU_KERNELS

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
)
MODELS = {
  "gpt2": lambda parts=PLAIN: GPT2(GPT2Config(V, C, 12, 4, 2), parts),
  "llama": lambda parts=PLAIN: Llama(LlamaConfig(**LLAMA), parts),
  "mistral": lambda parts=PLAIN: Llama(LlamaConfig(**LLAMA, window=5), parts),
  "mixtral": lambda parts=PLAIN: Mixtral(
    MixtralConfig(**LLAMA, experts=4, experts_per_token=2), parts
  ),
  "qwen2": lambda parts=PLAIN: Qwen2(LlamaConfig(**LLAMA), parts),
  "qwen3": lambda parts=PLAIN: Qwen3(LlamaConfig(**LLAMA), parts),
  "smollm3": lambda parts=PLAIN: SmolLM3(SmolLM3Config(**LLAMA, nope_layers=(1,)), parts),
  "gpt_neox": lambda parts=PLAIN: GPTNeoX(
    GPTNeoXConfig(**LLAMA | dict(kv_heads=4, head_dim=3), rope_dim=2), parts
  ),
}
IDS = np.random.default_rng(0).integers(0, V, (2, 24)).astype(np.int32)
# The number of padding tokens of the second sequence in the tests with padding.
PADDING = 7


def params(*families: str) -> list:
  """Return all families as test parameters. Those that are not named are slow tests."""
  return [parameter(name, fast=name in families) for name in MODELS]


@pytest.fixture(params=params("gpt2", "mistral"))
def family(request):
  return request.param


@functools.cache
def random_model(family):
  return randomise(MODELS[family]())


@functools.cache
def plain_logits(family, first_row, end):
  return random_model(family)(Tensor(IDS[first_row:, :end])).numpy()


@pytest.fixture
def model(family):
  return random_model(family)


@pytest.fixture
def logits(family):
  """The logits of both sequences."""
  return plain_logits(family, 0, None)


@pytest.fixture
def short_logits(family):
  """The logits of the second sequence without its last PADDING tokens."""
  return plain_logits(family, 1, -PADDING)[0]


def close(actual, expected):
  conftest.close(actual, expected, 2e-5)


def logits_in_chunks(model, ids, splits, attention_mask=None):
  """Return the logits of ids that are processed in chunks with a KV cache."""
  cache = KVCache.for_model(model, len(ids))
  bounds = [0, *splits, ids.shape[1]]
  chunks = []
  for start, end in itertools.pairwise(bounds):
    mask = None if attention_mask is None else Tensor(attention_mask[:, :end])
    chunks.append(model(Tensor(ids[:, start:end]), cache, mask).numpy())
  return np.concatenate(chunks, 1)


def left_padded():
  """Return IDS with the second sequence shortened and padded on the left, and attention_mask."""
  ids = IDS.copy()
  ids[1, :PADDING] = 0
  ids[1, PADDING:] = IDS[1, :-PADDING]
  attention_mask = np.ones(IDS.shape, bool)
  attention_mask[1, :PADDING] = False
  return ids, attention_mask


# tests/test_kv_cache.py tests GPT-2.
@pytest.mark.parametrize("family", params("mistral"))
def test_cached_chunks_have_the_logits_of_one_uncached_call(model, logits):
  close(logits_in_chunks(model, IDS, [1, 12, 23]), logits)


@pytest.mark.parametrize("family", params("mistral"))
def test_left_padding_does_not_change_logits(model, logits, short_logits):
  ids, attention_mask = left_padded()
  actual = model(Tensor(ids), attention_mask=Tensor(attention_mask)).numpy()
  close(actual[0], logits[0])
  close(actual[1, PADDING:], short_logits)


@pytest.mark.parametrize("family", params("mistral"))
def test_right_padding_does_not_change_logits(model, logits, short_logits):
  ids = IDS.copy()
  ids[1, -PADDING:] = 0
  actual = model(Tensor(ids)).numpy()
  close(actual[0], logits[0])
  close(actual[1, :-PADDING], short_logits)


@pytest.mark.parametrize("family", params("gpt2"))
def test_left_padding_does_not_change_logits_of_cached_chunks(model, logits, short_logits):
  ids, attention_mask = left_padded()
  actual = logits_in_chunks(model, ids, [1, 12], attention_mask)
  close(actual[0], logits[0])
  close(actual[1, PADDING:], short_logits)


@pytest.mark.parametrize("family", params("gpt2"))
def test_a_single_position_has_the_logits_of_all_positions(model, logits):
  """Also for the tokens after it, which attend to the keys and values of all positions."""
  cache = KVCache.for_model(model, 2)
  model(Tensor(IDS[:, :9]), cache)
  x = hidden_state_at(model, Tensor(IDS[:, 9:20]), cache, 8)
  close(model.head(x).numpy(), logits[:, 17:18])
  cache.length = 20
  close(model(Tensor(IDS[:, 20:]), cache).numpy(), logits[:, 20:])


@pytest.mark.parametrize("family", params("mistral"))
def test_greedy_tokens_of_one_engine_have_the_highest_logits_for_several_prompts(
  model, monkeypatch
):
  """The prompts cross the bound of the sliding window and the end of a chunk."""
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  engine = Engine(model)
  for prompt in (IDS[0, :9].tolist(), IDS[1, :3].tolist(), IDS[1, :11].tolist()):
    engine.position = 0
    ids = prompt[:]
    for [token] in generate(engine, prompt, C - len(prompt), temperature=0):
      ids.append(token)
    assert len(ids) == C
    argmax = model(Tensor([ids])).numpy()[0].argmax(-1)
    assert argmax[len(prompt) - 1 : -1].tolist() == ids[len(prompt) :]


def test_an_engine_with_cpu_kernels_computes_the_same_logits_and_caches_its_steps(
  family, model, logits, tmp_path, monkeypatch
):
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  fast = MODELS[family](CPU_KERNELS)
  nn.state.load_state_dict(fast, nn.state.get_state_dict(model), verbose=False)
  engine = Engine(fast, 2, key=family)
  for start, end in ((0, 20), (20, 21), (21, 24)):
    close(engine(IDS[:, start:end]), logits[:, end - 1])
  if Device.DEFAULT == "CPU":
    assert list((tmp_path / "tinyformer" / "steps").iterdir())


def rounded(x, dtype):
  """Round float32 numbers to 16 bits and return them as float32."""
  if dtype == "float16":
    return x.astype(np.float16).astype(np.float32)
  return (safetensors.to_bfloat16(x).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  "case",
  [
    "gpt2-a",
    *(
      pytest.param(case, marks=pytest.mark.slow)
      for case in (
        "llama-a",
        "mistral-a",
        "mixtral-a",
        "qwen2-a",
        "qwen3-a",
        "smollm3-a",
        "gpt_neox-a",
      )
    ),
  ],
)
def test_16_bit_weights_have_the_logits_of_rounded_float32_weights(case, dtype):
  """Only the weights are rounded: up to 16 tokens and with this cache, all else is float32."""
  actual = checkpoints.load_module(FIXTURES / case, dtype)
  reference = checkpoints.load_module(FIXTURES / case, parts=PLAIN)
  for t in nn.state.get_parameters(reference):
    if t.ndim == 2:
      t.replace(Tensor(rounded(t.numpy(), dtype)))
  ids = IDS[:1, :16] % 61
  expected = reference(Tensor(ids)).numpy()
  close(actual(Tensor(ids)).numpy(), expected)
  engine = Engine(actual, cache=KVCache.for_model(actual, dtype=dtypes.float32))
  for start, end in ((0, 12), (12, 13), (13, 16)):
    close(engine(ids[:, start:end]), expected[:, end - 1])


def test_a_windowed_cache_gives_the_logits_of_the_last_window(monkeypatch):
  """The cache has room for 26 of 90 tokens. Each query attends to the last 5."""
  monkeypatch.setattr(KVCache, "CHUNK_SIZE", 16)
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (16, 1))
  model = randomise(Llama(LlamaConfig(**LLAMA | dict(context=4000, num_layers=1), window=5)))
  ids = np.random.default_rng(1).integers(0, V, 90).astype(np.int32)
  engine = Engine(model)
  assert engine.cache.rows == 26
  # The cache is full at 26.
  ends = [14, *range(15, 31), 60, 90]
  windows = np.stack([ids[end - 5 : end] for end in ends])
  expected = model(Tensor(windows)).numpy()[:, -1:]
  for start, end, logits in zip([0, *ends], ends, expected, strict=False):
    close(engine(ids[None, start:end]), logits)
  engine.position = 0
  close(engine(ids[None, :14]), expected[0])


def test_a_rewind_to_evicted_keys_resumes_from_the_start():
  cache = KVCache(1, 1, 1, 4000, 2, window=5)
  chunks = ((0, 512), (512, 10), (522, 78))
  assert [cache.reserve(position, count) for position, count in chunks] == [0, 512, 4]
  assert cache.dropped == 518
  assert cache.resume_position(599) == 599
  assert cache.resume_position(522) == 522
  assert cache.resume_position(521) == 0
