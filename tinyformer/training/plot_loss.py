"""The log of a run of train.py, and its losses as a picture or in the terminal: `python -m tinyformer.training.plot_loss LOG.csv -o FILE.png`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyformer import cli


def rows(path: Path, step: int) -> list[str]:
  """The log's lines up to a step; of a new log, its head."""
  lines = (
    path.read_text().splitlines()
    if path.exists()
    else ["step,tokens,learned,held_out,bits_per_byte,seconds"]
  )
  return lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]


def losses(lines: list[str]) -> tuple[list[int], list[float], list[float]]:
  """Of a log: steps, and the nats a token of what was learned from and of what was held out."""
  cells = [line.split(",") for line in lines[1:]]
  return [int(c[0]) for c in cells], [float(c[2]) for c in cells], [float(c[3]) for c in cells]


def points(text: str) -> tuple[str, list[float], list[float]]:
  """NAME=STEP:LOSS,STEP:LOSS... -> the name, the steps, the losses. Raises ArgumentTypeError for anything else."""
  try:
    name, pairs = text.split("=")
    steps, values = zip(*(map(float, pair.split(":")) for pair in pairs.split(",")))
  except ValueError as e:
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=STEP:LOSS,STEP:LOSS and so on") from e
  return name, list(steps), list(values)


def picture(
  lines: list[str], path: Path, others: Sequence[tuple[str, list[float], list[float]]] = ()
) -> bool:
  """Draws a log's losses as a PNG, and those of others, whole or not at all. False where there is no matplotlib to do it."""
  from tinyformer.files import atomic_write

  try:
    from matplotlib.figure import Figure
  except ImportError:
    return False
  steps, learned, held = losses(lines)
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.add_subplot(xlabel="step", ylabel="nats a token")
  axes.plot(steps, learned, ".-", label="learned")
  axes.plot(steps, held, ".-", label="held out")
  for name, x, y in others:
    axes.plot(x, y, "x" if len(x) > 1 else "*", markersize=8, label=name)
  axes.legend()
  with atomic_write(path) as part:
    figure.savefig(part, format="png", dpi=110)
  return True


def blocks(steps: Sequence[int], values: Sequence[float], width: int = 60, height: int = 6) -> str:
  """A curve as lines of block characters, the largest value at their top and the least at their foot."""
  at = np.interp(np.linspace(steps[0], steps[-1], width), steps, values)
  low, high = min(values), max(values)
  eighths = np.rint((at - low) / ((high - low) or 1) * (8 * height - 1)).astype(int) + 1
  lines = [
    "".join(" ▁▂▃▄▅▆▇█"[n] for n in (eighths - 8 * row).clip(0, 8))
    for row in reversed(range(height))
  ]
  return (
    "\n".join(
      f"{name:>7} {line}"
      for name, line in zip([f"{high:.3f}", *[""] * (height - 2), f"{low:.3f}"], lines)
    )
    + f"\n{'step':>7} {steps[0]:<{width - len(str(steps[-1]))}}{steps[-1]}"
  )


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(prog="plot_loss", description="Draw the losses of a run of train.py.")
  p.add_argument("log", type=Path, help="the log.csv that the run wrote")
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    metavar="PNG",
    help="the picture to write; without it the held-out loss is drawn in the terminal",
  )
  p.add_argument(
    "--points",
    type=points,
    action="append",
    default=[],
    metavar="NAME=STEP:LOSS,...",
    help="held-out losses of another run, to stand beside it; more than once for more of them",
  )
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  try:
    lines = args.log.read_text().splitlines()
  except OSError as e:
    raise cli.UsageError(f"{args.log} cannot be read: {e.strerror}") from e
  try:
    steps, _, held = losses(lines)
  except (ValueError, IndexError) as e:
    raise cli.UsageError(f"{args.log} is no log of train.py") from e
  if not steps:
    raise cli.UsageError(f"{args.log} has no losses yet")
  if not args.out:
    print(blocks(steps, held))
  elif not picture(lines, args.out, args.points):
    raise cli.UsageError("there is no matplotlib to draw with: pip install -e '.[plot]'")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
