"""The Vision Transformer: parity with transformers, patches, interpolation, checkpoints."""

import json
import math

import numpy as np
import pytest
from conftest import FIXTURES, all_parts, close, normal, uninitialized
from tinygrad import Tensor, nn

from models import vit
from models.hf_config import HFConfig
from tinyformer import checkpoints, files
from tinyformer.checkpoints import load_module, safetensors

FOLDER = FIXTURES / "vit-a"
EXPECTED = np.load(FOLDER / "expected.npz")
PIXELS = EXPECTED["pixels"]


@pytest.fixture(scope="module")
def model():
  return load_module(FOLDER)


@all_parts()
def test_logits_equal_hugging_faces(parts):
  model = load_module(FOLDER, parts=parts)
  close(model(Tensor(PIXELS)).numpy(), EXPECTED["logits"])
  assert model.labels == ["dot", "line", "field", "none", "cross"]
  assert model.task == "image-classification"


def test_hidden_states_of_each_layer_equal_hugging_faces(model):
  x = model.class_token.expand(2, 1, 18).cat(model.patches(Tensor(PIXELS)), dim=1) + model.positions
  for i, block in enumerate(model.blocks):
    close(x.numpy(), EXPECTED[f"hidden.{i}"])
    x = block(x).realize()
  close(x.numpy(), EXPECTED["hidden.2"])
  close(model.last_hidden_state(Tensor(PIXELS)).numpy(), EXPECTED["last"])


def test_logits_of_an_image_of_another_size_equal_hugging_faces():
  """20 by 17 pixels have 5 by 4 patches and one spare column; the model has 3 by 3 patches."""
  logits = checkpoints.load_module(FOLDER)(Tensor(EXPECTED["wide"])).numpy()
  close(logits, EXPECTED["wide_logits"])


def test_patches_are_in_row_major_order_and_their_pixels_in_channel_row_column_order():
  C, P, Q, D = 2, 3, 5, 7
  patches = vit.Patches(C, (P, Q), D)
  pixels = normal(4, C, 2 * P + 1, 3 * Q + 4)
  weight = normal(D, C, P, Q, seed=1)
  bias = normal(D, seed=2)
  patches.weight = Tensor(weight)
  patches.bias = Tensor(bias)

  def embedding(patch):
    return [(patch * w).sum() + b for w, b in zip(weight, bias, strict=True)]

  expected = [
    [
      embedding(image[:, r * P : (r + 1) * P, c * Q : (c + 1) * Q])
      for r in range(2)
      for c in range(3)
    ]
    for image in pixels
  ]
  np.testing.assert_allclose(patches(Tensor(pixels)).numpy(), np.array(expected), atol=1e-5)


def test_permuting_patches_together_with_their_positions_does_not_change_the_logits(model):
  """Only the position embeddings encode the order of the patches."""
  order = np.random.default_rng(0).permutation(9)
  patches = PIXELS.reshape(2, 3, 3, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(2, 9, 3, 4, 4)
  grid = patches[:, order].reshape(2, 3, 3, 3, 4, 4)
  pixels = np.ascontiguousarray(grid.transpose(0, 3, 1, 4, 2, 5).reshape(PIXELS.shape))
  assert np.abs(model(Tensor(pixels)).numpy() - EXPECTED["logits"]).max() > 1e-3
  permuted = load_module(FOLDER)
  permuted.positions = Tensor(model.positions.numpy()[:, [0, *1 + order]])
  close(permuted(Tensor(pixels)).numpy(), EXPECTED["logits"])


def test_interpolation_to_the_same_size_is_the_identity():
  for n in (1, 2, 7):
    np.testing.assert_array_equal(vit.cubic(n, n).numpy(), np.eye(n))


@pytest.mark.parametrize("new, old", [(5, 3), (3, 7), (6, 1), (1, 4), (9, 2)])
def test_interpolation_preserves_constants_and_is_symmetric(new, old):
  weights = vit.cubic(new, old).numpy()
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)


