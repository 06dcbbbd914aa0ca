"""LLaMA and its relatives: logits of transformers, masks, RoPE and configs."""

import conftest
import numpy as np
import pytest
from conftest import FIXTURES, all_parts, randomise
from tinygrad import Tensor, nn

import models
import models.gpt_neox
import models.llama
import models.qwen2
import models.qwen3
import models.smollm3
from models.hf_config import HFConfig
from models.llama import Llama, LlamaConfig
from tinyformer import checkpoints

V, C, B = 37, 40, 2
IDS = np.random.default_rng(0).integers(0, V, (B, C)).astype(np.int32)
SIZES = dict(
  vocab_size=V,
  context=C,
  dim=12,
  heads=4,
  kv_heads=2,
  num_layers=2,
  ff_dim=20,
  head_dim=6,
)


@pytest.fixture(scope="module", params=[None, 5], ids=["full attention", "sliding window"])
def model(request):
  return randomise(Llama(LlamaConfig(**SIZES, window=request.param)))


@pytest.fixture(scope="module")
def logits(model):
  return model(Tensor(IDS)).numpy()


def close(actual, expected):
  conftest.close(actual, expected, 2e-5)


# The maximum error as a share of the logits' standard deviation. Normalized queries and keys have
# larger scores, which increase the rounding errors of RoPE's angles.
CASES = {
  "llama-a": 1e-5,
  "mistral-a": 1e-5,
  "mixtral-a": 1e-5,
  "qwen2-a": 1e-5,
  "qwen3-a": 3e-5,
  "smollm3-a": 1e-5,
  "gpt_neox-a": 1e-5,
}


@all_parts()
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_hugging_face(case, parts):
  expected = np.load(FIXTURES / case / "expected.npz")
  model = checkpoints.load_module(FIXTURES / case, parts=parts)
  error = np.abs(model(Tensor(expected["ids"])).numpy() - expected["logits"]).max()
  assert error < min(1e-4, CASES[case] * expected["logits"].std())


def test_a_query_attends_to_no_later_key_and_to_no_key_before_its_window(model, logits):
  for position in (0, 17, 30):
    changed_ids = IDS.copy()
    changed_ids[:, position] = (changed_ids[:, position] + 1) % V
    has_changed = (model(Tensor(changed_ids)).numpy() != logits).any((0, 2))
    assert not has_changed[:position].any() and has_changed[position]
    if model.window:
      # Each of the two layers passes information on by window - 1 positions.
      assert not has_changed[position + 2 * (model.window - 1) + 1 :].any()


def test_logits_depend_on_relative_positions_only():
  """A text has the same logits at another position if its windows do not reach what precedes it."""
  model = randomise(Llama(LlamaConfig(**SIZES, window=5)))
  text = IDS[0, :14]
  # The tokens that follow the text only make both sequences equally long.
  early, late = (np.concatenate([IDS[1, :n], text, IDS[1, n:26]]) for n in (5, 11))
  actual = model(Tensor(np.stack([early, late]))).numpy()
  close(actual[0, 14:19], actual[1, 20:25])


@pytest.mark.parametrize(
  "settings, nope_layers",
  [
    ({}, (3, 7)),
    ({"no_rope_layer_interval": 3}, (2, 5)),
    ({"no_rope_layers": [1, 0, 0, 1, 1, 1, 1, 1]}, (1, 2)),
    ({"no_rope_layers": [0, 1, 1, 1, 1, 1, 1, 1, 0]}, (0,)),
  ],
)
def test_smollm3_has_layers_without_rope(settings, nope_layers):
  sizes = {"vocab_size": V, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 8}
  hf = HFConfig(sizes | {"num_hidden_layers": 8} | settings)
  assert tuple(models.smollm3.from_hf(hf).nope_layers) == nope_layers


def test_too_few_values_of_no_rope_layers_raise_an_error():
  sizes = {"vocab_size": V, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 8}
  hf = HFConfig(sizes | {"num_hidden_layers": 3, "no_rope_layers": [1, 0]})
  with pytest.raises(ValueError, match="no_rope_layers must have 3 values"):
    models.smollm3.from_hf(hf)


@pytest.mark.parametrize("module", [models.qwen2, models.qwen3, models.smollm3])
def test_the_size_of_a_sliding_window_that_is_switched_off_is_ignored(module):
  config = {"sliding_window": 5, "use_sliding_window": False, "num_hidden_layers": 1}
  config["model_type"] = module.__name__.removeprefix("models.")
  sizes = {"vocab_size": V, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 8}
  assert module.from_hf(HFConfig(sizes | config)).window is None
  with pytest.raises(ValueError, match="use_sliding_window"):
    module.from_hf(HFConfig(sizes | config | {"use_sliding_window": True}))


def test_a_fraction_of_a_head_that_rope_cannot_rotate_raises_an_error():
  sizes = {"vocab_size": V, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 8}
  config = sizes | {"num_hidden_layers": 1}
  for fraction, dim in ((0.5, 3), (0.25, 1), (0.0, 0)):
    with pytest.raises(ValueError, match=f"of a head's width 6 is {dim}"):
      models.gpt_neox.from_hf(HFConfig(config | {"rotary_pct": fraction}))
  assert models.gpt_neox.from_hf(HFConfig(config | {"rotary_pct": 0.4})).rope_dim == 2


def test_a_tied_head_has_no_parameters():
  tied = randomise(Llama(LlamaConfig(**SIZES, tied=True)))
  assert "head.weight" not in nn.state.get_state_dict(tied)
  assert tied(Tensor(IDS)).shape == (B, C, V)


@pytest.mark.parametrize(
  "key, value",
  [
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("hidden_size", 0),
    ("rope_parameters", {"rope_type": "longrope", "factor": 2.0}),
  ],
)
def test_an_unsupported_setting_raises_an_error_that_names_it(key, value):
  config = {
    "vocab_size": V,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
  } | {key: value}
  with pytest.raises(ValueError, match=f"{key}|longrope"):
    Llama(models.llama.from_hf(HFConfig(config)))
