"""GPT-1: logits and hidden states of transformers, cached, padded and from OpenAI's layout."""

import math

import numpy as np
import pytest
from conftest import FIXTURES, all_parts, close, uninitialized
from tinygrad import Tensor, nn

import transformer
from models import gpt1
from models.hf_config import HFConfig
from tinyformer.checkpoints import load_module, safetensors
from tinyformer.generation.engine import Engine

FOLDER = FIXTURES / "gpt1-a"
EXPECTED = np.load(FOLDER / "expected.npz")
IDS = EXPECTED["ids"]


@pytest.fixture(scope="module")
def model():
  return load_module(FOLDER)


@all_parts()
def test_logits_equal_hugging_face(parts):
  close(load_module(FOLDER, parts=parts)(Tensor(IDS)).numpy(), EXPECTED["logits"])


def test_hidden_states_of_each_layer_equal_hugging_face(model):
  T = IDS.shape[1]
  x = model.tokens(Tensor(IDS)) + model.positions.weight[:T]
  for i, block in enumerate(model.blocks):
    close(x.numpy(), EXPECTED[f"hidden.{i}"])
    x = block(x, mask=transformer.causal_mask(T, T)).realize()
  close(x.numpy(), EXPECTED["hidden.2"])
  # The last block is followed by the head, without a norm.
  close(model.last_hidden_state(Tensor(IDS)).numpy(), EXPECTED["hidden.2"])


def test_engine_logits_equal_hugging_face(model, monkeypatch):
  # The first 10 tokens are one chunk.
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (10, 1))
  engine = Engine(model, 2)
  for start, end in ((0, 10), (10, 11), (11, 13)):
    close(engine(IDS[:, start:end]), EXPECTED["logits"][:, end - 1])


def test_left_padding_does_not_change_logits(model):
  ids = IDS[:, :-3]
  padding = ((0, 0), (3, 0))
  padded_ids = np.pad(ids, padding, constant_values=7)
  attention_mask = np.pad(np.ones_like(ids), padding)
  actual = model(Tensor(padded_ids), attention_mask=Tensor(attention_mask)).numpy()
  close(actual[:, 3:], EXPECTED["logits"][:, :-3])


def test_openais_layout_is_read(tmp_path):
  """The layout has no prefix, the mask buffers of old files, and a copy of the embeddings."""
  arrays = {
    name.removeprefix("transformer."): info.numpy()
    for name, info in safetensors.read(FOLDER).items()
  }
  arrays["lm_head.weight"] = arrays["tokens_embed.weight"]
  for i in range(2):
    arrays[f"h.{i}.attn.bias"] = np.ones((1, 1, 23, 23), np.float32)

  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  (tmp_path / "config.json").write_text((FOLDER / "config.json").read_text())
  close(load_module(tmp_path)(Tensor(IDS)).numpy(), EXPECTED["logits"])


def test_the_default_sizes_have_the_published_parameter_count():
  model = uninitialized(gpt1.GPT, gpt1.from_hf(HFConfig({})))
  assert sum(math.prod(p.shape) for p in nn.state.get_parameters(model)) == 116_534_784


@pytest.mark.parametrize(
  "key, value", [("afn", "mish"), ("n_embd", "wide"), ("tie_word_embeddings", False)]
)
def test_an_unsupported_setting_raises_an_error_that_names_the_key(key, value):
  with pytest.raises(ValueError, match=rf"config\.json: .*{key}"):
    gpt1.from_hf(HFConfig({key: value}))