def test_upsampling_by_two_has_keyss_weights_at_a_quarter():
  """The fourth of eight points lies 1/4 after the second of four; Keys's a is -3/4."""

  def near(d):
    return 1.25 * d**3 - 2.25 * d**2 + 1

  def far(d):
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)

  expected = [far(1.25), near(0.25), near(0.75), far(1.75)]
  np.testing.assert_allclose(vit.cubic(8, 4).numpy()[3], expected, atol=1e-6)


def test_a_checkpoint_without_a_head_loads(model, tmp_path):
  """transformers saves a ViTModel without the prefix, and with a pooler that is ignored here."""
  arrays = {
    name.removeprefix("vit."): entry.numpy()
    for name, entry in safetensors.read(FOLDER).items()
    if not name.startswith("classifier")
  }
  pooler = {"pooler.dense.weight": normal(18, 18), "pooler.dense.bias": normal(18)}
  safetensors.write_safetensors(tmp_path / "model.safetensors", arrays | pooler)
  config = files.read_json(FOLDER / "config.json") | {"architectures": ["ViTModel"]}
  (tmp_path / "config.json").write_text(json.dumps(config))
  bare = load_module(tmp_path)
  close(bare.last_hidden_state(Tensor(PIXELS)).numpy(), EXPECTED["last"])
  assert not bare.labels
  with pytest.raises(ValueError, match="no head"):
    bare(Tensor(PIXELS))
  checkpoints.save(bare, tmp_path / "again")
  assert not load_module(tmp_path / "again").labels


def test_a_saved_checkpoint_equals_the_loaded_one(model, tmp_path):
  checkpoints.save(model, tmp_path)
  saved = safetensors.read(tmp_path)
  original = safetensors.read(FOLDER)
  assert saved.keys() == original.keys()
  for name in saved:
    np.testing.assert_array_equal(saved[name].numpy(), original[name].numpy())
  config = files.read_json(FOLDER / "config.json")
  for key, value in files.read_json(tmp_path / "config.json").items():
    assert value == config[key] or key == "label2id"


@pytest.mark.parametrize(
  "dim, heads, num_layers, patch, num_parameters",
  [
    (192, 3, 12, 16, 5_717_416),
    (384, 6, 12, 16, 22_050_664),
    (768, 12, 12, 16, 86_567_656),
    (768, 12, 12, 32, 88_224_232),
    (1024, 16, 24, 16, 304_326_632),
    (1280, 16, 32, 14, 632_045_800),
  ],
)
def test_parameter_counts_equal_the_published_ones(dim, heads, num_layers, patch, num_parameters):
  config = vit.ViTConfig(
    labels=tuple(str(i) for i in range(1000)),
    patch=(patch, patch),
    dim=dim,
    heads=heads,
    num_layers=num_layers,
    ff_dim=4 * dim,
  )
  model = uninitialized(vit.ViT, config)
  assert sum(math.prod(p.shape) for p in nn.state.get_parameters(model)) == num_parameters


@pytest.mark.parametrize(
  "key, value",
  [
    ("hidden_act", "mish"),
    ("qkv_bias", False),
    ("image_size", [8, 8, 8]),
    ("patch_size", "16"),
    ("hidden_size", -1),
  ],
)
def test_an_unsupported_configuration_raises_an_error(key, value):
  with pytest.raises(ValueError, match=f"config.json: .*{key}"):
    vit.from_hf(HFConfig({key: value}))


@pytest.mark.parametrize("shape", [(1, 1, 12, 12), (1, 3, 3, 12)])
def test_images_that_do_not_fit_the_model_raise_an_error(model, shape):
  with pytest.raises(ValueError, match="use 3 channels and at least 4 x 4 pixels"):
    model(Tensor.zeros(*shape))


def test_a_new_head_is_all_zero(model):
  # Unlike a loaded model's parts, these draw initial values.
  model = vit.ViT(model.config)
  model.new_head(["left", "right"])
  assert model.labels == ["left", "right"]
  assert not model.head.weight.numpy().any()
  assert not model.head.bias.numpy().any()
  assert model(Tensor(PIXELS)).shape == (2, 2)
