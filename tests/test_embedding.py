"""Sentence embeddings, with the files that sentence-transformers saves beside a model."""

import json
import shutil

import numpy as np
import pytest
from test_ask import WORDS, small_berts
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.checkpoints.sentence_modules import read_sentence_config
from tinyformer.model import Model
from tinyformer.tasks import InputError
from tinyformer.tasks.encoder import Encoder

CLS, SEP = 2, 3
TEXT = "ann lives in rome"
IDS = [CLS, *(WORDS.index(word) for word in TEXT.split()), SEP]
MODULES = ("Transformer", "Pooling")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """The folder of a small BERT without a head."""
  return small_berts(tmp_path_factory)("Model")


@pytest.fixture(scope="module")
def model(base):
  """A model whose weights all tests share; `embed` sets its folder."""
  return Model(base)


@pytest.fixture(scope="module")
def hidden(base):
  """Return a function: ids -> the last hidden state (T, D)."""
  module = checkpoints.load_module(base)
  return lambda ids: module(Tensor([ids])).numpy()[0]


@pytest.fixture
def embed(base, model, tmp_path):
  """Return a function that embeds TEXT with the files of a sentence-transformers model.

  modules: class names.  files: the contents of JSON files by name.
  """

  def run(modules=MODULES, files=None, text=TEXT, **options):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    module_list = [
      {"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
      for i, kind in enumerate(modules)
    ]
    contents = {"modules.json": module_list, "1_Pooling/config.json": {}} | (files or {})
    for name, content in contents.items():
      (tmp_path / name).parent.mkdir(exist_ok=True)
      (tmp_path / name).write_text(json.dumps(content))
    model._sentence_config = read_sentence_config(tmp_path)
    return model.embed([text], **options)[0]

  return run


def pooling(*modes):
  return {"1_Pooling/config.json": {"pooling_mode": modes[0] if len(modes) == 1 else list(modes)}}


EXPECTED = {
  "cls": lambda h: h[0],
  "max": lambda h: h.max(0),
  "mean": lambda h: sum(h) / len(h),
  "mean_sqrt_len_tokens": lambda h: sum(h) / len(h) ** 0.5,
  "weightedmean": lambda h: sum(i * x for i, x in enumerate(h, 1)) / sum(range(len(h) + 1)),
  "lasttoken": lambda h: h[len(h) - 1],
}


@pytest.mark.parametrize("mode", EXPECTED)
def test_each_pooling_is_the_one_of_its_name(embed, hidden, mode):
  np.testing.assert_allclose(embed(files=pooling(mode)), EXPECTED[mode](hidden(IDS)), atol=2e-6)


def test_several_poolings_are_concatenated(embed, hidden):
  h = hidden(IDS)
  expected = np.concatenate([h.max(0), h[0]])
  np.testing.assert_allclose(embed(files=pooling("max", "cls")), expected, atol=2e-6)


def test_the_flags_of_older_versions_select_the_pooling(embed, hidden):
  flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
  actual = embed(files={"1_Pooling/config.json": flags})
  np.testing.assert_allclose(actual, hidden(IDS)[0], atol=2e-6)


def test_without_modules_an_embedding_is_the_mean(base, model, hidden):
  model._sentence_config = read_sentence_config(base)
  np.testing.assert_allclose(model.embed([TEXT])[0], hidden(IDS).mean(0), atol=2e-6)


def test_a_dense_layer_and_normalization_follow_the_pooling_in_their_order(embed, hidden, tmp_path):
  rng = np.random.default_rng(0)
  dim = hidden(IDS).shape[1]
  weight = rng.standard_normal((5, dim)).astype(np.float32)
  bias = rng.standard_normal(5).astype(np.float32)
  (tmp_path / "2_Dense").mkdir()
  checkpoints.safetensors.write_safetensors(
    tmp_path / "2_Dense" / "model.safetensors", {"linear.weight": weight, "linear.bias": bias}
  )
  config = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
  actual = embed((*MODULES, "Dense", "Normalize"), {"2_Dense/config.json": config})
  expected = np.tanh(weight @ hidden(IDS).mean(0) + bias)
  np.testing.assert_allclose(actual, expected / np.sqrt((expected**2).sum()), atol=2e-6)


def test_a_text_is_truncated_to_the_maximum_length_with_its_special_tokens(embed, hidden):
  actual = embed(files={"sentence_bert_config.json": {"max_seq_length": 4}})
  np.testing.assert_allclose(actual, hidden([*IDS[:3], SEP]).mean(0), atol=2e-6)


def test_a_text_longer_than_the_context_is_truncated(embed, model):
  vector = embed(text="rome " * 10 * model.module.context)
  np.testing.assert_allclose(vector, embed(text="rome " * model.module.context), atol=2e-6)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_prompt_precedes_the_text_and_pooling_may_exclude_it(embed, hidden, include_prompt):
  files = {
    "config_sentence_transformers.json": {
      "prompts": {"query": "who is ", "passage": "the "},
      "default_prompt_name": "passage",
    },
    "1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": include_prompt},
  }
  for prompt, options in (("who is", {"prompt_name": "query"}), ("the", {})):
    words = prompt.split()
    h = hidden([CLS, *(WORDS.index(word) for word in words), *IDS[1:]])
    expected = h.mean(0) if include_prompt else h[1 + len(words) :].mean(0)
    np.testing.assert_allclose(embed(files=files, **options), expected, atol=2e-6)


