"""Convert image files to the pixels that a model reads, with Pillow.

A checkpoint's preprocessor_config.json describes the conversion. The pixels equal those of
transformers' ViTImageProcessorPil. If torchvision is installed, transformers uses another
processor, which rounds resized images differently. Bilinear results then differ by up to one of
255 levels. Bicubic results differ by more if they overshoot.
"""

import contextlib
import json
import reprlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.files import open_regular, read_json, write_text

try:
  from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as e:
  raise ImportError(
    "reading images needs Pillow, which is not installed: pip install -e '.[pictures]'"
  ) from e

# The largest picture file: Pillow's limit for pixels, and JPEG's for a side. The memory that Pillow
# needs to resize an image is proportional to the longer side.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
MAX_SIDE = 65_535
# The largest input of a model. Published models read up to 1,024 x 1,024 pixels.
MAX_RESIZED_SIDE = 2_048
MAX_RESIZED_PIXELS = MAX_RESIZED_SIDE**2
MAX_NUMBER = 1_000_000
# Pillow knows more formats, but runs another program for some.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read(path: str | Path) -> Image.Image:
  """Read an image file; return an upright RGB image.

  Transparency is dropped, as transformers does.
  Raises OSError if the file cannot be opened, and ValueError for an invalid, truncated or too large
  image.
  """
  with open_regular(Path(path)) as f, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with image_errors(path):
      image = Image.open(f, formats=FORMATS)
    # A small file can claim any number of pixels, so check before decoding.
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
      raise ValueError(
        f"{path} has {image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,} in all or "
        f"{MAX_SIDE:,} per side: make it smaller"
      )
    with image_errors(path):
      return ImageOps.exif_transpose(image).convert("RGB")


@contextlib.contextmanager
def image_errors(path: str | Path) -> Iterator[None]:
  """Convert Pillow's errors to ValueErrors that name the file."""
  try:
    yield
  except UnidentifiedImageError as e:
    raise ValueError(
      f"{path} is not an image in a supported format ({', '.join(FORMATS)}): convert it, for "
      "example to PNG"
    ) from e
  # Pillow can raise any exception for a damaged file.
  except Exception as e:
    reason = str(e) or type(e).__name__
    raise ValueError(
      f"cannot read {path} as an image: {reason}; check that the file is complete"
    ) from e


def is_number(value: Any) -> bool:
  """Return whether a JSON value is a number that float32 can hold."""
  return type(value) in (int, float) and abs(value) <= MAX_NUMBER


