"""Display attention weights as shades in a terminal."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

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


def shade(row: np.ndarray) -> str:
  """Return a row of weights as shades, relative to its largest weight."""
  relative = row / max(row.max(), 1e-9)
  levels = np.ceil(relative * (len(SHADES) - 1) - 1e-3)
  return "".join(SHADES[int(level)] for level in levels)


def render_heads(
  title: str, heads: Sequence[int], maps: np.ndarray, labels: Sequence[str], width: int
) -> Iterator[str]:
  """Yield lines that show heads of one layer side by side, as many as fit into the width.

  maps (H, rows, columns): attention weights.  labels: of the rows.  width: in terminal columns.
  """
  margin = max(map(display_width, labels))
  heads_per_line = max(1, (width - margin) // (maps.shape[-1] + 2))
  for first in range(0, len(heads), heads_per_line):
    group = heads[first : first + heads_per_line]
    yield f"{title}, head{'s' if len(group) > 1 else ''} {', '.join(map(str, group))}"
    for t, label in enumerate(labels):
      shades = "".join(f" ▏{shade(maps[h, t])}" for h in group)
      yield " " * (margin - display_width(label)) + label + shades
    yield ""
