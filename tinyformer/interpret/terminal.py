"""Attention as shades in a terminal."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

SHADES = " ░▒▓█"


def plain(label: str) -> str:
  """A label as one line that a terminal shows from the left: a dot for its blanks and for what runs from the right."""
  return "".join(
    "·" if c == " " or unicodedata.bidirectional(c) in ("R", "AL", "AN") else c for c in label
  )


def wide(text: str) -> int:
  """How many columns of a terminal a text takes."""
  return sum(
    0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
    for c in text
  )


def shaded(row: np.ndarray) -> str:
  """Weights as shades, the largest of the row full."""
  return "".join(
    SHADES[int(n)] for n in np.ceil(row / max(row.max(), 1e-9) * (len(SHADES) - 1) - 1e-3)
  )


def drawn(
  title: str, heads: Sequence[int], maps: np.ndarray, names: Sequence[str], width: int
) -> Iterator[str]:
  """The heads of a layer, maps (H, rows, columns), beside each other as far as the width goes: a line a row. names: of the rows."""
  margin = max(map(wide, names))
  each = max(1, (width - margin) // (maps.shape[-1] + 2))
  for first in range(0, len(heads), each):
    some = heads[first : first + each]
    yield f"{title}, head{'s' if len(some) > 1 else ''} {', '.join(map(str, some))}"
    for t, name in enumerate(names):
      yield " " * (margin - wide(name)) + name + "".join(f" ▏{shaded(maps[h, t])}" for h in some)
    yield ""
