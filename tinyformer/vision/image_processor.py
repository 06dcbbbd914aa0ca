"""Convert image files to the pixels that a model reads, with Pillow.

A checkpoint's preprocessor_config.json describes the conversion. The pixels equal those of
transformers' ViTImageProcessorPil. If torchvision is installed, transformers uses another
processor, which rounds resized images differently. Bilinear results then differ by up to one of
255 levels. Bicubic results differ by more if they overshoot.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.files import read_json, write_text

try:
  from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as e:
  raise ImportError(
    "reading images needs Pillow, which is not installed: pip install -e '.[pictures]'"
  ) from e

# Largest number of pixels of an image, both in a file and after resizing.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485


def read(path: str | Path) -> Image.Image:
  """Read an image file; return an upright RGB image.

  Transparency is dropped, as transformers does.
  Raises OSError if the file cannot be opened, and ValueError for an invalid or truncated image.
  """
  with open(path, "rb") as f, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # A small file can claim any number of pixels.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
      return ImageOps.exif_transpose(Image.open(f)).convert("RGB")
    except UnidentifiedImageError as e:
      raise ValueError(
        f"{path} is not an image in a format that Pillow supports: convert it, for example to PNG"
      ) from e
    # Pillow can raise any exception for a damaged file.
    except Exception as e:
      raise ValueError(
        f"cannot read {path} as an image: {e}; check that the file is complete"
      ) from e


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
    try:
      self.size = self.sides(settings.get("size", 224)) if settings.get("do_resize", True) else None
      self.crop = self.sides(settings.get("crop_size")) if settings.get("do_center_crop") else None
      self.resample = Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR))
      rescale = settings.get("do_rescale", True)
      self.scale = float(settings.get("rescale_factor", 1 / 255)) if rescale else 1.0
      normalize = settings.get("do_normalize", True)
      mean = settings.get("image_mean", 0.5) if normalize else 0
      std = settings.get("image_std", 0.5) if normalize else 1
      self.mean = np.broadcast_to(np.array(mean, np.float32), 3)
      self.std = np.broadcast_to(np.array(std, np.float32), 3)
    except (TypeError, ValueError) as e:
      raise ValueError(f"{source}: {e}") from e
    if self.crop and "shortest_edge" in self.crop:
      raise ValueError(
        f"{source}: crop_size {settings['crop_size']!r} must give a height and a width"
      )
    if not self.std.all():
      raise ValueError(f"{source}: image_std {settings['image_std']!r} must not contain 0")

  @staticmethod
  def sides(size: Any) -> dict[str, int]:
    """Return a size as a dict with the keys height and width, or shortest_edge, in pixels.

    A number gives the side of a square. Raises ValueError for other values.
    """
    sides = {"height": size, "width": size} if isinstance(size, int) else size
    if (
      isinstance(sides, dict)
      and set(sides) in ({"height", "width"}, {"shortest_edge"})
      and all(type(n) is int and n > 0 for n in sides.values())
    ):
      return sides
    raise ValueError(
      f"a size must be a positive integer, a height and a width, or a shortest_edge, not {size!r}"
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
    """Return the resized image. Raises ValueError if it would have more than MAX_PIXELS pixels."""
    if self.size is None:
      return image
    if "shortest_edge" in self.size:
      shortest_edge = self.size["shortest_edge"]
      width, height = (int(shortest_edge * n / min(image.size)) for n in image.size)
    else:
      width, height = self.size["width"], self.size["height"]
    if width * height > MAX_PIXELS:
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
