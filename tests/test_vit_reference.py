"""The Vision Transformer and its image processor equal transformers, with random parameters.

Needs the extra `reference`; runs in .ci/run.
"""

import json

import numpy as np
import pytest
from conftest import FIXTURES, all_parts, close, normal, randomise
from tinygrad import Tensor

from models import vit
from tinyformer import checkpoints
from tinyformer.checkpoints import load_module

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
import make_fixtures  # noqa: E402
from transformers.image_utils import load_image  # noqa: E402

from tinyformer.vision.image_processor import Preprocessor, read  # noqa: E402

pytestmark = pytest.mark.slow


def save_reference(folder, kind=transformers.ViTForImageClassification, seed=0, labels=5, **sizes):
  """Save a random model of transformers and return it."""
  defaults = dict(
    hidden_size=18,
    num_attention_heads=3,
    num_hidden_layers=2,
    intermediate_size=30,
    num_labels=labels,
  )
  model = kind(transformers.ViTConfig(**defaults | sizes)).eval()
  make_fixtures.randomise(model, seed)
  model.save_pretrained(folder)
  return model


def reference_output(model, pixels, **options):
  """Return the logits of a transformers model, or its last hidden state if it has no head."""
  with torch.no_grad():
    out = model(torch.tensor(pixels), **options)
  return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


@all_parts()
@pytest.mark.parametrize(
  "sizes",
  [
    dict(image_size=12, patch_size=4),
    dict(image_size=14, patch_size=7, num_channels=1),
    dict(image_size=9, patch_size=2, layer_norm_eps=1e-3),
    dict(image_size=[12, 20], patch_size=[3, 5]),
    dict(image_size=[8, 24], patch_size=8, labels=2),
    dict(image_size=6, patch_size=6, hidden_act="gelu_new", num_channels=4),
  ],
)
def test_logits_equal_the_references(tmp_path, sizes, parts):
  model = save_reference(tmp_path, **sizes)
  side = sizes["image_size"]
  height_and_width = side if isinstance(side, list) else (side, side)
  pixels = normal(3, sizes.get("num_channels", 3), *height_and_width)
  close(load_module(tmp_path, parts=parts)(Tensor(pixels)).numpy(), reference_output(model, pixels))


@pytest.mark.parametrize(
  "height, width", [(12, 12), (8, 8), (4, 4), (36, 36), (20, 17), (8, 31), (4, 36)]
)
def test_logits_for_images_of_other_sizes_equal_the_references(tmp_path, height, width):
  """4 by 36 pixels have as many patches as 12 by 12, in another shape."""
  model = save_reference(tmp_path, image_size=12, patch_size=4)
  pixels = normal(2, 3, height, width)
  expected = reference_output(model, pixels, interpolate_pos_encoding=True)
  close(load_module(tmp_path)(Tensor(pixels)).numpy(), expected)


@pytest.mark.parametrize("new, old", [(16, 14), (24, 14), (7, 14), (3, 32), (1, 5), (9, 1)])
def test_interpolation_equals_pytorchs_bicubic(new, old):
  """The tolerance is that of float32, in which PyTorch computes the coordinates."""
  points = torch.eye(old).reshape(1, old, old, 1)
  interpolated = torch.nn.functional.interpolate(
    points, size=(new, 1), mode="bicubic", align_corners=False
  )
  expected = interpolated[0, :, :, 0].T.numpy()
  np.testing.assert_allclose(vit.cubic(new, old).numpy(), expected, atol=3e-6)


def test_hidden_states_of_a_model_without_a_head_equal_the_references(tmp_path):
  model = save_reference(tmp_path, transformers.ViTModel, image_size=12, patch_size=4)
  pixels = normal(2, 3, 12, 12)
  actual = load_module(tmp_path).last_hidden_state(Tensor(pixels)).numpy()
  close(actual, reference_output(model, pixels))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_logits_of_16_bit_checkpoints_equal_the_references(tmp_path, dtype):
  model = save_reference(tmp_path, image_size=12, patch_size=4).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path)
  pixels = normal(2, 3, 12, 12)
  close(load_module(tmp_path)(Tensor(pixels)).numpy(), reference_output(model.float(), pixels))


