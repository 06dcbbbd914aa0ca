"""BERT and RoBERTa: gradients, padding, position ids, heads, checkpoint spellings and sizes."""

import numpy as np
import pytest
from conftest import FIXTURES, close, uninitialized, with_head
from test_encoders import HEADS, load_expected
from tinygrad import Context, Tensor, nn

import models
import models.bert
import models.roberta
from models import heads
from models.bert import Bert, BertConfig
from models.hf_config import HFConfig
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from transformer import loss

CASES = ["bert-a", "roberta-a"]
PADDING_IDS = {"bert-a": 0, "roberta-a": 1, "distilbert-a": 0, "modernbert-a": 0}


def ids_mask_segments(expected):
  return Tensor(expected["ids"]), Tensor(expected["keep"]), Tensor(expected["segments"])


@pytest.mark.parametrize(
  "case", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])]
)
def test_gradients_equal_hugging_faces(case):
  expected = load_expected(case)
  model = checkpoints.load_module(FIXTURES / case)
  ids, attention_mask, segments = ids_mask_segments(expected)
  names = [
    n
    for n in expected
    if (n.startswith("grad.") and "query.weight" in n)
    or n.endswith(("position_embeddings.weight", "intermediate.dense.bias"))
  ]
  key_map = models.bert.KEY_MAP if case == "bert-a" else models.roberta.KEY_MAP
  ours = {theirs: our for theirs, [our] in key_map.table(model).items()}
  params = nn.state.get_state_dict(model)
  logits = model(ids, attention_mask, segments)
  target = attention_mask.bool().where(ids, -100)
  value = loss(logits, target, smoothing=0, ignore=-100)
  grads = value.gradient(*(params[ours[n.removeprefix("grad.")]] for n in names))
  assert len(names) == 3
  assert value.item() == pytest.approx(float(expected["loss"]), rel=1e-5)
  for name, grad in zip(names, grads, strict=True):
    close(grad.numpy(), expected[name], 5e-5)


def test_first_segment_embedding_has_a_gradient_without_segment_ids():
  model = Bert(BertConfig(20, 10, 8, 2, 0, 16))
  # tinyformer/training/trainer.py sets USE_ATOMICS too.
  with Context(USE_ATOMICS=1):
    [grad] = model(Tensor([[1, 2, 3]]))[..., 0].sum().gradient(model.segments.weight)
    assert grad.numpy().any(1).tolist() == [True, False]


@pytest.mark.parametrize("case", PADDING_IDS)
def test_outputs_do_not_depend_on_the_side_of_padding(case):
  model = checkpoints.load_module(FIXTURES / case)
  [_, text, _] = load_expected(case)["ids"]
  ids = np.full((3, 11), PADDING_IDS[case])
  attention_mask = np.zeros((3, 11), bool)
  for row, start in enumerate((0, 4, 2)):
    ids[row, start : start + 7] = text[:7]
    attention_mask[row, start : start + 7] = True
  outputs = model(Tensor(ids), Tensor(attention_mask)).numpy()
  first, *shifted = outputs[attention_mask].reshape(3, 7, -1)
  for output in shifted:
    close(output, first)


def test_each_output_depends_on_every_token_and_segment_id():
  model = checkpoints.load_module(FIXTURES / "bert-a")
  text = load_expected("bert-a")["ids"][0]
  ids = np.stack([text] * 3)
  segments = np.zeros((3, 11), np.int32)
  # Row 1 has another last token, row 2 another segment id of the first token.
  ids[1, -1] = 3 + (ids[1, -1] - 2) % 58
  segments[2, 0] = 1
  outputs = model(Tensor(ids), Tensor(np.ones_like(ids)), Tensor(segments)).numpy()
  original, *changed = outputs
  for output in changed:
    assert (output != original).any(-1).all()


def test_robertas_position_ids_begin_after_the_padding_id():
  # The fixture's position table has 32 rows.
  model = checkpoints.load_module(FIXTURES / "roberta-a")
  ids = Tensor([[9, 8, 7, 1, 1], [1, 1, 9, 8, 7]])
  assert model.position_ids(ids, None).tolist() == [[2, 3, 4, 1, 1], [1, 1, 2, 3, 4]]
  with pytest.raises(ValueError, match="31 tokens are more than the context of 30: shorten"):
    model(Tensor.full((1, 31), 7))


