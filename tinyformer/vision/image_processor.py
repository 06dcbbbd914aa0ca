"""A picture file as the pixels that a model reads: what a checkpoint's preprocessor_config.json says is done to it, with Pillow.

The pixels are those of transformers' ViTImageProcessorPil. The processor that it makes where torchvision is installed rounds a resized picture
otherwise: by up to 1 of 255 levels (bilinear), by more where a bicubic one overshoots.
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
    "pictures are read with Pillow, which is not installed: pip install -e '.[pictures]'"
  ) from e

MOST = Image.MAX_IMAGE_PIXELS or 89_478_485  # pixels of a picture that is read or made


def read(path: str | Path) -> Image.Image:
  """The picture in a file, upright, in RGB: transparency is dropped, as transformers does. Raises OSError, ValueError for what is no whole picture."""
  with open(path, "rb") as f, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    warnings.simplefilter(
      "error", Image.DecompressionBombWarning
    )  # a small file can claim any number of pixels
    try:
      return ImageOps.exif_transpose(Image.open(f)).convert("RGB")
    except UnidentifiedImageError as e:
      raise ValueError(f"{path} is no picture that Pillow knows") from e
    except Exception as e:
      raise ValueError(
        f"{path} cannot be read as a picture: {e}"
      ) from e  # a damaged file can raise anything


class Preprocessor:
  """Resizes, crops, rescales and normalises, in this order, each if the settings of a preprocessor_config.json say so; their defaults are ViT's.

  source: what errors call them. Raises ValueError for settings that cannot be followed.
  """

  def __init__(self, settings: dict[str, Any], source: str = "preprocessor_config.json"):
    self.settings, self.source = settings, source
    try:
      self.size = self.sides(settings.get("size", 224)) if settings.get("do_resize", True) else None
      self.crop = self.sides(settings.get("crop_size")) if settings.get("do_center_crop") else None
      self.resample = Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR))
      self.scale = (
        float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
      )
      normal = settings.get("do_normalize", True)
      self.mean, self.std = (
        np.broadcast_to(
          np.array(settings.get(f"image_{name}", 0.5) if normal else other, np.float32), 3
        )
        for name, other in (("mean", 0), ("std", 1))
      )
    except (TypeError, ValueError) as e:
      raise ValueError(f"{source}: {e}") from e
    if self.crop and "shortest_edge" in self.crop:
      raise ValueError(f"{source}: crop_size should be a height and a width")
    if not self.std.all():
      raise ValueError(f"{source}: an image_std is 0")

  @staticmethod
  def sides(size: Any) -> dict[str, int]:
    """What a size says, with height and width or shortest_edge. A number is that of a square's sides. Raises ValueError for another size."""
    sides = {"height": size, "width": size} if isinstance(size, int) else size
    if (
      isinstance(sides, dict)
      and set(sides) in ({"height", "width"}, {"shortest_edge"})
      and all(type(n) is int and n > 0 for n in sides.values())
    ):
      return sides
    raise ValueError(
      f"a size of {size!r} is neither a number, a height and a width, nor a shortest_edge"
    )

  @classmethod
  def load(cls, folder: str | Path) -> "Preprocessor":
    """Raises FileNotFoundError, ValueError for a file that is damaged or cannot be followed."""
    path = Path(folder) / "preprocessor_config.json"
    return cls(read_json(path), str(path))

  def save(self, folder: str | Path) -> None:
    """Writes the file that `load`, and transformers, read."""
    write_text(
      Path(folder) / "preprocessor_config.json", json.dumps(self.settings, indent=2) + "\n"
    )

  def resized(self, picture: Image.Image) -> Image.Image:
    """Raises ValueError for a picture so narrow that it would become too large."""
    if self.size is None:
      return picture
    if "shortest_edge" in self.size:
      width, height = (
        int(self.size["shortest_edge"] * n / min(picture.size)) for n in picture.size
      )
    else:
      width, height = self.size["width"], self.size["height"]
    if width * height > MOST:
      raise ValueError(
        f"{self.source} makes {width} by {height} pixels of {picture.width} by {picture.height}: these are too many"
      )
    return picture.resize((width, height), self.resample)

  def cropped(self, pixels: np.ndarray) -> np.ndarray:
    """(height, width, 3) -> its middle, of the size of the crop; black where there is nothing."""
    if self.crop is None:
      return pixels
    for axis, want in enumerate((self.crop["height"], self.crop["width"])):
      lack = max(0, want - pixels.shape[axis])
      pixels = np.pad(
        pixels, [((lack + 1) // 2, lack // 2) if a == axis else (0, 0) for a in range(3)]
      )
      first = (pixels.shape[axis] - want) // 2
      pixels = pixels.take(range(first, first + want), axis)
    return pixels

  def __call__(self, picture: Image.Image) -> np.ndarray:
    """A picture in RGB -> (1, 3, height, width) in float32."""
    pixels = self.cropped(np.asarray(self.resized(picture)))
    return ((pixels * self.scale).astype(np.float32) - self.mean)[None].transpose(
      0, 3, 1, 2
    ) / self.std.reshape(3, 1, 1)
