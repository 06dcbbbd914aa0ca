import json
import math

import numpy as np
import pytest
from conftest import FIXTURES, close, normal
from tinygrad import Tensor, nn

from models import vit
from tinyformer import checkpoints, files
from tinyformer.checkpoints import load_module, safetensors
from tinyformer.checkpoints.config import Config

FOLDER, WANT = FIXTURES / "vit-a", np.load(FIXTURES / "vit-a" / "expected.npz")
PIXELS = WANT["pixels"]


@pytest.fixture(scope="module")
def model():
  return vit.load(FOLDER)


@pytest.mark.parametrize("load", [vit.load, load_module], ids=["plain parts", "fast parts"])
def test_logits_are_hugging_faces(load):
  model = load(FOLDER)
  close(model(Tensor(PIXELS)).numpy(), WANT["logits"])
  assert (
    model.labels == ["dot", "line", "field", "none", "cross"]
    and model.task == "image-classification"
  )


def test_each_layers_hidden_states_are_hugging_faces(model):
  x = model.class_token.expand(2, 1, 18).cat(model.patches(Tensor(PIXELS)), dim=1) + model.positions
  for i, block in enumerate(model.blocks):
    close(x.numpy(), WANT[f"hidden.{i}"])
    x = block(x).realize()
  close(x.numpy(), WANT["hidden.2"])
  close(model.last_hidden_state(Tensor(PIXELS)).numpy(), WANT["last"])


def test_a_picture_of_another_size_has_hugging_faces_logits():
  """20 by 17 pixels where the checkpoint's are 12 by 12: positions of 5 by 4 patches for 3 by 3, and a column of pixels that no patch has."""
  close(checkpoints.load_module(FOLDER)(Tensor(WANT["wide"])).numpy(), WANT["wide_logits"])


def test_patches_are_cut_row_after_row_and_their_pixels_channel_by_channel():
  C, P, Q, D = 2, 3, 5, 7
  patches, pixels = vit.Patches(C, (P, Q), D), normal(4, C, 2 * P + 1, 3 * Q + 4)
  weight, bias = normal(D, C, P, Q, seed=1), normal(D, seed=2)
  patches.weight, patches.bias = Tensor(weight), Tensor(bias)
  want = np.array(
    [
      [
        [
          (picture[:, r * P : (r + 1) * P, c * Q : (c + 1) * Q] * w).sum() + b
          for w, b in zip(weight, bias)
        ]
        for r in range(2)
        for c in range(3)
      ]
      for picture in pixels
    ]
  )
  np.testing.assert_allclose(patches(Tensor(pixels)).numpy(), want, atol=1e-5)


def test_patches_moved_together_with_their_positions_change_nothing(model):
  """But for what they add to each other, patches are a set: only positions tell where one is."""
  order, moved = np.random.default_rng(0).permutation(9), vit.load(FOLDER)
  cut = (
    PIXELS.reshape(2, 3, 3, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(2, 9, 3, 4, 4)[:, order]
  )
  pixels = np.ascontiguousarray(
    cut.reshape(2, 3, 3, 3, 4, 4).transpose(0, 3, 1, 4, 2, 5).reshape(PIXELS.shape)
  )
  assert np.abs(model(Tensor(pixels)).numpy() - WANT["logits"]).max() > 1e-3
  moved.positions = Tensor(model.positions.numpy()[:, [0, *1 + order]])
  close(moved(Tensor(pixels)).numpy(), WANT["logits"])


def test_positions_stretched_to_their_own_size_stay():
  for n in (1, 2, 7):
    np.testing.assert_array_equal(vit.cubic(n, n).numpy(), np.eye(n))


@pytest.mark.parametrize("new, old", [(5, 3), (3, 7), (6, 1), (1, 4), (9, 2)])
def test_stretching_keeps_what_is_the_same_everywhere_and_knows_no_side(new, old):
  weights = vit.cubic(new, old).numpy()
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)


def test_twice_as_many_points_lie_a_quarter_off_the_old_ones():
  """Keys's weights at a distance of 1/4, a = -3/4, from the second old point on: worked out by hand."""
  near, far = (
    lambda d: 1.25 * d**3 - 2.25 * d**2 + 1,
    lambda d: -0.75 * (d**3 - 5 * d**2 + 8 * d - 4),
  )
  np.testing.assert_allclose(
    vit.cubic(8, 4).numpy()[3], [far(1.25), near(0.25), near(0.75), far(1.75)], atol=1e-6
  )


def test_a_model_without_a_head_is_read(model, tmp_path):
  """As transformers' ViTModel is saved: without the prefix, with a pooler that nothing reads here."""
  arrays = {
    name.removeprefix("vit."): entry.numpy()
    for name, entry in safetensors.read(FOLDER).items()
    if not name.startswith("classifier")
  }
  safetensors.write_safetensors(
    tmp_path / "model.safetensors",
    arrays | {"pooler.dense.weight": normal(18, 18), "pooler.dense.bias": normal(18)},
  )
  (tmp_path / "config.json").write_text(
    json.dumps(files.read_json(FOLDER / "config.json") | {"architectures": ["ViTModel"]})
  )
  bare = vit.load(tmp_path)
  close(bare.last_hidden_state(Tensor(PIXELS)).numpy(), WANT["last"])
  assert not bare.labels
  with pytest.raises(ValueError, match="no head"):
    bare(Tensor(PIXELS))
  vit.save(bare, tmp_path / "again")
  assert not vit.load(tmp_path / "again").labels


def test_what_is_saved_has_the_layout_of_what_was_loaded(model, tmp_path):
  vit.save(model, tmp_path)
  saved, original = safetensors.read(tmp_path), safetensors.read(FOLDER)
  assert saved.keys() == original.keys()
  for name in saved:
    np.testing.assert_array_equal(saved[name].numpy(), original[name].numpy())
  config = files.read_json(FOLDER / "config.json")
  for key, value in files.read_json(tmp_path / "config.json").items():
    assert value == config[key] or key == "label2id"


@pytest.mark.parametrize(
  "dim, heads, layers, patch, count",
  [
    (192, 3, 12, 16, 5_717_416),
    (384, 6, 12, 16, 22_050_664),
    (768, 12, 12, 16, 86_567_656),
    (768, 12, 12, 32, 88_224_232),
    (1024, 16, 24, 16, 304_326_632),
    (1280, 16, 32, 14, 632_045_800),
  ],
)
def test_the_sizes_have_their_published_parameter_counts(dim, heads, layers, patch, count):
  with safetensors.skip_init():
    model = vit.ViT(
      [str(i) for i in range(1000)],
      patch=(patch, patch),
      dim=dim,
      heads=heads,
      num_layers=layers,
      ff_dim=4 * dim,
    )
  assert sum(math.prod(p.shape) for p in nn.state.get_parameters(model)) == count


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
def test_what_is_not_built_is_told(key, value):
  with pytest.raises(ValueError, match=f"config.json: .*{key}"):
    vit.from_config(Config({key: value}))


@pytest.mark.parametrize("shape", [(1, 1, 12, 12), (1, 3, 3, 12)])
def test_pictures_that_do_not_fit_are_refused(model, shape):
  with pytest.raises(ValueError, match="are not 3 x 4 x 4 or more"):
    model(Tensor.zeros(*shape))


def test_a_new_head_says_nothing_until_it_is_taught():
  model = vit.load(FOLDER)
  model.new_head(["left", "right"])
  assert (
    model.labels == ["left", "right"]
    and not model.head.weight.numpy().any()
    and not model.head.bias.numpy().any()
  )
  assert model(Tensor(PIXELS)).shape == (2, 2)
