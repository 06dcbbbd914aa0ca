"""The scale of attention weights: how strong a shade the terminal, the PNG and the page show.

In a text, the strongest shade is a weight of 1. In an image, hundreds of patches share a sum of 1,
so the strongest shade is the largest weight of a patch in the same head. Every view says so.
"""

from typing import NamedTuple

import numpy as np

# Opacity of the black that covers the patches of an image whose shade is 0.
PATCH_DARKENING = 0.86


class Scale(NamedTuple):
  """A scale on which the shade of a weight is (weight / largest) ** exponent.

  quantity: what the shade is proportional to.
  ticks: the weights with a number at the color bar, as fractions of the largest.
  """

  name: str
  title: str
  quantity: str
  exponent: float
  ticks: tuple[float, ...]

  def shade(self, weights: np.ndarray, largest: float | np.ndarray = 1.0) -> np.ndarray:
    """Return the shades, from 0 to 1, of weights from 0 to the largest."""
    return (weights / np.maximum(largest, 1e-9)) ** self.exponent

  def weight(self, shade: float) -> float:
    """Return the weight, as a fraction of the largest, that has this shade."""
    return shade ** (1 / self.exponent)

  def label(self, is_image: bool = False) -> str:
    """Return the label of the color bar."""
    name = "weight / largest weight of a patch" if is_image else "attention weight"
    return f"{name}, {self.title}"


LINEAR = Scale(
  name="linear",
  title="linear scale",
  quantity="the attention weight",
  exponent=1.0,
  ticks=(0, 0.25, 0.5, 0.75, 1),
)
SQRT = Scale(
  name="sqrt",
  title="square-root scale",
  quantity="the square root of the attention weight",
  exponent=0.5,
  ticks=(0, 0.05, 0.25, 0.5, 1),
)
SCALES = {scale.name: scale for scale in (LINEAR, SQRT)}