@pytest.mark.parametrize("labels", [["cat", "dog", "neither"], ["yes", "no"], []])
@pytest.mark.parametrize("image, patch", [((12, 12), (4, 4)), ((12, 20), (3, 5))])
def test_transformers_loads_our_checkpoints(tmp_path, image, patch, labels):
  model = randomise(
    vit.ViT(
      vit.ViTConfig(("old",), image, patch, dim=18, heads=3, num_layers=2, ff_dim=30, eps=1e-3)
    )
  )
  model.new_head(labels)
  if labels:
    model.head.weight = Tensor(normal(len(labels), 18))
    model.head.bias = Tensor(normal(len(labels)))
  checkpoints.save(model, tmp_path)
  kind = transformers.AutoModelForImageClassification if labels else transformers.AutoModel
  reference, info = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert not info["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}
  assert not info["unexpected_keys"]
  if labels:
    assert list(reference.config.id2label.values()) == labels
  pixels = normal(2, 3, *image)
  actual = model(Tensor(pixels)) if labels else model.last_hidden_state(Tensor(pixels))
  close(actual.numpy(), reference_output(reference.eval(), pixels))


SETTINGS = [
  {},
  {"size": 30},
  {"size": {"height": 20, "width": 33}, "resample": 3},
  {"size": {"shortest_edge": 24}, "resample": 1},
  {"resample": 0, "size": 17},
  {
    "size": {"shortest_edge": 31},
    "do_center_crop": True,
    "crop_size": 28,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
  },
  {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 25, "width": 60}},
  {"do_rescale": False, "size": 9},
  {"do_normalize": False, "size": 9, "resample": 4},
  {"rescale_factor": 0.1, "size": 9, "resample": 5, "image_mean": 0.3, "image_std": 0.7},
]
MODES_AND_FORMATS = [
  ("RGB", "png"),
  ("RGB", "jpeg"),
  ("RGBA", "png"),
  ("L", "png"),
  ("LA", "png"),
  ("P", "png"),
  ("P", "gif"),
  ("1", "png"),
  ("CMYK", "jpeg"),
  ("I;16", "png"),
  ("RGB", "webp"),
]


def random_image(rng, mode):
  """Return a random image of random size."""
  height, width = (int(n) for n in rng.integers(1, 90, 2))
  image = Image.fromarray(rng.integers(0, 256, (height, width, 4)).astype(np.uint8), "RGBA")
  if mode == "P":
    return image.convert("RGB").quantize(7)
  if mode == "I;16":
    return image.convert("RGB").convert("L").convert("I;16")
  return image.convert(mode)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", SETTINGS, ids=json.dumps)
def test_pixels_equal_the_references_within_1e_6(tmp_path, settings):
  """The images have many sizes, modes, file formats and EXIF orientations."""
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
  preprocessor = Preprocessor.load(tmp_path)
  reference = transformers.ViTImageProcessorPil.from_pretrained(tmp_path)
  rng = np.random.default_rng(0)
  for mode, file_format in MODES_AND_FORMATS:
    for orientation in (1, *rng.integers(2, 9, 2)):
      exif = Image.Exif()
      exif[0x0112] = int(orientation)
      options = {"exif": exif} if file_format in ("png", "jpeg", "webp") else {}
      path = tmp_path / f"x.{file_format}"
      random_image(rng, mode).save(path, **options)
      expected = reference(load_image(str(path)), return_tensors="np")["pixel_values"]
      actual = preprocessor(read(path))
      case = (mode, file_format, orientation)
      assert actual.shape == expected.shape and actual.dtype == np.float32, case
      assert np.abs(actual - expected).max() <= 1e-6, case


def test_transformers_reads_our_preprocessor_config(tmp_path):
  Preprocessor(SETTINGS[5]).save(tmp_path)
  reference = transformers.ViTImageProcessorPil.from_pretrained(tmp_path)
  image = Image.fromarray((normal(40, 50, 3) * 60 + 128).clip(0, 255).astype(np.uint8))
  expected = reference(image, return_tensors="np")["pixel_values"]
  np.testing.assert_allclose(Preprocessor.load(tmp_path)(image), expected, atol=1e-6)


def test_the_fixture_equals_the_references_output():
  folder = FIXTURES / "vit-a"
  model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
  expected = np.load(folder / "expected.npz")
  close(reference_output(model, expected["pixels"]), expected["logits"])
