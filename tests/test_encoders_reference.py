"""The encoders against transformers itself, every parameter random. Needs the extra `reference`; runs in .ci/run."""

import json

import numpy as np
import pytest
from conftest import close
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures

pytestmark = pytest.mark.slow
SIZES = dict(
  vocab_size=61,
  hidden_size=12,
  num_attention_heads=3,
  num_hidden_layers=2,
  intermediate_size=20,
  max_position_embeddings=40,
)
RELATIVE = SIZES | make_fixtures.RELATIVE
V3 = RELATIVE | dict(position_buckets=4, share_att_key=True, norm_rel_ebd="layer_norm")
CONFIGS = {
  "bert": lambda: transformers.BertConfig(**SIZES),
  "bert, ReLU, three segments": lambda: transformers.BertConfig(
    **SIZES, hidden_act="relu", type_vocab_size=3, layer_norm_eps=1e-3
  ),
  "bert, a decoder of its own": lambda: transformers.BertConfig(**SIZES, tie_word_embeddings=False),
  "roberta": lambda: transformers.RobertaConfig(**SIZES, type_vocab_size=1, layer_norm_eps=1e-5),
  "roberta, tanh GELU, other padding": lambda: transformers.RobertaConfig(
    **SIZES, hidden_act="gelu_new", pad_token_id=3, tie_word_embeddings=False
  ),
  "camembert": lambda: transformers.CamembertConfig(**SIZES, type_vocab_size=1, num_labels=5),
  "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, type_vocab_size=1, num_labels=1),
  "deberta-v3": lambda: transformers.DebertaV2Config(**V3),
  "deberta-v3, written as such": lambda: transformers.DebertaV2Config(
    **V3, legacy=False, pooler_hidden_act="tanh", num_labels=3
  ),
  "deberta, c2p": lambda: transformers.DebertaV2Config(
    **RELATIVE | {"pos_att_type": ["c2p"]}, max_relative_positions=6
  ),
  "deberta, p2c, buckets": lambda: transformers.DebertaV2Config(
    **RELATIVE | {"pos_att_type": "p2c"}, position_buckets=6, max_relative_positions=12
  ),
  "deberta, a convolution": lambda: transformers.DebertaV2Config(
    **V3, conv_kernel_size=3, conv_groups=2, tie_word_embeddings=False
  ),
}


def batch(config, padding: str):
  """ids, keep and segments (3, 13), two of the texts shorter than the third."""
  draw = np.random.default_rng(5)
  ids, attention_mask = draw.integers(4, config.vocab_size, (3, 13)), np.ones((3, 13), np.int64)
  for row, length in () if padding == "no padding" else ((0, 9), (2, 4)):
    there = np.s_[row, length:] if padding == "right" else np.s_[row, : 13 - length]
    ids[there], attention_mask[there] = config.pad_token_id, 0
  return ids, attention_mask, draw.integers(0, max(1, config.type_vocab_size), ids.shape)


def theirs(model, ids, attention_mask, segments):
  with torch.no_grad():
    out = model(
      torch.tensor(ids),
      attention_mask=torch.tensor(attention_mask),
      token_type_ids=torch.tensor(segments),
    )
  return (
    torch.stack([out.start_logits, out.end_logits], -1) if hasattr(out, "start_logits") else out[0]
  ).numpy()


@pytest.fixture(
  scope="module", params=[(name, seed) for name in CONFIGS for seed in range(2)], ids=str
)
def family(request):
  config = CONFIGS[request.param[0]]()
  return config, make_fixtures.encoders(config, request.param[1])


@pytest.mark.parametrize("head", make_fixtures.HEADS)
def test_what_each_head_says_is_theirs(tmp_path, family, head):
  config, heads = family
  heads[head].save_pretrained(tmp_path)
  model = checkpoints.load_module(tmp_path)
  for padding in (
    ("no padding", "right", "left") if model.task == "feature-extraction" else ("right",)
  ):
    if padding == "left" and config.model_type == "bert":
      continue  # theirs counts the padding's places
    ids, attention_mask, segments = batch(config, padding)
    got, want = (
      model(
        Tensor(ids), None if padding == "no padding" else Tensor(attention_mask), Tensor(segments)
      ).numpy(),
      theirs(heads[head], ids, attention_mask, segments),
    )
    rows = np.s_[:] if model.task == "text-classification" else attention_mask == 1
    close(got[rows], want[rows], 2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v3", "deberta, a convolution"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_text_gives_what_it_gives_alone(tmp_path, name, side):
  config = CONFIGS[name]()
  make_fixtures.encoders(config, 0)["ForMaskedLM"].save_pretrained(tmp_path)
  model, (ids, attention_mask, _) = checkpoints.load_module(tmp_path), batch(config, side)
  padded = model(Tensor(ids), Tensor(attention_mask)).numpy()
  for row in range(3):
    close(
      padded[row][attention_mask[row] == 1],
      model(Tensor(ids[row : row + 1, attention_mask[row] == 1])).numpy()[0],
      2e-5,
    )


def test_pre_trainings_words_are_theirs(tmp_path):
  model = transformers.BertForPreTraining(CONFIGS["bert"]()).eval()
  make_fixtures.randomise(model, 0)
  model.save_pretrained(tmp_path)
  ids, attention_mask, segments = batch(model.config, "right")
  got, want = (
    checkpoints.load_module(tmp_path)(
      Tensor(ids), Tensor(attention_mask), Tensor(segments)
    ).numpy(),
    theirs(model, ids, attention_mask, segments),
  )
  close(got[attention_mask == 1], want[attention_mask == 1])


@pytest.mark.parametrize(
  "old",
  [{"bert.": ""}, {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}],
  ids=["no prefix", "TensorFlow's norms"],
)
def test_files_of_other_spellings_are_read_as_theirs(tmp_path, old):
  model = make_fixtures.encoders(CONFIGS["bert"](), 0)["ForMaskedLM"]
  model.save_pretrained(tmp_path)
  arrays = {n: e.numpy() for n, e in safetensors.read(tmp_path).items()}
  for new, spelling in old.items():
    arrays = {n.replace(new, spelling): a for n, a in arrays.items()}
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  ids, attention_mask, segments = batch(model.config, "no padding")
  close(
    checkpoints.load_module(tmp_path)(Tensor(ids), None, Tensor(segments)).numpy(),
    theirs(model, ids, attention_mask, segments),
  )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["bert", "deberta-v3"])
def test_narrow_weights_say_nearly_the_same(tmp_path, name, dtype):
  model = make_fixtures.encoders(CONFIGS[name](), 0)["ForMaskedLM"]
  model.save_pretrained(tmp_path)
  ids, attention_mask, segments = batch(model.config, "no padding")
  want = theirs(model, ids, attention_mask, segments)
  assert (
    np.abs(
      checkpoints.load_module(tmp_path, dtype)(Tensor(ids), None, Tensor(segments)).numpy() - want
    ).max()
    < 0.2 * want.std()
  )


@pytest.mark.parametrize("labels, problem", [(1, "regression"), (3, "single_label_classification")])
def test_the_problem_is_theirs(tmp_path, labels, problem):
  model = transformers.BertForSequenceClassification(
    transformers.BertConfig(**SIZES, num_labels=labels)
  )
  model.save_pretrained(tmp_path)
  ours = checkpoints.load_module(tmp_path)
  assert ours.head.problem == problem and ours.labels == [
    model.config.id2label[i] for i in range(labels)
  ]
  assert "architectures" in json.loads((tmp_path / "config.json").read_text())
