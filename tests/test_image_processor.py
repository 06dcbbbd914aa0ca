"""Image files to pixels: the preprocessor's steps, image modes, orientation and damaged files."""

import importlib.util
import json
import struct
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT

Image = pytest.importorskip("PIL.Image")
from tinyformer.vision.image_processor import Preprocessor, read  # noqa: E402

UNCHANGED = {"do_resize": False, "do_rescale": False, "do_normalize": False}


def noise(height, width):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def saved(image, path, **options):
  image.save(path, **options)
  return path


def test_default_settings_map_levels_to_minus_1_to_1():
  """ViT's defaults: resize to 224 by 224, subtract 1/2, divide by 1/2."""
  pixels = Preprocessor({})(Image.new("RGB", (30, 20), (0, 51, 255)))
  assert pixels.shape == (1, 3, 224, 224) and pixels.dtype == np.float32
  for channel, expected in enumerate((-1, -0.6, 1)):
    np.testing.assert_allclose(pixels[0, channel], expected, atol=1e-6)


def test_each_channel_has_its_own_mean_and_standard_deviation():
  settings = UNCHANGED | {
    "do_rescale": True,
    "rescale_factor": 0.01,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [2, 4, 8],
  }
  pixels = Preprocessor(settings)(Image.new("RGB", (1, 1), (10, 30, 190)))
  np.testing.assert_allclose(pixels[0, :, 0, 0], [0, 0.1 / 4, 1.6 / 8], atol=1e-7)


def test_pixels_are_unchanged_if_every_step_is_disabled():
  levels = noise(3, 5)
  np.testing.assert_array_equal(
    Preprocessor(UNCHANGED)(Image.fromarray(levels)),
    levels.transpose(2, 0, 1)[None].astype(np.float32),
  )


@pytest.mark.parametrize(
  "size, shape",
  [
    (8, (8, 8)),
    ({"height": 6, "width": 9}, (6, 9)),
    ({"shortest_edge": 10}, (10, 15)),
    ({"shortest_edge": 7}, (7, 10)),
  ],
)
def test_size_is_a_square_or_height_and_width_or_the_shortest_edge(size, shape):
  """The image has height 20 and width 30; the longer side is rounded down."""
  preprocessor = Preprocessor({"size": size})
  assert preprocessor(Image.fromarray(noise(20, 30))).shape == (1, 3, *shape)
  if "shortest_edge" in str(size):
    assert preprocessor(Image.fromarray(noise(30, 20))).shape == (1, 3, *shape[::-1])


@pytest.mark.parametrize("resample, row", [(0, [10, 10, 90, 90]), (2, [10, 30, 70, 90])])
def test_resample_selects_the_interpolation(resample, row):
  """Resize pixels of 10 and 90 to four pixels: nearest neighbour, or linear interpolation."""
  image = Image.fromarray(np.repeat(np.array([[[10], [90]]], np.uint8), 3, 2))
  resize = {"do_resize": True, "size": {"height": 1, "width": 4}, "resample": resample}
  pixels = Preprocessor(UNCHANGED | resize)(image)
  np.testing.assert_array_equal(pixels[0, :, 0], [row] * 3)


def test_center_crop_takes_the_center_and_pads_with_black():
  levels = noise(4, 7)
  crop = {"do_center_crop": True, "crop_size": {"height": 7, "width": 4}}
  pixels = Preprocessor(UNCHANGED | crop)(Image.fromarray(levels))[0].transpose(1, 2, 0)
  np.testing.assert_array_equal(pixels[2:6], levels[:, 1:5])
  assert not pixels[:2].any() and not pixels[6:].any()


@pytest.mark.parametrize(
  "mode, color, expected",
  [
    ("L", 7, (7, 7, 7)),
    ("LA", (7, 0), (7, 7, 7)),
    ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
    ("1", 1, (255, 255, 255)),
    ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
  ],
)
def test_images_of_every_mode_become_rgb(tmp_path, mode, color, expected):
  """Transparent pixels retain their color."""
  path = saved(Image.new(mode, (2, 2), color), tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
  assert read(path).getpixel((1, 1)) == expected


def test_palette_images_become_rgb(tmp_path):
  image = Image.new("P", (2, 1))
  image.putpalette([9, 8, 7, 200, 100, 50])
  image.putpixel((1, 0), 1)
  loaded = read(saved(image, tmp_path / "x.png", transparency=b"\0\xff"))
  assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(9, 8, 7), (200, 100, 50)]


