"""The first GPT against transformers itself, every parameter random. Needs the extra `reference`; runs in .ci/run."""

import numpy as np
import pytest
from conftest import close
from tinygrad import Tensor

from models import gpt1
from tinyformer import checkpoints
from tinyformer.checkpoints import load_module
from tinyformer.generation import Engine, generate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures

pytestmark = pytest.mark.slow
IDS = np.random.default_rng(5).integers(0, 61, (3, 17))


def theirs(folder, seed=0, **sizes):
  config = transformers.OpenAIGPTConfig(
    **make_fixtures.FIRST | sizes, bos_token_id=None, eos_token_id=None
  )
  model = transformers.OpenAIGPTLMHeadModel(config).eval()
  make_fixtures.randomise(model, seed)
  model.save_pretrained(folder)
  return model


def their_logits(model, ids, **more):
  with torch.no_grad():
    return model(torch.tensor(ids), **more).logits.numpy()


@pytest.mark.parametrize("load", [gpt1.load, load_module], ids=["plain parts", "fast parts"])
@pytest.mark.parametrize(
  "sizes",
  [
    {},
    dict(n_embd=20, n_head=5, n_layer=3),
    dict(layer_norm_epsilon=1e-5),
    dict(afn="relu"),
    dict(afn="silu"),
    dict(afn="swish"),
  ],
)
def test_logits_are_theirs(tmp_path, sizes, load):
  model = theirs(tmp_path, **sizes)
  close(load(tmp_path)(Tensor(IDS)).numpy(), their_logits(model, IDS))


def test_chunks_through_the_cache_have_their_logits(tmp_path):
  want, ours = their_logits(theirs(tmp_path), IDS), gpt1.load(tmp_path)
  cache = ours.cache(3)
  for start, end in ((0, 6), (6, 7), (7, 17)):
    close(ours(Tensor(IDS[:, start:end]), start, cache).numpy(), want[:, start:end])


def test_padded_texts_have_their_logits(tmp_path):
  """On the left, where their places have to be told to transformers, and on the right."""
  model, lengths = theirs(tmp_path), (17, 9, 4)
  for attention_mask in (
    np.array([[i >= 17 - n for i in range(17)] for n in lengths]),
    np.array([[i < n for i in range(17)] for n in lengths]),
  ):
    places = torch.tensor(np.maximum(attention_mask.cumsum(1) - 1, 0))
    want = their_logits(
      model, IDS, attention_mask=torch.tensor(attention_mask), position_ids=places
    )
    close(
      gpt1.load(tmp_path)(Tensor(IDS), attention_mask=Tensor(attention_mask)).numpy()[
        attention_mask
      ],
      want[attention_mask],
    )


@pytest.mark.parametrize("seed", range(3))
def test_greedy_text_is_theirs(tmp_path, seed):
  want = (
    theirs(tmp_path, seed)
    .generate(torch.tensor([[1, 2, 3]]), max_new_tokens=19, do_sample=False, pad_token_id=0)[0, 3:]
    .tolist()
  )
  assert [
    t for [t] in generate(Engine(checkpoints.load_module(tmp_path)), [1, 2, 3], 19, temperature=0)
  ] == want
