"""Plot the losses of a training run, as a PNG file or in the terminal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyformer.training import plots
from tinyformer.training.log import parse_losses

# Block characters of 0 to 8 eighths of a line's height.
BLOCKS = " ▁▂▃▄▅▆▇█"

# Name, steps and validation losses of a run.
Points = tuple[str, list[float], list[float]]


def plot(lines: list[str], path: Path, other_runs: Sequence[Points] = ()) -> bool:
  """Plot the losses of a log, and points of other runs, as a PNG file that is written atomically.

  Returns False if matplotlib is not installed.
  """
  steps, train_losses, val_losses = parse_losses(lines)

  def draw(figure) -> None:
    axes = figure.add_subplot(xlabel="step", ylabel="nats per token")
    axes.plot(steps, train_losses, ".-", label="train loss")
    axes.plot(steps, val_losses, ".-", label="validation loss")
    for name, x, y in other_runs:
      axes.plot(x, y, "x" if len(x) > 1 else "*", markersize=8, label=name)
    plots.label_lines(axes)

  return plots.draw_png(path, draw, height=4)


def terminal_plot(
  steps: Sequence[int], values: Sequence[float], width: int = 60, height: int = 6
) -> str:
  """Return a curve as `height` lines of block characters, and a line with the first and last step.

  The curve spans the full height: the first line shows the maximum, and the last line the minimum.
  """
  low = min(values)
  high = max(values)
  columns = np.interp(np.linspace(steps[0], steps[-1], width), steps, values)
  # For a constant curve, high - low is 0.
  scaled = (columns - low) / ((high - low) or 1)
  eighths = np.rint(scaled * (8 * height - 1)).astype(int) + 1
  labels = [f"{high:.3f}", *[""] * (height - 2), f"{low:.3f}"]
  lines = []
  for label, row in zip(labels, reversed(range(height)), strict=False):
    line = "".join(BLOCKS[n] for n in (eighths - 8 * row).clip(0, 8))
    lines.append(f"{label:>7} {line}")
  axis = f"{steps[0]:<{width - len(str(steps[-1]))}}{steps[-1]}"
  return "\n".join([*lines, f"{'step':>7} {axis}"])