class Preprocessor:
  """Resize, center-crop, rescale and normalize images, in this order.

  settings: the keys of preprocessor_config.json, which enable each step. Missing keys have ViT's
    defaults.
  source: the file name to use in error messages.
  Raises ValueError for invalid settings.
  """

  def __init__(self, settings: dict[str, Any], source: str = "preprocessor_config.json"):
    self.settings = settings
    self.source = source
    self.size = self.sides("size", 224) if self.flag("do_resize", True) else None
    self.crop = self.sides("crop_size", None) if self.flag("do_center_crop", False) else None
    if self.crop and "shortest_edge" in self.crop:
      raise self.error("crop_size", "give a height and a width")
    resample = self.settings.get("resample", Image.Resampling.BILINEAR.value)
    if type(resample) is not int or resample not in list(Image.Resampling):
      raise self.error("resample", f"be an integer from 0 to {max(Image.Resampling)}")
    self.resample = Image.Resampling(resample)
    rescale = self.flag("do_rescale", True)
    self.scale = self.number("rescale_factor", 1 / 255) if rescale else 1.0
    normalize = self.flag("do_normalize", True)
    self.mean = np.array(self.channels("image_mean", 0.5) if normalize else [0] * 3, np.float32)
    self.std = np.array(self.channels("image_std", 0.5) if normalize else [1] * 3, np.float32)
    if not (self.std > 0).all():
      raise self.error("image_std", "be positive")

  def error(self, name: str, requirement: str) -> ValueError:
    """Return the error for an invalid setting."""
    value = reprlib.repr(self.settings.get(name))
    return ValueError(f"{self.source}: {name} must {requirement}, not {value}")

  def flag(self, name: str, default: bool) -> bool:
    """Return a setting that is true, false or null, which is false.

    Raises ValueError for other values.
    """
    value = self.settings.get(name, default)
    if value is not None and type(value) is not bool:
      raise self.error(name, "be true or false")
    return bool(value)

  def number(self, name: str, default: float) -> float:
    """Return a number. Raises ValueError for other values."""
    value = self.settings.get(name, default)
    if not is_number(value):
      raise self.error(name, f"be a number of at most {MAX_NUMBER:,}")
    return float(value)

  def channels(self, name: str, default: float) -> list[float]:
    """Return a number for each of the three channels, from a number or a list of three.

    Raises ValueError for other values.
    """
    value = self.settings.get(name, default)
    numbers = value if isinstance(value, list) else [value] * 3
    if len(numbers) == 3 and all(map(is_number, numbers)):
      return [float(n) for n in numbers]
    raise self.error(name, f"be one or three numbers of at most {MAX_NUMBER:,}")

  def sides(self, name: str, default: int | None) -> dict[str, int]:
    """Return a size as a dict with the keys height and width, or shortest_edge, in pixels.

    A number gives the side of a square. Raises ValueError for other values.
    """
    size = self.settings.get(name, default)
    sides = {"height": size, "width": size} if type(size) is int else size
    if (
      isinstance(sides, dict)
      and set(sides) in ({"height", "width"}, {"shortest_edge"})
      and all(type(n) is int and 0 < n <= MAX_RESIZED_SIDE for n in sides.values())
    ):
      return sides
    raise self.error(
      name,
      f"be a positive integer of at most {MAX_RESIZED_SIDE:,}, a height and a width, or a "
      "shortest_edge",
    )

  @classmethod
  def load(cls, folder: str | Path) -> "Preprocessor":
    """Load a checkpoint's preprocessor_config.json.

    Raises FileNotFoundError, and ValueError for a damaged file or invalid settings.
    """
    path = Path(folder) / "preprocessor_config.json"
    return cls(read_json(path), str(path))

  def save(self, folder: str | Path) -> None:
    """Write preprocessor_config.json, which `load` and transformers can read."""
    text = json.dumps(self.settings, indent=2) + "\n"
    write_text(Path(folder) / "preprocessor_config.json", text)

  def resized(self, image: Image.Image) -> Image.Image:
    """Return the resized image. Raises ValueError if it would have too many pixels."""
    if self.size is None:
      return image
    if "shortest_edge" in self.size:
      shortest_edge = self.size["shortest_edge"]
      width, height = (int(shortest_edge * n / min(image.size)) for n in image.size)
    else:
      width, height = self.size["width"], self.size["height"]
    if width * height > MAX_RESIZED_PIXELS:
      raise ValueError(
        f"{self.source} resizes an image of {image.width} x {image.height} pixels to "
        f"{width} x {height}, which is too many: use a smaller size, or an image whose sides "
        "differ less"
      )
    return image.resize((width, height), self.resample)

  def cropped(self, pixels: np.ndarray) -> np.ndarray:
    """Return the center (crop height, crop width, 3) of pixels (height, width, 3).

    Smaller images are padded with black.
    """
    if self.crop is None:
      return pixels
    for axis, size in enumerate((self.crop["height"], self.crop["width"])):
      missing = max(0, size - pixels.shape[axis])
      padding = [(0, 0)] * 3
      padding[axis] = ((missing + 1) // 2, missing // 2)
      pixels = np.pad(pixels, padding)
      start = (pixels.shape[axis] - size) // 2
      pixels = pixels.take(range(start, start + size), axis)
    return pixels

  def __call__(self, image: Image.Image) -> np.ndarray:
    """Return pixels (1, 3, height, width) in float32 for an RGB image."""
    pixels = self.cropped(np.asarray(self.resized(image)))
    pixels = (pixels * self.scale).astype(np.float32) - self.mean
    return pixels[None].transpose(0, 3, 1, 2) / self.std.reshape(3, 1, 1)