def test_an_unknown_prompt_is_refused_with_the_names_of_the_known_ones(embed):
  files = {"config_sentence_transformers.json": {"prompts": {"query": "who is "}}}
  with pytest.raises(InputError, match="no prompt 'passage'; its prompts are: query"):
    embed(files=files, prompt_name="passage")


@pytest.mark.parametrize(
  ("files", "error"),
  [
    (pooling("median"), r"pooling_mode must be one of cls.*, not \"median\""),
    (pooling("mean", "median"), "pooling_mode must be one or more of cls"),
    (
      {"1_Pooling/config.json": {"pooling_mode": 3}},
      "pooling_mode must be a list of strings, not 3",
    ),
    ({"modules.json": [{"path": "", "type": "a.WordWeights"}]}, 'module "WordWeights" is not'),
    (
      {"modules.json": [{"path": "../x", "type": "a.Pooling"}]},
      "'../x' of a module is not the name of a folder",
    ),
    (
      {"modules.json": [{"path": "x" * 256, "type": "a.Pooling"}]},
      "'xxx.*xxx' of a module is not the name of a folder",
    ),
    ({"modules.json": {"path": ""}}, "must contain a JSON array, not dict"),
    ({"modules.json": [3]}, "must have a path and a type, unlike 3"),
    (
      {"sentence_bert_config.json": {"max_seq_length": "many"}},
      "max_seq_length must be an integer",
    ),
    ({"config_sentence_transformers.json": {"prompts": [1]}}, "prompts must be an object"),
    (
      {"config_sentence_transformers.json": {"default_prompt_name": "query"}},
      "default_prompt_name must be one of",
    ),
  ],
)
def test_settings_that_are_not_supported_are_refused(embed, files, error):
  with pytest.raises(ValueError, match=error):
    embed(files=files)


def test_embedding_no_text_is_refused(model):
  with pytest.raises(InputError, match="no text to embed"):
    model.embed([])


def test_batches_of_similar_texts_have_little_padding(monkeypatch):
  """Count the tokens of batches of 1,000 texts whose lengths vary as those of sentences do."""
  encoder = Encoder.__new__(Encoder)
  encoder.context = 512
  shapes = []

  def run_batch(texts, segments, batch, length):
    shapes.append((batch, length))
    return np.array([[len(text)] for text in texts])

  monkeypatch.setattr(encoder, "run_batch", run_batch)
  lengths = np.random.default_rng(0).lognormal(2.9, 0.6, 1000).astype(int) + 2
  texts = [[1] * length for length in lengths]
  outputs = list(encoder.run_many(texts))
  assert sorted(i for i, _ in outputs) == list(range(1000))
  assert all(output[0] == lengths[i] for i, output in outputs)
  assert all(batch * length <= max(length, Encoder.BATCH_TOKENS) for batch, length in shapes)
  assert sum(batch * length for batch, length in shapes) < 1.15 * sum(lengths)
  assert len(set(shapes)) <= 20, "each shape has kernels of its own"


@pytest.mark.parametrize("batch_tokens", [64, 2048])
def test_embeddings_in_batches_equal_those_of_single_texts(model, monkeypatch, batch_tokens):
  monkeypatch.setattr(Encoder, "BATCH_TOKENS", batch_tokens)
  rng = np.random.default_rng(0)
  lengths = [*rng.integers(1, 25, 20).tolist(), 40, 0]
  texts = [" ".join(rng.choice(WORDS[5:], length)) for length in lengths]
  model._runner = None
  together = model.embed(texts)
  steps = model._runner[2].steps
  assert max(batch for batch, _ in steps) > 1
  assert all(batch * length <= max(batch_tokens, length) for batch, length in steps)
  alone = np.concatenate([model.embed([text]) for text in texts])
  np.testing.assert_allclose(together, alone, atol=2e-6)
