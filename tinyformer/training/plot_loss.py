"""Read the log of a training run, and plot its losses as a PNG file or in the terminal.

Usage: `python -m tinyformer.training.plot_loss LOG.csv -o FILE.png`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyformer import cli

HEADER = "step,tokens,train_loss,val_loss,bits_per_byte,seconds"
# Block characters of 0 to 8 eighths of a line's height.
BLOCKS = " ▁▂▃▄▅▆▇█"

# Name, steps and validation losses of a run.
Points = tuple[str, list[float], list[float]]


def read_log(path: Path, step: int) -> list[str]:
  """Return the header of a log and its lines up to a step, or only HEADER if there is no file."""
  lines = path.read_text().splitlines() if path.exists() else [HEADER]
  return lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]


def parse_losses(lines: list[str]) -> tuple[list[int], list[float], list[float]]:
  """Return the steps, training losses and validation losses of a log, in nats per token.

  Raises ValueError or IndexError if a line has no such numbers.
  """
  rows = [line.split(",") for line in lines[1:]]
  steps = [int(row[0]) for row in rows]
  train_losses = [float(row[2]) for row in rows]
  val_losses = [float(row[3]) for row in rows]
  return steps, train_losses, val_losses


def parse_points(text: str) -> Points:
  """Parse NAME=STEP:LOSS,STEP:LOSS,... as an argument's type.

  Raises ArgumentTypeError if the text has another format.
  """
  try:
    name, pairs = text.split("=")
    numbers = [map(float, pair.split(":")) for pair in pairs.split(",")]
    steps, losses = zip(*numbers, strict=True)
  except ValueError as e:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not NAME=STEP:LOSS,STEP:LOSS,...: pass one name, then pairs of numbers"
    ) from e
  return name, list(steps), list(losses)


def plot(lines: list[str], path: Path, other_runs: Sequence[Points] = ()) -> bool:
  """Plot the losses of a log, and points of other runs, as a PNG file that is written atomically.

  Returns False if matplotlib is not installed.
  """
  from tinyformer.files import atomic_write

  try:
    from matplotlib.figure import Figure
  except ImportError:
    return False
  steps, train_losses, val_losses = parse_losses(lines)
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.add_subplot(xlabel="step", ylabel="nats per token")
  axes.plot(steps, train_losses, ".-", label="train loss")
  axes.plot(steps, val_losses, ".-", label="validation loss")
  for name, x, y in other_runs:
    axes.plot(x, y, "x" if len(x) > 1 else "*", markersize=8, label=name)
  axes.legend()
  with atomic_write(path) as part:
    figure.savefig(part, format="png", dpi=110)
  return True


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


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="python -m tinyformer.training.plot_loss",
    description="Plot the losses of a training run of train.py.",
    formatter_class=cli.HelpFormatter,
  )
  p.add_argument("log", type=Path, help="log.csv in the output folder of the run")
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    metavar="PNG",
    help="file for the plot; without -o, the validation loss is plotted in the terminal",
  )
  p.add_argument(
    "--points",
    type=parse_points,
    action="append",
    default=[],
    metavar="NAME=STEP:LOSS,...",
    help="validation losses of another run, added to the plot; repeat the option for more runs",
  )
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  try:
    lines = args.log.read_text().splitlines()
  except OSError as e:
    raise cli.UsageError(
      f"cannot read {args.log}: {e.strerror}; pass the log.csv of a training run"
    ) from e
  try:
    steps, _, val_losses = parse_losses(lines)
  except (ValueError, IndexError) as e:
    raise cli.UsageError(
      f"{args.log} is not a log of train.py; pass the log.csv of a training run"
    ) from e
  if not steps:
    raise cli.UsageError(f"{args.log} has no losses yet; wait for the first evaluation")
  if not args.out:
    print(terminal_plot(steps, val_losses))
  elif not plot(lines, args.out, args.points):
    raise cli.UsageError("matplotlib is not installed: run pip install -e '.[plot]'")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
