import numpy as np
import pytest
from conftest import FIXTURES, close, with_head
from test_encoders import expected
from tinygrad import Tensor, nn

import models
import models.deberta
from layers.positions import signed_bucket
from models.deberta import Relative
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import Config
from transformer import loss

CASES = [
  "deberta-a",
  "deberta-b",
]  # shared keys, buckets, a norm of the relative vectors; and keys of their own, no buckets, a convolution


@pytest.mark.parametrize("case", ["deberta-a", pytest.param("deberta-b", marks=pytest.mark.slow)])
def test_gradients_are_hugging_faces(case):
  want, model = expected(case), checkpoints.load_module(FIXTURES / case)
  ids, attention_mask = Tensor(want["ids"]), Tensor(want["keep"])
  names = [
    n
    for n in want
    if n.startswith("grad.")
    and n.endswith(("query_proj.weight", "intermediate.dense.bias", "pos_key_proj.weight"))
  ]
  ours = {theirs: our for theirs, [our] in models.deberta.KEY_MAP.table(model).items()}
  params = nn.state.get_state_dict(model)
  value = loss(
    model(ids, attention_mask), attention_mask.bool().where(ids, -100), smoothing=0, ignore=-100
  )
  grads = value.gradient(*(params[ours[n.removeprefix("grad.")]] for n in names))
  assert value.item() == pytest.approx(float(want["loss"]), rel=1e-5) and len(names) > 1
  for name, grad in zip(names, grads):
    close(grad.numpy(), want[name], 5e-5)


@pytest.mark.parametrize("case", CASES)
def test_where_a_text_is_padded_does_not_matter(case):
  """Nor where it stands: only distances count."""
  model, [_, text, _] = checkpoints.load_module(FIXTURES / case), expected(case)["ids"]
  ids, attention_mask = np.zeros((3, 11), np.int32), np.zeros((3, 11), bool)
  for row, start in enumerate((0, 4, 2)):
    ids[row, start : start + 7], attention_mask[row, start : start + 7] = text[:7], True
  first, *others = (
    model.last_hidden_state(Tensor(ids), Tensor(attention_mask))
    .numpy()[attention_mask]
    .reshape(3, 7, -1)
  )
  for other in others:
    close(other, first)


def test_near_distances_have_buckets_of_their_own_and_far_ones_share():
  near, far = (
    [signed_bucket(d, 256, 512) for d in range(-128, 129)],
    [signed_bucket(d, 256, 512) for d in range(129, 512)],
  )
  assert (
    near == list(range(-128, 129))
    and far == sorted(far)
    and (far[0], far[-1]) == (129, 255)
    and len(set(far)) < len(far)
  )
  assert (
    signed_bucket(256, 256, 512) == 192
  )  # the geometric mean of 128 and 511 lies midway between their buckets
  assert [signed_bucket(-d, 256, 512) for d in range(129, 512)] == [-b for b in far]


def test_the_row_of_a_relative_position():
  """Equation 3 of DeBERTa: 0 for i - j <= -k, 2k - 1 for i - j >= k, i - j + k between."""
  _, delta = Relative(4, most=3)(6)
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
def test_what_is_not_built_is_told(tmp_path, key, value):
  with pytest.raises(ValueError, match="ForMultipleChoice" if key == "architectures" else key):
    checkpoints.load_module(with_head("deberta-a", "Model", tmp_path, **{key: value}))


def test_a_model_of_version_1_is_refused(tmp_path):
  with pytest.raises(ValueError, match="model_type 'deberta' is not one of"):
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
  "change, count",
  [({}, 183_831_552), (LARGE, 434_012_160), (XLARGE, 884_593_152)],
  ids=["v3-base", "v3-large", "v2-xlarge"],
)
def test_the_published_models_have_as_many_parameters(change, count):
  with safetensors.skip_init():
    model = models.deberta.from_config(Config(SIZES | change))
  assert sum(int(np.prod(t.shape)) for t in nn.state.get_parameters(model)) == count
