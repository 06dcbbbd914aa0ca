import numpy as np
import pytest
from conftest import FIXTURES, close, with_head
from test_encoders import HEADS, expected
from tinygrad import Context, Tensor, nn

import models
import models.bert
from models import heads
from models.bert import Bert, after_padding
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import Config
from transformer import loss

CASES = ["bert-a", "roberta-a"]
PAD = {"bert-a": 0, "roberta-a": 1}


def given(want):
  return Tensor(want["ids"]), Tensor(want["keep"]), Tensor(want["segments"])


@pytest.mark.parametrize(
  "case", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])]
)
def test_gradients_are_hugging_faces(case):
  want, model = expected(case), checkpoints.load_module(FIXTURES / case)
  ids, attention_mask, segments = given(want)
  names = [
    n
    for n in want
    if (n.startswith("grad.") and "query.weight" in n)
    or n.endswith(("position_embeddings.weight", "intermediate.dense.bias"))
  ]
  ours = {
    theirs: our
    for theirs, [our] in (models.bert.KEY_MAP if case == "bert-a" else models.bert.ROBERTA)
    .table(model)
    .items()
  }
  params = nn.state.get_state_dict(model)
  value = loss(
    model(ids, attention_mask, segments),
    attention_mask.bool().where(ids, -100),
    smoothing=0,
    ignore=-100,
  )
  grads = value.gradient(*(params[ours[n.removeprefix("grad.")]] for n in names))
  assert len(names) == 3
  assert value.item() == pytest.approx(float(want["loss"]), rel=1e-5)
  for name, grad in zip(names, grads):
    close(grad.numpy(), want[name], 5e-5)


def test_the_first_segment_learns_also_where_none_are_told():
  model = Bert(20, 10, 8, 2, 0, 16)
  with Context(USE_ATOMICS=1):  # as tinyformer/training/trainer.py has it
    [grad] = model(Tensor([[1, 2, 3]]))[..., 0].sum().gradient(model.segments.weight)
    assert grad.numpy().any(1).tolist() == [True, False]


@pytest.mark.parametrize("case", CASES)
def test_where_a_text_is_padded_does_not_matter(case):
  model, [_, text, _] = checkpoints.load_module(FIXTURES / case), expected(case)["ids"]
  ids, attention_mask = np.full((3, 11), PAD[case]), np.zeros((3, 11), bool)
  for row, start in enumerate((0, 4, 2)):
    ids[row, start : start + 7], attention_mask[row, start : start + 7] = text[:7], True
  first, *others = (
    model(Tensor(ids), Tensor(attention_mask)).numpy()[attention_mask].reshape(3, 7, -1)
  )
  for other in others:
    close(other, first)


def test_every_token_sees_all_others_and_their_segments():
  model, want = checkpoints.load_module(FIXTURES / "bert-a"), expected("bert-a")

  def said(ids, segments):
    return model(Tensor(ids), Tensor(np.ones_like(ids)), Tensor(segments)).numpy()

  ids, segments = np.stack([want["ids"][0]] * 3), np.zeros((3, 11), np.int32)
  ids[1, -1], segments[2, 0] = (
    3 + (ids[1, -1] - 2) % 58,
    1,
  )  # another last token, another first segment
  same, *others = said(ids, segments)
  for other in others:
    assert (other != same).any(-1).all()


def test_robertas_places_begin_after_the_paddings():
  assert after_padding(1)(Tensor([[9, 8, 7, 1, 1], [1, 1, 9, 8, 7]]), None).tolist() == [
    [2, 3, 4, 1, 1],
    [1, 1, 2, 3, 4],
  ]
  model = checkpoints.load_module(FIXTURES / "roberta-a")  # of 32 rows of positions
  with pytest.raises(ValueError, match="31 tokens are more than the context of 30"):
    model(Tensor.full((1, 31), 7))


def test_the_head_is_what_the_architecture_names(tmp_path):
  model = checkpoints.load_module(with_head("bert-a", "ForSequenceClassification", tmp_path))
  assert (model.task, model.labels, model.head.problem) == (
    "text-classification",
    ["calm", "glad", "sad", "wry"],
    "single_label_classification",
  )
  model = checkpoints.load_module(
    with_head(
      "bert-a", "ForSequenceClassification", tmp_path, problem_type="multi_label_classification"
    )
  )
  assert model.head.problem == "multi_label_classification"
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
  assert (
    checkpoints.load_module(with_head("bert-a", "Model", tmp_path, architectures=None)).task
    == "feature-extraction"
  )
  assert heads.labels(Config({"num_labels": 3})) == ["LABEL_0", "LABEL_1", "LABEL_2"]


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
def test_what_is_not_built_is_told(tmp_path, key, value):
  with pytest.raises(ValueError, match=value[0] if isinstance(value, list) else f"{value}"):
    checkpoints.load_module(with_head("bert-a", "Model", tmp_path, **{key: value}))


@pytest.mark.parametrize(
  "old",
  [
    lambda n: n.removeprefix("bert."),
    lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ),
    lambda n: n.replace("bert.", "bert."),
  ],
  ids=["no prefix", "TensorFlow's norms", "as now"],
)
def test_files_of_other_spellings_are_read(tmp_path, old):
  arrays = {old(n): e.numpy() for n, e in safetensors.read(FIXTURES / "bert-a").items()} | {
    "bert.embeddings.position_ids": np.zeros(3, np.float32)
  }
  model = checkpoints.load_module(with_head("bert-a", "ForSequenceClassification", tmp_path))
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  again = checkpoints.load_module(tmp_path)
  for name, t in nn.state.get_state_dict(model).items():
    np.testing.assert_array_equal(nn.state.get_state_dict(again)[name].numpy(), t.numpy())


def test_a_head_that_the_file_lacks_is_told(tmp_path):
  arrays = {
    n: e.numpy()
    for n, e in safetensors.read(FIXTURES / "bert-a").items()
    if not n.startswith("qa_outputs")
  }
  with_head("bert-a", "ForQuestionAnswering", tmp_path)
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  with pytest.raises(ValueError, match="lacks qa_outputs.bias, qa_outputs.weight"):
    checkpoints.load_module(tmp_path)


def test_a_mean_of_what_is_kept():
  x, attention_mask = (
    np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32),
    np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]),
  )
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


@pytest.mark.parametrize(
  "sizes, head, count",
  [
    (BASE, "BertModel", 109_482_240),
    (BASE, "BertForMaskedLM", 109_514_298),
    (LARGE, "BertModel", 335_141_888),
    (ROBERTA, "RobertaModel", 124_645_632),
  ],
  ids=["bert-base", "its words", "bert-large", "roberta-base"],
)
def test_the_published_models_have_as_many_parameters(sizes, head, count):
  with safetensors.skip_init():
    model = models.bert.from_config(Config(sizes | {"architectures": [head]}))
  dim = sizes["hidden_size"]
  pooler = (
    dim * dim + dim if head.endswith("Model") else 0
  )  # counted by Hugging Face, read by no head of a bare model
  assert sum(int(np.prod(t.shape)) for t in nn.state.get_parameters(model)) + pooler == count
