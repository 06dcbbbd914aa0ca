"""The encoders equal transformers itself, with random parameters.

Needs the extra `reference`; runs in .ci/run.
"""

import json

import numpy as np
import pytest
from conftest import close
from tinygrad import Tensor, nn

from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from transformer import loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures  # noqa: E402

pytestmark = pytest.mark.slow
SIZES = dict(
  vocab_size=61,
  hidden_size=12,
  num_attention_heads=3,
  num_hidden_layers=2,
  intermediate_size=20,
  max_position_embeddings=40,
)
DISTIL = dict(vocab_size=61, dim=12, n_heads=3, n_layers=2, hidden_dim=20)
MODERN = SIZES | dict(num_hidden_layers=5, local_attention=6, pad_token_id=0)
RELATIVE = SIZES | make_fixtures.RELATIVE
V3 = RELATIVE | dict(position_buckets=4, share_att_key=True, norm_rel_ebd="layer_norm")
CONFIGS = {
  "bert": lambda: transformers.BertConfig(**SIZES),
  "bert, ReLU, three segments": lambda: transformers.BertConfig(
    **SIZES, hidden_act="relu", type_vocab_size=3, layer_norm_eps=1e-3
  ),
  "bert, untied decoder": lambda: transformers.BertConfig(**SIZES, tie_word_embeddings=False),
  "roberta": lambda: transformers.RobertaConfig(**SIZES, type_vocab_size=1, layer_norm_eps=1e-5),
  "roberta, tanh GELU, padding id 3": lambda: transformers.RobertaConfig(
    **SIZES, hidden_act="gelu_new", pad_token_id=3, tie_word_embeddings=False
  ),
  "camembert": lambda: transformers.CamembertConfig(**SIZES, type_vocab_size=1, num_labels=5),
  "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, type_vocab_size=1, num_labels=1),
  "distilbert": lambda: transformers.DistilBertConfig(**DISTIL),
  "distilbert, ReLU, untied decoder": lambda: transformers.DistilBertConfig(
    **DISTIL, activation="relu", tie_word_embeddings=False, num_labels=5
  ),
  "modernbert": lambda: transformers.ModernBertConfig(**MODERN, norm_eps=1e-3),
  "modernbert, other settings": lambda: transformers.ModernBertConfig(
    **MODERN,
    global_attn_every_n_layers=2,
    rope_parameters={
      "full_attention": {"rope_type": "default", "rope_theta": 20.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
    },
    classifier_pooling="mean",
    classifier_activation="silu",
    hidden_activation="gelu_pytorch_tanh",
    tie_word_embeddings=False,
    num_labels=5,
  ),
  "deberta-v3": lambda: transformers.DebertaV2Config(**V3),
  "deberta-v3, not legacy": lambda: transformers.DebertaV2Config(
    **V3, legacy=False, pooler_hidden_act="tanh", num_labels=3
  ),
  "deberta, c2p": lambda: transformers.DebertaV2Config(
    **RELATIVE | {"pos_att_type": ["c2p"]}, max_relative_positions=6
  ),
  "deberta, p2c, buckets": lambda: transformers.DebertaV2Config(
    **RELATIVE | {"pos_att_type": "p2c"}, position_buckets=6, max_relative_positions=12
  ),
  "deberta, convolution": lambda: transformers.DebertaV2Config(
    **V3, conv_kernel_size=3, conv_groups=2, tie_word_embeddings=False
  ),
}


def batch(config, padding: str):
  """Return ids, attention_mask and segments (3, 13); two of the texts are shorter than the third.

  padding: "no padding", "right" or "left".
  """
  rng = np.random.default_rng(5)
  ids = rng.integers(4, config.vocab_size, (3, 13))
  attention_mask = np.ones((3, 13), np.int64)
  for row, length in () if padding == "no padding" else ((0, 9), (2, 4)):
    padded = np.s_[row, length:] if padding == "right" else np.s_[row, : 13 - length]
    ids[padded] = config.pad_token_id
    attention_mask[padded] = 0
  num_segments = make_fixtures.num_segments(config)
  return ids, attention_mask, rng.integers(0, max(1, num_segments), ids.shape)


def reference_output(model, ids, attention_mask, segments):
  """Return the logits of a transformers model, or its last hidden state if it has no head."""
  inputs = {"attention_mask": torch.tensor(attention_mask)}
  if make_fixtures.num_segments(model.config):
    inputs["token_type_ids"] = torch.tensor(segments)
  with torch.no_grad():
    out = model(torch.tensor(ids), **inputs)
  if hasattr(out, "start_logits"):
    return torch.stack([out.start_logits, out.end_logits], -1).numpy()
  return out[0].numpy()


@pytest.fixture(
  scope="module", params=[(name, seed) for name in CONFIGS for seed in range(2)], ids=str
)
def family(request):
  """Return a config, and a transformers model with each head."""
  name, seed = request.param
  config = CONFIGS[name]()
  return config, make_fixtures.encoders(config, seed)


@pytest.mark.parametrize("head", make_fixtures.HEADS)
def test_head_outputs_equal_the_references(tmp_path, family, head):
  config, references = family
  references[head].save_pretrained(tmp_path)
  model = checkpoints.load_module(tmp_path)
  is_bare = model.task == "feature-extraction"
  for padding in ("no padding", "right", "left") if is_bare else ("right",):
    # transformers' BERT and DistilBERT count padding in their position ids.
    if padding == "left" and config.model_type in ("bert", "distilbert"):
      continue
    ids, attention_mask, segments = batch(config, padding)
    mask = None if padding == "no padding" else Tensor(attention_mask)
    actual = model(Tensor(ids), mask, Tensor(segments)).numpy()
    expected = reference_output(references[head], ids, attention_mask, segments)
    rows = np.s_[:] if model.task == "text-classification" else attention_mask == 1
    close(actual[rows], expected[rows], 2e-5)


@pytest.mark.parametrize(
  "name", ["bert", "roberta", "distilbert", "modernbert", "deberta-v3", "deberta, convolution"]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_outputs_for_a_padded_batch_equal_those_for_each_text(tmp_path, name, side):
  config = CONFIGS[name]()
  make_fixtures.encoders(config, 0)["ForMaskedLM"].save_pretrained(tmp_path)
  model = checkpoints.load_module(tmp_path)
  ids, attention_mask, _ = batch(config, side)
  padded = model(Tensor(ids), Tensor(attention_mask)).numpy()
  for row in range(3):
    is_token = attention_mask[row] == 1
    alone = model(Tensor(ids[row : row + 1, is_token])).numpy()[0]
    close(padded[row][is_token], alone, 2e-5)


@pytest.mark.parametrize("name", ["distilbert", "modernbert", "modernbert, other settings"])
def test_loss_and_gradients_equal_the_references(tmp_path, name):
  config = CONFIGS[name]()
  reference = make_fixtures.encoders(config, 0)["ForMaskedLM"]
  reference.save_pretrained(tmp_path)
  ids, attention_mask, _ = batch(config, "right")
  labels = np.where(attention_mask == 1, ids, -100)
  mask = torch.tensor(attention_mask)
  output = reference(torch.tensor(ids), attention_mask=mask, labels=torch.tensor(labels))
  output.loss.backward()

  model = checkpoints.load_module(tmp_path)
  parameters = nn.state.get_state_dict(model)
  logits = model(Tensor(ids), Tensor(attention_mask))
  value = loss(logits, Tensor(labels), smoothing=0, ignore=-100)
  grads = dict(zip(parameters, value.gradient(*parameters.values()), strict=True))
  Tensor.realize(value, *grads.values())
  assert value.item() == pytest.approx(output.loss.item(), abs=1e-4)
  table = checkpoints.architecture(checkpoints.read_config(tmp_path))[0].KEY_MAP.table(model)
  expected = {n: p.grad.numpy() for n, p in reference.named_parameters()}
  assert table.keys() == expected.keys()
  for tensor, sources in table.items():
    actual = np.concatenate([grads[p].numpy() for p in sources])
    assert np.abs(actual - expected[tensor]).max() < 1e-4, tensor
    # The softmax cancels the bias of the keys.
    if expected[tensor].std() > 1e-6:
      assert np.abs(actual - expected[tensor]).max() < 2e-3 * expected[tensor].std(), tensor


def test_masked_lm_logits_of_a_pretraining_checkpoint_equal_the_references(tmp_path):
  reference = transformers.BertForPreTraining(CONFIGS["bert"]()).eval()
  make_fixtures.randomise(reference, 0)
  reference.save_pretrained(tmp_path)
  ids, attention_mask, segments = batch(reference.config, "right")
  model = checkpoints.load_module(tmp_path)
  actual = model(Tensor(ids), Tensor(attention_mask), Tensor(segments)).numpy()
  expected = reference_output(reference, ids, attention_mask, segments)
  is_token = attention_mask == 1
  close(actual[is_token], expected[is_token])


@pytest.mark.parametrize(
  "renames",
  [{"bert.": ""}, {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}],
  ids=["no prefix", "TensorFlow's norms"],
)
def test_checkpoints_with_legacy_names_equal_the_reference(tmp_path, renames):
  reference = make_fixtures.encoders(CONFIGS["bert"](), 0)["ForMaskedLM"]
  reference.save_pretrained(tmp_path)
  arrays = {n: e.numpy() for n, e in safetensors.read(tmp_path).items()}
  for new, old in renames.items():
    arrays = {n.replace(new, old): a for n, a in arrays.items()}
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays)
  ids, attention_mask, segments = batch(reference.config, "no padding")
  actual = checkpoints.load_module(tmp_path)(Tensor(ids), None, Tensor(segments)).numpy()
  close(actual, reference_output(reference, ids, attention_mask, segments))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["bert", "deberta-v3"])
def test_16_and_8_bit_weights_change_the_logits_little(tmp_path, name, dtype):
  reference = make_fixtures.encoders(CONFIGS[name](), 0)["ForMaskedLM"]
  reference.save_pretrained(tmp_path)
  ids, attention_mask, segments = batch(reference.config, "no padding")
  expected = reference_output(reference, ids, attention_mask, segments)
  actual = checkpoints.load_module(tmp_path, dtype)(Tensor(ids), None, Tensor(segments)).numpy()
  assert np.abs(actual - expected).max() < 0.2 * expected.std()


@pytest.mark.parametrize(
  "num_labels, problem", [(1, "regression"), (3, "single_label_classification")]
)
def test_the_default_problem_type_depends_on_the_number_of_labels(tmp_path, num_labels, problem):
  config = transformers.BertConfig(**SIZES, num_labels=num_labels)
  reference = transformers.BertForSequenceClassification(config)
  reference.save_pretrained(tmp_path)
  model = checkpoints.load_module(tmp_path)
  assert model.head.problem == problem
  assert model.labels == [reference.config.id2label[i] for i in range(num_labels)]
  assert "architectures" in json.loads((tmp_path / "config.json").read_text())
