"""With narrow weights, a prompt read at once and one read token by token have almost equal logits.

The difference is the rounding of activations in docs/performance.md, "What narrow weights cost".
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import FIXTURES, randomise
from tinygrad import Device, Tensor, dtypes

from models import gpt2, llama
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.generation import Engine, KVCache
from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.fused import FusedLinear
from tinyformer.kernels.linear import INT8_GROUP, MAX_GEMV_ROWS
from tinyformer.kernels.parts import CPU_KERNELS, FUSED
from tinyformer.kernels.quantization import GROUP

pytestmark = pytest.mark.skipif(
  not has_clang(Device.DEFAULT), reason="other devices round no activations"
)
V, C = 211, 64
# A difference of 1e-7 can round an activation to the next integer, which about one prompt in five
# shows in its logits. Tests therefore compare the median of several prompts.
PROMPTS = np.random.default_rng(0).integers(0, V, (15, 40)).astype(np.int32)
# A row of the feed-forward layer has more than one group of int8 activations.
SIZES = {
  "gpt2-a": dict(vocab_size=V, n_positions=C, n_embd=96, n_head=3, n_layer=3, n_inner=384),
  "llama-a": dict(
    vocab_size=V,
    max_position_embeddings=C,
    hidden_size=96,
    intermediate_size=288,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=3,
    head_dim=24,
  ),
}
# The largest root-mean-square difference of logits, relative to their standard deviation.
BOUNDS = {"bfloat16": 0.01, "int8": 0.05, "int4": 0.04}


@pytest.fixture(scope="module", params=SIZES)
def folder(request, tmp_path_factory):
  """The folder of a random model in float32."""
  path = tmp_path_factory.mktemp(request.param)
  config = json.loads((FIXTURES / request.param / "config.json").read_text())
  (path / "config.json").write_text(json.dumps(config | SIZES[request.param]))
  hf = checkpoints.read_config(path)
  module, model_class = checkpoints.architecture(hf)
  assert module in (gpt2, llama)
  model = randomise(model_class(module.from_hf(hf)), scale=0.1)
  safetensors.write(model, path, hf.values, module.KEY_MAP, "float32")
  return path


def round_to_int8(x: Tensor, group: int) -> Tensor:
  """Round x (..., K) to multiples of max |x| / 127 in each group of values."""
  K = int(x.shape[-1])
  padded = x.pad((*[None] * (x.ndim - 1), (0, -K % group)))
  groups = padded.reshape(*x.shape[:-1], -1, group)
  scale = groups.abs().max(-1, keepdim=True) / 127
  rounded = (groups / (scale == 0).where(1, scale)).round() * scale
  return rounded.reshape(*padded.shape)[..., :K]


def round_to_bfloat16(x: Tensor) -> Tensor:
  """Round x to the nearest number with 8 significant bits, ties to even."""
  bits = x.contiguous().bitcast(dtypes.uint32)
  rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
  return rounded.contiguous().bitcast(dtypes.float32)


class DocumentedLinear(FusedLinear):
  """A product with float32 kernels, whose activations are rounded as the documentation says."""

  def __call__(self, x: Tensor) -> Tensor:
    many_rows = math.prod(x.shape[:-1]) > MAX_GEMV_ROWS
    if self.weight.dtype == dtypes.uint8:
      x = round_to_int8(x, GROUP)
    elif self.weight.dtype == dtypes.int8 and many_rows:
      x = round_to_int8(x, INT8_GROUP)
    elif self.weight.dtype == dtypes.bfloat16 and many_rows:
      x = round_to_bfloat16(x)
    return super().__call__(x)


def last_logits(folder, dtype, parts, size, cache_dtype=None) -> np.ndarray:
  """Return the logits (prompts, V) after each prompt, read in chunks of `size` tokens."""
  model = checkpoints.load_module(folder, dtype, parts)
  engine = Engine(model, cache=KVCache.for_model(model, dtype=cache_dtype))
  results = []
  for prompt in PROMPTS:
    engine.position = 0
    for start in range(0, len(prompt), size):
      logits = engine(prompt[None, start : start + size])
    results.append(logits[0].astype(np.float64))
  return np.stack(results)


def median_difference(a, b) -> float:
  """Return the median of the prompts' root-mean-square differences, relative to a prompt's std."""
  return float(np.median(np.sqrt(np.mean((a - b) ** 2, -1)) / a.std(-1)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_prompt_read_at_once_and_token_by_token_differ_by_the_documented_rounding(folder, dtype):
  """Both sides have a float32 cache, because they would round a few float16 keys differently.

  test_kv_cache.py tests the float16 cache by itself.
  """
  documented = replace(FUSED, linear=DocumentedLinear)
  sizes = (PROMPTS.shape[1], 1)
  for size in sizes:
    actual = last_logits(folder, dtype, CPU_KERNELS, size, dtypes.float32)
    expected = last_logits(folder, dtype, documented, size, dtypes.float32)
    assert median_difference(actual, expected) < BOUNDS[dtype] / 20, size
  difference = median_difference(*(last_logits(folder, dtype, CPU_KERNELS, n) for n in sizes))
  print(f"{folder.name} {dtype}: {difference:.4f}")
  assert 0 < difference < BOUNDS[dtype]