def test_images_are_rotated_by_their_exif_orientation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # The first stored row is the right side of the upright image.
  levels = noise(2, 3)
  np.testing.assert_array_equal(
    np.asarray(read(saved(Image.fromarray(levels), tmp_path / "x.png", exif=exif))),
    np.rot90(levels, -1),
  )


# Errors


def assert_value_error(path, message):
  """Check that reading raises a one-line ValueError that matches message and names the file."""
  with pytest.raises(ValueError, match=message) as e:
    read(path)
  assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_files_that_are_not_images_raise_an_error(tmp_path):
  for data in (b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"%PDF-1.4"):
    (tmp_path / "x").write_bytes(data)
    assert_value_error(tmp_path / "x", "not an image in a supported format|as an image: ")
  with pytest.raises(FileNotFoundError):
    read(tmp_path / "nothing")
  with pytest.raises(IsADirectoryError):
    read(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_truncated_images_raise_an_error(tmp_path, kind):
  data = saved(Image.fromarray(noise(40, 40)), tmp_path / f"x.{kind}").read_bytes()
  for fraction in (0.1, 0.5, 0.9):
    (tmp_path / "truncated").write_bytes(data[: int(fraction * len(data))])
    assert_value_error(tmp_path / "truncated", "not an image in a supported format|as an image: ")


def test_a_small_file_with_a_huge_image_size_raises_an_error_before_decoding(tmp_path):
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  # Pillow only warns of the first size, and accepts the last ones.
  for size in ((10_000, 10_000), (50_000, 50_000), (1, 89_000_000), (89_000_000, 1), (1, 65_536)):
    (tmp_path / "x.png").write_bytes(
      b"\x89PNG\r\n\x1a\n"
      + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
      + chunk(b"IDAT", zlib.compress(b""))
      + chunk(b"IEND", b"")
    )
    assert_value_error(tmp_path / "x.png", "more than 89,478,485|exceeds limit")


def test_resizing_to_too_many_pixels_raises_an_error():
  with pytest.raises(ValueError, match="too many"):
    Preprocessor({"size": {"shortest_edge": 224}})(Image.new("RGB", (10_000, 1)))


@pytest.mark.parametrize(
  "settings",
  [
    {"size": "224"},
    {"size": {"longest_edge": 5}},
    {"size": {"height": 0, "width": 3}},
    {"size": {"height": 4}},
    {"resample": 9},
    {"image_mean": [1, 2]},
    {"image_std": [1, 0, 1]},
    {"rescale_factor": "x"},
    {"do_center_crop": True},
    {"do_center_crop": True, "crop_size": 10**9},
    {"size": 10**9},
    {"size": True},
    {"do_resize": "yes"},
    {"resample": True},
    {"resample": 2.0},
    {"image_mean": float("nan")},
    {"image_std": [1, 1, None]},
    {"image_std": -1},
    {"rescale_factor": 1e300},
    {"rescale_factor": 10**400},
    {"do_center_crop": True, "crop_size": {"shortest_edge": 3}},
  ],
)
def test_invalid_settings_raise_an_error_that_names_the_file(tmp_path, settings):
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=r"preprocessor_config\.json") as e:
    Preprocessor.load(tmp_path)
  assert "\n" not in str(e.value)


def test_saved_settings_equal_the_loaded_ones(tmp_path):
  Preprocessor({"size": 9, "more": "words"}).save(tmp_path)
  assert Preprocessor.load(tmp_path).settings == {"size": 9, "more": "words"}


def test_the_import_error_without_pillow_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "PIL", None)
  spec = importlib.util.spec_from_file_location(
    "without", ROOT / "tinyformer" / "vision" / "image_processor.py"
  )
  with pytest.raises(ImportError, match=r"pip install -e '\.\[pictures\]'") as e:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
  assert "\n" not in str(e.value)
