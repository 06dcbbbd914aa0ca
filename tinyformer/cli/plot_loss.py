"""Plot the losses of a training run, as a PNG file or in the terminal.

Usage: `python -m tinyformer.cli.plot_loss LOG.csv -o FILE.png`
"""

import argparse
import sys
from pathlib import Path

from tinyformer import cli
from tinyformer.training import plot_loss
from tinyformer.training.log import parse_losses, read_lines


def parse_points(text: str) -> plot_loss.Points:
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


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="python -m tinyformer.cli.plot_loss",
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
    lines = read_lines(args.log)
    steps, _, val_losses = parse_losses(lines, args.log)
  except OSError as e:
    raise cli.UsageError(
      f"cannot read {args.log}: {e.strerror or e}; pass the log.csv of a training run"
    ) from e
  except ValueError as e:
    raise cli.UsageError(f"{e}; pass the log.csv of a training run") from e
  if not steps:
    raise cli.UsageError(f"{args.log} has no losses yet; wait for the first evaluation")
  if not args.out:
    print(plot_loss.terminal_plot(steps, val_losses))
  elif not plot_loss.plot(lines, args.out, args.points):
    raise cli.UsageError("matplotlib is not installed: run pip install -e '.[plot]'")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
