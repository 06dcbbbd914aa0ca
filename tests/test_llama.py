import conftest
import numpy as np
import pytest
from conftest import FIXTURES, randomise
from tinygrad import Tensor, nn

import models
import models.llama
from layers.positions import rope_inv_freq
from models.llama import Llama
from tinyformer import checkpoints
from tinyformer.checkpoints.config import Config
from tinyformer.kernels.parts import CPU_KERNELS
from transformer import Linear, attention

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
  inv_freq=rope_inv_freq(6),
)


@pytest.fixture(scope="module", params=[None, 5], ids=["all keys", "a window"])
def model(request):
  return randomise(Llama(**SIZES, window=request.param))


@pytest.fixture(scope="module")
def plain(model):
  return model(Tensor(IDS)).numpy()


def close(got, want):
  conftest.close(got, want, 2e-5)


@pytest.mark.parametrize(
  "case, parts",
  [("llama-a", {}), *((case, CPU_KERNELS) for case in ("llama-a", "mistral-a", "mixtral-a"))],
  ids=["llama of plain parts", "llama", "mistral", "mixtral"],
)
def test_logits_are_hugging_faces(case, parts):
  want = np.load(FIXTURES / case / "expected.npz")
  got = checkpoints.load_module(
    FIXTURES / case, **({"attention_fn": attention, "linear": Linear} | parts)
  )(Tensor(want["ids"])).numpy()
  assert np.abs(got - want["logits"]).max() < min(1e-4, 1e-5 * want["logits"].std())


def test_a_query_never_sees_a_later_key_nor_one_before_its_window(model, plain):
  for place in (0, 17, 30):
    changed = IDS.copy()
    changed[:, place] = (changed[:, place] + 1) % V
    moved = (model(Tensor(changed)).numpy() != plain).any((0, 2))
    assert not moved[:place].any() and moved[place]
    if model.window:
      assert not moved[place + 2 * (model.window - 1) + 1 :].any()  # two layers


def test_only_distances_count():
  """Turned queries and keys know no absolute place: a text that begins later gives the same, beyond what its windows see of what came before."""
  model = randomise(Llama(**SIZES, window=5))
  early, late = (
    np.concatenate([IDS[1, :before], IDS[0, :14], IDS[1, before:26]]) for before in (5, 11)
  )  # what follows is not seen
  got = model(Tensor(np.stack([early, late]))).numpy()
  close(got[0, 14:19], got[1, 20:25])


def test_a_tied_head_is_the_embeddings():
  tied = randomise(Llama(**SIZES, tied=True))
  assert "head.weight" not in nn.state.get_state_dict(tied) and tied(Tensor(IDS)).shape == (B, C, V)


@pytest.mark.parametrize(
  "key, value",
  [
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("hidden_size", 0),
    ("rope_parameters", {"rope_type": "yarn"}),
  ],
)
def test_what_is_not_built_is_told(key, value):
  config = {
    "vocab_size": V,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
  } | {key: value}
  with pytest.raises(ValueError, match=f"{key}|yarn"):
    models.llama.from_config(Config(config))
