"""The Vision Transformer and its pictures against transformers itself, every parameter random. Needs the extra `reference`; runs in .ci/run."""

import json

import numpy as np
import pytest
from conftest import FIXTURES, close, normal, randomise
from tinygrad import Tensor

from models import vit
from tinyformer.checkpoints import load_module

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
import make_fixtures
from transformers.image_utils import load_image

from tinyformer.vision.image_processor import Preprocessor, read

pytestmark = pytest.mark.slow


def theirs(folder, kind=transformers.ViTForImageClassification, seed=0, labels=5, **sizes):
  config = transformers.ViTConfig(
    **dict(
      hidden_size=18,
      num_attention_heads=3,
      num_hidden_layers=2,
      intermediate_size=30,
      num_labels=labels,
    )
    | sizes
  )
  model = kind(config).eval()
  make_fixtures.randomise(model, seed)
  model.save_pretrained(folder)
  return model


def of(model, pixels, **how):
  with torch.no_grad():
    out = model(torch.tensor(pixels), **how)
  return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


@pytest.mark.parametrize("load", [vit.load, load_module], ids=["plain parts", "fast parts"])
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
def test_logits_are_theirs(tmp_path, sizes, load):
  model = theirs(tmp_path, **sizes)
  side = sizes["image_size"]
  pixels = normal(
    3, sizes.get("num_channels", 3), *(side if isinstance(side, list) else (side, side))
  )
  close(load(tmp_path)(Tensor(pixels)).numpy(), of(model, pixels))


@pytest.mark.parametrize(
  "height, width", [(12, 12), (8, 8), (4, 4), (36, 36), (20, 17), (8, 31), (4, 36)]
)
def test_pictures_of_other_sizes_have_their_logits(tmp_path, height, width):
  """4 by 36 pixels are as many patches as 12 by 12 in another shape."""
  model, pixels = theirs(tmp_path, image_size=12, patch_size=4), normal(2, 3, height, width)
  close(
    vit.load(tmp_path)(Tensor(pixels)).numpy(), of(model, pixels, interpolate_pos_encoding=True)
  )


@pytest.mark.parametrize("new, old", [(16, 14), (24, 14), (7, 14), (3, 32), (1, 5), (9, 1)])
def test_stretching_is_torchs(new, old):
  """Within float32's: torch computes places in it."""
  want = torch.nn.functional.interpolate(
    torch.eye(old).reshape(1, old, old, 1), size=(new, 1), mode="bicubic", align_corners=False
  )[0, :, :, 0].T.numpy()
  np.testing.assert_allclose(vit.cubic(new, old).numpy(), want, atol=3e-6)


def test_a_model_without_a_head_has_their_hidden_states(tmp_path):
  model, pixels = (
    theirs(tmp_path, transformers.ViTModel, image_size=12, patch_size=4),
    normal(2, 3, 12, 12),
  )
  close(vit.load(tmp_path).hidden(Tensor(pixels)).numpy(), of(model, pixels))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_files_are_read_as_theirs(tmp_path, dtype):
  model = theirs(tmp_path, image_size=12, patch_size=4).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path)
  close(
    vit.load(tmp_path)(Tensor(normal(2, 3, 12, 12))).numpy(),
    of(model.float(), normal(2, 3, 12, 12)),
  )


@pytest.mark.parametrize("labels", [["cat", "dog", "neither"], ["yes", "no"], []])
@pytest.mark.parametrize("image, patch", [((12, 12), (4, 4)), ((12, 20), (3, 5))])
def test_they_load_what_we_save(tmp_path, image, patch, labels):
  model = randomise(
    vit.ViT(["old"], image, patch, dim=18, heads=3, num_layers=2, ff_dim=30, eps=1e-3)
  )
  model.new_head(labels)
  if labels:
    model.head.weight, model.head.bias = (
      Tensor(normal(len(labels), 18)),
      Tensor(normal(len(labels))),
    )
  vit.save(model, tmp_path)
  kind = transformers.AutoModelForImageClassification if labels else transformers.AutoModel
  them, told = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert (
    not told["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}
    and not told["unexpected_keys"]
  )
  if labels:
    assert list(them.config.id2label.values()) == labels
  pixels = normal(2, 3, *image)
  close(
    (model(Tensor(pixels)) if labels else model.hidden(Tensor(pixels))).numpy(),
    of(them.eval(), pixels),
  )


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


def a_picture(draw, mode):
  height, width = (int(n) for n in draw.integers(1, 90, 2))
  picture = Image.fromarray(draw.integers(0, 256, (height, width, 4)).astype(np.uint8), "RGBA")
  return (
    picture.convert("RGB").quantize(7)
    if mode == "P"
    else picture.convert("RGB").convert("L").convert("I;16")
    if mode == "I;16"
    else picture.convert(mode)
  )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", SETTINGS, ids=json.dumps)
def test_pictures_are_theirs(tmp_path, settings):
  """Of many sizes and kinds, through files, some turned: within 1e-6 of what transformers reads and makes."""
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
  ours, them, draw = (
    Preprocessor.load(tmp_path),
    transformers.ViTImageProcessorPil.from_pretrained(tmp_path),
    np.random.default_rng(0),
  )
  for mode, kind in [
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
  ]:
    for turn in (1, *draw.integers(2, 9, 2)):
      exif = Image.Exif()
      exif[0x0112] = int(turn)
      path = tmp_path / f"x.{kind}"
      a_picture(draw, mode).save(
        path, **({"exif": exif} if kind in ("png", "jpeg", "webp") else {})
      )
      want = them(load_image(str(path)), return_tensors="np")["pixel_values"]
      got = ours(read(path))
      assert (
        got.shape == want.shape and got.dtype == np.float32 and np.abs(got - want).max() <= 1e-6
      ), (mode, kind, turn)


def test_they_read_our_settings(tmp_path):
  Preprocessor(SETTINGS[5]).save(tmp_path)
  them, picture = (
    transformers.ViTImageProcessorPil.from_pretrained(tmp_path),
    Image.fromarray((normal(40, 50, 3) * 60 + 128).clip(0, 255).astype(np.uint8)),
  )
  np.testing.assert_allclose(
    Preprocessor.load(tmp_path)(picture),
    them(picture, return_tensors="np")["pixel_values"],
    atol=1e-6,
  )


def test_the_fixture_is_theirs():
  model, want = (
    transformers.ViTForImageClassification.from_pretrained(FIXTURES / "vit-a").eval(),
    np.load(FIXTURES / "vit-a" / "expected.npz"),
  )
  close(of(model, want["pixels"]), want["logits"])
