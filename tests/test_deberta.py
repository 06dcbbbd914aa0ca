"""DeBERTa: gradients, padding, distance buckets, unsupported configurations and sizes."""

import numpy as np
import pytest
from conftest import FIXTURES, close, uninitialized, with_head
from test_encoders import load_expected
from tinygrad import Tensor, nn

import models
import models.deberta
from layers.positions import signed_bucket
from models.deberta import RelativeEmbedding
from models.hf_config import HFConfig
from tinyformer import checkpoints
from transformer import loss

# deberta-a: share_att_key, buckets, a norm of the relative vectors.
# deberta-b: separate key projections, no buckets, a convolution.
CASES = ["deberta-a", "deberta-b"]


@pytest.mark.parametrize("case", ["deberta-a", pytest.param("deberta-b", marks=pytest.mark.slow)])
def test_gradients_equal_hugging_faces(case):
  expected = load_expected(case)
  model = checkpoints.load_module(FIXTURES / case)
  ids = Tensor(expected["ids"])
  attention_mask = Tensor(expected["keep"])
  names = [
    n
    for n in expected
    if n.startswith("grad.")
    and n.endswith(("query_proj.weight", "intermediate.dense.bias", "pos_key_proj.weight"))
  ]
  ours = {theirs: our for theirs, [our] in models.deberta.KEY_MAP.table(model).items()}
  params = nn.state.get_state_dict(model)
  target = attention_mask.bool().where(ids, -100)
  value = loss(model(ids, attention_mask), target, smoothing=0, ignore=-100)
  grads = value.gradient(*(params[ours[n.removeprefix("grad.")]] for n in names))
  assert value.item() == pytest.approx(float(expected["loss"]), rel=1e-5) and len(names) > 1
  for name, grad in zip(names, grads, strict=True):
    close(grad.numpy(), expected[name], 5e-5)


@pytest.mark.parametrize("case", CASES)
def test_outputs_do_not_depend_on_absolute_positions_or_the_side_of_padding(case):
  model = checkpoints.load_module(FIXTURES / case)
  [_, text, _] = load_expected(case)["ids"]
  ids = np.zeros((3, 11), np.int32)
  attention_mask = np.zeros((3, 11), bool)
  for row, start in enumerate((0, 4, 2)):
    ids[row, start : start + 7] = text[:7]
    attention_mask[row, start : start + 7] = True
  outputs = model.last_hidden_state(Tensor(ids), Tensor(attention_mask)).numpy()
  first, *shifted = outputs[attention_mask].reshape(3, 7, -1)
  for output in shifted:
    close(output, first)


def test_short_distances_have_their_own_buckets_and_long_ones_share_buckets():
  near = [signed_bucket(d, 256, 512) for d in range(-128, 129)]
  far = [signed_bucket(d, 256, 512) for d in range(129, 512)]
  assert near == list(range(-128, 129))
  assert far == sorted(far)
  assert (far[0], far[-1]) == (129, 255)
  assert len(set(far)) < len(far)
  # 256, the geometric mean of 128 and 511, lies midway between their buckets.
  assert signed_bucket(256, 256, 512) == 192
  assert [signed_bucket(-d, 256, 512) for d in range(129, 512)] == [-b for b in far]


def test_rows_of_relative_positions_follow_equation_3():
  """Equation 3 of DeBERTa: 0 for i - j <= -k, 2k - 1 for i - j >= k, i - j + k between."""
  _, delta = RelativeEmbedding(4, max_distance=3)(6)
  assert delta.tolist() == [
    [0 if i - j <= -3 else 5 if i - j >= 3 else i - j + 3 for j in range(6)] for i in range(6)
  ]


@pytest.mark.parametrize(
  "key, value",
  [
    ("architectures", ["DebertaV2ForMultipleChoice"]),
    ("relative_attention", False),
    ("position_biased_input", True),
    ("type_vocab_size", 2),
    ("pos_att_type", "p2p"),
    ("pos_att_type", None),
  ],
)
def test_an_unsupported_configuration_raises_an_error(tmp_path, key, value):
  with pytest.raises(ValueError, match="ForMultipleChoice" if key == "architectures" else key):
    checkpoints.load_module(with_head("deberta-a", "Model", tmp_path, **{key: value}))


def test_a_model_of_version_1_raises_an_error(tmp_path):
  with pytest.raises(ValueError, match=r'model_type must be one of .*, not "deberta"'):
    checkpoints.load_module(with_head("deberta-a", "Model", tmp_path, model_type="deberta"))


SIZES = dict(
  vocab_size=128100,
  hidden_size=768,
  num_attention_heads=12,
  num_hidden_layers=12,
  intermediate_size=3072,
  max_position_embeddings=512,
  relative_attention=True,
  position_biased_input=False,
  type_vocab_size=0,
  pos_att_type="p2c|c2p",
  position_buckets=256,
  share_att_key=True,
  norm_rel_ebd="layer_norm",
)
LARGE = dict(hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, intermediate_size=4096)
XLARGE = dict(
  hidden_size=1536,
  num_attention_heads=24,
  num_hidden_layers=24,
  intermediate_size=6144,
  conv_kernel_size=3,
  conv_act="gelu",
)


@pytest.mark.parametrize(
  "changes, num_parameters",
  [({}, 183_831_552), (LARGE, 434_012_160), (XLARGE, 884_593_152)],
  ids=["v3-base", "v3-large", "v2-xlarge"],
)
def test_parameter_counts_equal_the_published_ones(changes, num_parameters):
  config = models.deberta.from_hf(HFConfig(SIZES | changes))
  model = uninitialized(models.deberta.Deberta, config)
  actual = sum(int(np.prod(t.shape)) for t in nn.state.get_parameters(model))
  assert actual == num_parameters
