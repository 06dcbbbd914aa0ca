"""What the plots of losses and experiments share: their style, direct labels, and PNG files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyformer.files import atomic_write

# Okabe and Ito's palette, whose colors remain distinct for color-blind readers.
COLORS = [
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#e69f00",
  "#56b4e9",
  "#999999",
  "#000000",
]
GRAY = "#666666"

# The documentation shows a figure at half its size, for screens with two pixels per CSS pixel.
PIXELS = 1600
DPI = 180

STYLE: dict[Any, Any] = {
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 10,
  "axes.titleweight": "bold",
  "axes.titlepad": 10,
  "font.size": 9,
  "lines.linewidth": 1.5,
}


def draw_png(path: Path, draw: Callable[[Any], None], height: float) -> bool:
  """Draw a figure and write it as a PNG file atomically.

  draw: receives a matplotlib Figure, whose background is white also on a dark page.
  height: in inches; the width is 8.9, so that 9 points are 11 CSS pixels.
  Returns False if matplotlib is not installed.
  """
  try:
    from cycler import cycler  # a dependency of matplotlib
    from matplotlib import rc_context
    from matplotlib.figure import Figure
  except ImportError:
    return False
  style = {**STYLE, "axes.prop_cycle": cycler(color=COLORS)}
  with rc_context(style), atomic_write(path) as part:
    figure = Figure(figsize=(PIXELS / DPI, height), facecolor="white", layout="constrained")
    draw(figure)
    figure.savefig(part, format="png", dpi=DPI, pil_kwargs={"optimize": True})
  return True


def label_lines(axes, line_height: float = 0.065) -> None:
  """Write the label of each line beside its right end, in a darker shade of the line's color.

  Call this function when limits and scales of the axes are final. Labels that would overlap are
  moved apart. Lines without a label are ignored.

  line_height: the smallest distance of two labels, as a fraction of the height of the axes.
  """
  axes.get_ylim()  # matplotlib computes limits only when they are read
  labels = []
  for line in axes.get_lines():
    x, y = line.get_data()
    if not line.get_label().startswith("_"):
      end = axes.transScale.transform((x[-1], y[-1]))
      labels.append((float(axes.transLimits.transform(end)[1]), line))
  labels.sort(key=lambda label: label[0])
  heights = spread([height for height, _ in labels], line_height)
  for height, (_, line) in zip(heights, labels, strict=True):
    axes.annotate(
      line.get_label(),
      (1.02, height),
      xycoords="axes fraction",
      color=darker(line.get_color()),
      va="center",
      annotation_clip=False,
    )


def spread(heights: list[float], distance: float) -> list[float]:
  """Return increasing heights that are at least `distance` apart and close to the given ones.

  Heights that are too close form a group, which is spread around its mean. heights: increasing.
  """
  groups: list[list[float]] = []  # the given heights of each group
  for height in heights:
    group = [height]
    while groups and bottom(group, distance) < top(groups[-1], distance) + distance:
      group = groups.pop() + group
    groups.append(group)
  return [bottom(group, distance) + i * distance for group in groups for i in range(len(group))]


def bottom(group: list[float], distance: float) -> float:
  """Return the lowest height of a group that is spread around its mean."""
  return sum(group) / len(group) - distance * (len(group) - 1) / 2


def top(group: list[float], distance: float) -> float:
  """Return the largest height of a group that is spread around its mean."""
  return bottom(group, distance) + distance * (len(group) - 1)


def darker(color: str) -> tuple[float, ...]:
  """Return a color with two thirds of its brightness, in which text is legible on white."""
  from matplotlib.colors import to_rgb

  return tuple(0.65 * channel for channel in to_rgb(color))


def label_level(axes, y: float, text: str, side: str = "left", below: bool = False) -> None:
  """Draw a dotted horizontal line at y, with a text above or below its left or right end."""
  axes.axhline(y, ls=":", c=GRAY, lw=1)
  axes.annotate(
    text,
    (0.01 if side == "left" else 0.99, y),
    xycoords=("axes fraction", "data"),
    xytext=(0, -2 if below else 2),
    textcoords="offset points",
    color=GRAY,
    ha=side,
    va="top" if below else "bottom",
  )