def test_the_architecture_in_config_json_selects_the_head(tmp_path):
  model = checkpoints.load_module(with_head("bert-a", "ForSequenceClassification", tmp_path))
  assert (model.task, model.labels, model.head.problem) == (
    "text-classification",
    ["calm", "glad", "sad", "wry"],
    "single_label_classification",
  )
  multi_label = "multi_label_classification"
  folder = with_head("bert-a", "ForSequenceClassification", tmp_path, problem_type=multi_label)
  assert checkpoints.load_module(folder).head.problem == multi_label
  assert [
    checkpoints.load_module(with_head("bert-a", head, tmp_path)).task
    for head in ["ForPreTraining", *HEADS]
  ] == [
    "fill-mask",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "feature-extraction",
  ]
  folder = with_head("bert-a", "Model", tmp_path, architectures=None)
  assert checkpoints.load_module(folder).task == "feature-extraction"
  assert heads.labels_from_hf(HFConfig({"num_labels": 3})) == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
  "key, value",
  [
    ("architectures", ["BertForMultipleChoice"]),
    ("architectures", ["BertLMHeadModel"]),
    ("is_decoder", True),
    ("position_embedding_type", "relative_key"),
    ("hidden_act", "mish"),
  ],
)
def test_an_unsupported_configuration_raises_an_error(tmp_path, key, value):
  message = value[0] if isinstance(value, list) else key
  with pytest.raises(ValueError, match=message):
    checkpoints.load_module(with_head("bert-a", "Model", tmp_path, **{key: value}))


@pytest.mark.parametrize(
  "rename",
  [
    lambda n: n.removeprefix("bert."),
    lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ),
    lambda n: n.replace("bert.", "bert."),
  ],
  ids=["no prefix", "TensorFlow's norms", "current names"],
)
def test_checkpoints_with_legacy_names_load(tmp_path, rename):
  arrays = {rename(n): e.numpy() for n, e in safetensors.read(FIXTURES / "bert-a").items()}
  arrays["bert.embeddings.position_ids"] = np.zeros(3, np.float32)
  model = checkpoints.load_module(with_head("bert-a", "ForSequenceClassification", tmp_path))
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  reloaded = nn.state.get_state_dict(checkpoints.load_module(tmp_path))
  for name, t in nn.state.get_state_dict(model).items():
    np.testing.assert_array_equal(reloaded[name].numpy(), t.numpy())


def test_a_missing_head_raises_an_error_that_names_its_tensors(tmp_path):
  arrays = {
    n: e.numpy()
    for n, e in safetensors.read(FIXTURES / "bert-a").items()
    if not n.startswith("qa_outputs")
  }
  with_head("bert-a", "ForQuestionAnswering", tmp_path)
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  with pytest.raises(ValueError, match=r"lacks qa_outputs\.bias, qa_outputs\.weight"):
    checkpoints.load_module(tmp_path)


def test_mean_pooling_ignores_padding():
  x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
  attention_mask = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
  np.testing.assert_allclose(
    heads.mean(Tensor(x), Tensor(attention_mask)).numpy(),
    [x[0, :3].mean(0), x[1, 3:].mean(0)],
    rtol=1e-5,
  )
  np.testing.assert_allclose(heads.mean(Tensor(x)).numpy(), x.mean(1), rtol=1e-5)


BASE = dict(
  hidden_size=768,
  num_attention_heads=12,
  num_hidden_layers=12,
  intermediate_size=3072,
  max_position_embeddings=512,
  vocab_size=30522,
)
LARGE = BASE | dict(
  hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, intermediate_size=4096
)
ROBERTA = BASE | dict(
  model_type="roberta", vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
)

DISTIL = dict(model_type="distilbert", vocab_size=30522)
MODERN = dict(model_type="modernbert", vocab_size=50368)
MODERN_LARGE = MODERN | dict(
  hidden_size=1024, num_attention_heads=16, num_hidden_layers=28, intermediate_size=2624
)


@pytest.mark.parametrize(
  "sizes, architecture, num_parameters",
  [
    (BASE, "BertModel", 109_482_240),
    (BASE, "BertForMaskedLM", 109_514_298),
    (LARGE, "BertModel", 335_141_888),
    (ROBERTA, "RobertaModel", 124_645_632),
    (DISTIL, "DistilBertModel", 66_362_880),
    (DISTIL, "DistilBertForMaskedLM", 66_985_530),
    (MODERN, "ModernBertModel", 149_014_272),
    (MODERN, "ModernBertForMaskedLM", 149_655_232),
    (MODERN_LARGE, "ModernBertForMaskedLM", 395_881_664),
  ],
  ids=[
    "bert-base",
    "bert-base masked LM",
    "bert-large",
    "roberta-base",
    "distilbert-base",
    "distilbert-base masked LM",
    "ModernBERT-base",
    "ModernBERT-base masked LM",
    "ModernBERT-large masked LM",
  ],
)
def test_parameter_counts_equal_the_published_ones(sizes, architecture, num_parameters):
  module, model_class = checkpoints.architecture(HFConfig({"model_type": "bert"} | sizes))
  config = module.from_hf(HFConfig(sizes | {"architectures": [architecture]}))
  model = uninitialized(model_class, config)
  dim = config.dim
  # Hugging Face counts the pooler of a bare BERT or RoBERTa, which no head reads.
  has_pooler = architecture in ("BertModel", "RobertaModel")
  pooler = dim * dim + dim if has_pooler else 0
  actual = sum(int(np.prod(t.shape)) for t in nn.state.get_parameters(model))
  assert actual + pooler == num_parameters
