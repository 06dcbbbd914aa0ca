import importlib.util
import json
import struct
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT

Image = pytest.importorskip("PIL.Image")
from tinyformer.vision.image_processor import Preprocessor, read

AS_IT_IS = {"do_resize": False, "do_rescale": False, "do_normalize": False}


def noise(height, width):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def saved(picture, path, **how):
  picture.save(path, **how)
  return path


def test_without_settings_levels_become_numbers_from_minus_1_to_1():
  """Those of ViT: a square of 224 by 224, minus 1/2, by 1/2."""
  pixels = Preprocessor({})(Image.new("RGB", (30, 20), (0, 51, 255)))
  assert pixels.shape == (1, 3, 224, 224) and pixels.dtype == np.float32
  for channel, want in enumerate((-1, -0.6, 1)):
    np.testing.assert_allclose(pixels[0, channel], want, atol=1e-6)


def test_mean_and_deviation_are_each_channels_own():
  settings = AS_IT_IS | {
    "do_rescale": True,
    "rescale_factor": 0.01,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [2, 4, 8],
  }
  pixels = Preprocessor(settings)(Image.new("RGB", (1, 1), (10, 30, 190)))
  np.testing.assert_allclose(pixels[0, :, 0, 0], [0, 0.1 / 4, 1.6 / 8], atol=1e-7)


def test_pixels_stay_where_they_are():
  levels = noise(3, 5)
  np.testing.assert_array_equal(
    Preprocessor(AS_IT_IS)(Image.fromarray(levels)),
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
def test_a_size_is_a_square_or_both_sides_or_the_shorter_one(size, shape):
  """Of a picture 20 high and 30 wide; the longer side is rounded down."""
  assert Preprocessor({"size": size})(Image.fromarray(noise(20, 30))).shape == (1, 3, *shape)
  if "shortest_edge" in str(size):
    assert Preprocessor({"size": size})(Image.fromarray(noise(30, 20))).shape == (
      1,
      3,
      *shape[::-1],
    )


@pytest.mark.parametrize("resample, row", [(0, [10, 10, 90, 90]), (2, [10, 30, 70, 90])])
def test_the_way_of_resizing_is_the_settings(resample, row):
  """Two pixels of 10 and 90 as four: the nearest one's, or in proportion to the distance."""
  picture = Image.fromarray(np.repeat(np.array([[[10], [90]]], np.uint8), 3, 2))
  pixels = Preprocessor(
    AS_IT_IS | {"do_resize": True, "size": {"height": 1, "width": 4}, "resample": resample}
  )(picture)
  np.testing.assert_array_equal(pixels[0, :, 0], [row] * 3)


def test_a_crop_takes_the_middle_and_is_black_where_there_is_nothing():
  levels = noise(4, 7)
  pixels = Preprocessor(
    AS_IT_IS | {"do_center_crop": True, "crop_size": {"height": 7, "width": 4}}
  )(Image.fromarray(levels))[0].transpose(1, 2, 0)
  np.testing.assert_array_equal(pixels[2:6], levels[:, 1:5])
  assert not pixels[:2].any() and not pixels[6:].any()


@pytest.mark.parametrize(
  "mode, colour, want",
  [
    ("L", 7, (7, 7, 7)),
    ("LA", (7, 0), (7, 7, 7)),
    ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
    ("1", 1, (255, 255, 255)),
    ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
  ],
)
def test_every_kind_of_picture_becomes_red_green_and_blue(tmp_path, mode, colour, want):
  """What is transparent keeps its colour."""
  path = saved(Image.new(mode, (2, 2), colour), tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
  assert read(path).getpixel((1, 1)) == want


def test_a_palette_is_looked_up(tmp_path):
  picture = Image.new("P", (2, 1))
  picture.putpalette([9, 8, 7, 200, 100, 50])
  picture.putpixel((1, 0), 1)
  loaded = read(saved(picture, tmp_path / "x.png", transparency=b"\0\xff"))
  assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(9, 8, 7), (200, 100, 50)]


def test_a_picture_is_turned_as_the_camera_says(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # the first row is the right side
  levels = noise(2, 3)
  np.testing.assert_array_equal(
    np.asarray(read(saved(Image.fromarray(levels), tmp_path / "x.png", exif=exif))),
    np.rot90(levels, -1),
  )


# what cannot be read


def refused(path, words):
  with pytest.raises(ValueError, match=words) as e:
    read(path)
  assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_what_is_no_picture_is_told(tmp_path):
  for data in (b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"%PDF-1.4"):
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", "picture")
  with pytest.raises(FileNotFoundError):
    read(tmp_path / "nothing")
  with pytest.raises(IsADirectoryError):
    read(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_a_picture_that_ends_early_is_told(tmp_path, kind):
  whole = saved(Image.fromarray(noise(40, 40)), tmp_path / f"x.{kind}").read_bytes()
  for share in (0.1, 0.5, 0.9):
    (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "cut", "picture")


def test_a_small_file_that_claims_many_pixels_is_told_at_once(tmp_path):
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  for side in (10_000, 50_000):  # Pillow itself warns of the first
    (tmp_path / "x.png").write_bytes(
      b"\x89PNG\r\n\x1a\n"
      + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
      + chunk(b"IDAT", zlib.compress(b""))
      + chunk(b"IEND", b"")
    )
    refused(tmp_path / "x.png", "exceeds limit")


def test_a_picture_that_would_become_huge_is_told():
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
    {"do_center_crop": True, "crop_size": {"shortest_edge": 3}},
  ],
)
def test_settings_that_cannot_be_followed_are_told(tmp_path, settings):
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match="preprocessor_config.json") as e:
    Preprocessor.load(tmp_path)
  assert "\n" not in str(e.value)


def test_settings_are_saved_as_they_were_read(tmp_path):
  Preprocessor({"size": 9, "more": "words"}).save(tmp_path)
  assert Preprocessor.load(tmp_path).settings == {"size": 9, "more": "words"}


def test_without_pillow_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "PIL", None)
  spec = importlib.util.spec_from_file_location(
    "without", ROOT / "tinyformer" / "vision" / "image_processor.py"
  )
  with pytest.raises(ImportError, match=r"pip install -e '\.\[pictures\]'") as e:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
  assert "\n" not in str(e.value)
