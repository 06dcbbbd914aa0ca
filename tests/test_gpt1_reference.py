"""GPT-1 against transformers, with random parameters.

Needs the extra `reference`; runs in .ci/run.
"""

import numpy as np
import pytest
from conftest import all_parts, close
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.checkpoints import load_module
from tinyformer.generation import Engine, generate
from tinyformer.generation.kv_cache import KVCache

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures  # noqa: E402

pytestmark = pytest.mark.slow
IDS = np.random.default_rng(5).integers(0, 61, (3, 17))


def save_reference(folder, seed=0, **sizes):
  """Save a random model of transformers in `folder` and return the model."""
  config = transformers.OpenAIGPTConfig(
    **make_fixtures.FIRST | sizes, bos_token_id=None, eos_token_id=None
  )
  model = transformers.OpenAIGPTLMHeadModel(config).eval()
  make_fixtures.randomise(model, seed)
  model.save_pretrained(folder)
  return model


def reference_logits(model, ids, **inputs):
  with torch.no_grad():
    return model(torch.tensor(ids), **inputs).logits.numpy()


@all_parts()
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
def test_logits_equal_hugging_face(tmp_path, sizes, parts):
  reference = save_reference(tmp_path, **sizes)
  close(load_module(tmp_path, parts=parts)(Tensor(IDS)).numpy(), reference_logits(reference, IDS))


def test_cached_chunks_have_the_logits_of_hugging_face(tmp_path):
  expected = reference_logits(save_reference(tmp_path), IDS)
  model = load_module(tmp_path)
  cache = KVCache.for_model(model, 3)
  for start, end in ((0, 6), (6, 7), (7, 17)):
    actual = model(Tensor(IDS[:, start:end]), cache).numpy()
    close(actual, expected[:, start:end])


def test_logits_of_padded_sequences_equal_hugging_face(tmp_path):
  """Padding is on the left, where transformers needs position_ids, or on the right."""
  reference = save_reference(tmp_path)
  lengths = (17, 9, 4)
  padded_left = np.array([[i >= 17 - n for i in range(17)] for n in lengths])
  padded_right = np.array([[i < n for i in range(17)] for n in lengths])
  for attention_mask in (padded_left, padded_right):
    expected = reference_logits(
      reference,
      IDS,
      attention_mask=torch.tensor(attention_mask),
      position_ids=torch.tensor(np.maximum(attention_mask.cumsum(1) - 1, 0)),
    )
    model = load_module(tmp_path)
    actual = model(Tensor(IDS), attention_mask=Tensor(attention_mask)).numpy()
    close(actual[attention_mask], expected[attention_mask])


@pytest.mark.parametrize("seed", range(3))
def test_greedy_text_equals_hugging_face(tmp_path, seed):
  reference = save_reference(tmp_path, seed)
  prompt = torch.tensor([[1, 2, 3]])
  output = reference.generate(prompt, max_new_tokens=19, do_sample=False, pad_token_id=0)
  engine = Engine(checkpoints.load_module(tmp_path))
  actual = [token for [token] in generate(engine, [1, 2, 3], 19, temperature=0)]
  assert actual == output[0, 3:].tolist()
