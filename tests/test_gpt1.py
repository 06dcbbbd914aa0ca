import math

import numpy as np
import pytest
from conftest import FIXTURES, close
from tinygrad import Tensor, nn

import transformer
from models import gpt1
from tinyformer.checkpoints import load_module, safetensors
from tinyformer.checkpoints.config import Config
from tinyformer.generation.engine import Engine

WANT, FOLDER = np.load(FIXTURES / "gpt1-a" / "expected.npz"), FIXTURES / "gpt1-a"
IDS = WANT["ids"]


@pytest.fixture(scope="module")
def model():
  return gpt1.load(FOLDER)


@pytest.mark.parametrize("load", [gpt1.load, load_module], ids=["plain parts", "fast parts"])
def test_logits_are_hugging_faces(load):
  close(load(FOLDER)(Tensor(IDS)).numpy(), WANT["logits"])


def test_each_layers_hidden_states_are_hugging_faces(model):
  x = model.tokens(Tensor(IDS)) + model.positions.weight[: IDS.shape[1]]
  for i, block in enumerate(model.blocks):
    close(x.numpy(), WANT[f"hidden.{i}"])
    x = block(x, mask=transformer.causal_mask(IDS.shape[1], IDS.shape[1])).realize()
  close(x.numpy(), WANT["hidden.2"])
  close(
    model.last_hidden_state(Tensor(IDS)).numpy(), WANT["hidden.2"]
  )  # nothing follows the last block but the head


def test_a_reader_gives_the_same_logits(model, monkeypatch):
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (10, 1))  # the first is read at once
  reader = Engine(model, 2)
  for start, end in ((0, 10), (10, 11), (11, 13)):
    close(reader(IDS[:, start:end]), WANT["logits"][:, end - 1])


def test_a_text_that_is_padded_on_its_left_gives_the_same_logits(model):
  padded, attention_mask = (
    np.pad(IDS[:, :-3], ((0, 0), (3, 0)), constant_values=7),
    np.pad(np.ones_like(IDS[:, :-3]), ((0, 0), (3, 0))),
  )
  close(
    model(Tensor(padded), attention_mask=Tensor(attention_mask)).numpy()[:, 3:],
    WANT["logits"][:, :-3],
  )


def test_openais_own_layout_is_read(tmp_path):
  """Without the prefix, with the masks that old checkpoints carry, and with a head that repeats the embeddings."""
  arrays = {
    name.removeprefix("transformer."): entry.numpy()
    for name, entry in safetensors.read(FOLDER).items()
  }
  arrays |= {"lm_head.weight": arrays["tokens_embed.weight"]} | {
    f"h.{i}.attn.bias": np.ones((1, 1, 23, 23), np.float32) for i in range(2)
  }
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  (tmp_path / "config.json").write_text((FOLDER / "config.json").read_text())
  close(gpt1.load(tmp_path)(Tensor(IDS)).numpy(), WANT["logits"])


def test_it_has_its_published_parameter_count():
  with safetensors.skip_init():
    model = gpt1.from_config(Config({}))
  assert sum(math.prod(p.shape) for p in nn.state.get_parameters(model)) == 116_534_784


@pytest.mark.parametrize(
  "key, value", [("afn", "mish"), ("n_embd", "wide"), ("tie_word_embeddings", False)]
)
def test_what_is_not_built_is_told(key, value):
  with pytest.raises(ValueError, match=f"config.json: .*{key}"):
    gpt1.from_config(Config({key: value}))
