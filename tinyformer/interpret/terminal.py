"""Display attention weights as shades in a terminal."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from tinyformer.interpret.scale import Scale

SHADES = " ░▒▓█"


def terminal_label(label: str) -> str:
  """Return a label that a terminal displays left to right, without spaces.

  A dot replaces each space and each character of a right-to-left script.
  """
  right_to_left = ("R", "AL", "AN")
  return "".join(
    "·" if c == " " or unicodedata.bidirectional(c) in right_to_left else c for c in label
  )


def display_width(text: str) -> int:
  """Return the number of terminal columns of a text."""
  width = 0
  for c in text:
    if not unicodedata.combining(c):
      width += 2 if unicodedata.east_asian_width(c) in "WF" else 1
  return width


def shades(values: np.ndarray) -> str:
  """Return a character for each shade from 0 to 1. A character stands for a range of shades."""
  # The tolerance keeps a shade of exactly 1/4 in the first range despite rounding errors.
  levels = np.ceil(values * (len(SHADES) - 1) - 1e-3)
  return "".join(SHADES[int(level)] for level in levels)


def legend(scale: Scale, is_image: bool = False) -> str:
  """Return a line with the largest weight that each character stands for."""
  num_levels = len(SHADES) - 1
  largest = [scale.weight(level / num_levels) for level in range(1, num_levels + 1)]
  ranges = [f"{c} ≤{weight:.2g}" for c, weight in zip(SHADES[1:], largest, strict=True)]
  return f"{scale.label(is_image)}: {' '.join(ranges)}"


def render_heads(
  title: str, heads: Sequence[int], maps: np.ndarray, labels: Sequence[str], width: int
) -> Iterator[str]:
  """Yield lines that show heads of one layer side by side, as many as fit into the width.

  maps (H, rows, columns): shades from 0 to 1.  labels: of the rows.  width: in terminal columns.
  """
  margin = max(map(display_width, labels))
  heads_per_line = max(1, (width - margin) // (maps.shape[-1] + 2))
  for first in range(0, len(heads), heads_per_line):
    group = heads[first : first + heads_per_line]
    yield f"{title}, head{'s' if len(group) > 1 else ''} {', '.join(map(str, group))}"
    for t, label in enumerate(labels):
      row = "".join(f" ▏{shades(maps[h, t])}" for h in group)
      yield " " * (margin - display_width(label)) + label + row
    yield ""
