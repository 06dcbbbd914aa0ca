"""Plot what `bench.py --figures contexts` measured: python benchmarks/plot_contexts.py bench.json.

Writes docs/contexts.png: the time of a decoding step and the peak memory for each length.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contexts import LENGTHS, MEMORY, TIME
from benchmarks.report import Results, median
from tinyformer import cli
from tinyformer.files import read_json
from tinyformer.training import plots

PNG = Path(__file__).resolve().parent.parent / "docs" / "contexts.png"
# tinyformer's lines are solid, those of peers are dashed; the color is that of the dtype.
DTYPES = ("bfloat16", "int8", "int4")
LINE_STYLES = {"tinyformer": "-", "llama.cpp": "--", "torch": ":"}


def curves(results: Results, name: str) -> dict[str, list[float]]:
  """Return each system's medians of a figure, TIME or MEMORY, by length. Others are left out."""
  found = {}
  for system, figures in results.items():
    medians = [median(figures.get(name.format(length))) for length in LENGTHS]
    values = [value for value in medians if value is not None]
    if len(values) == len(LENGTHS):
      found[system] = values
  return found


def draw(figure: Any, results: Results) -> None:
  """Draw the two plots side by side."""
  left, right = figure.subplots(1, 2)
  for axes, name, unit, title in (
    (left, TIME, 1, "Decoding step, ms"),
    (right, MEMORY, 1000, "Peak memory, GB"),
  ):
    for system, values in curves(results, name).items():
      library, dtype = system.split()
      color = plots.COLORS[DTYPES.index(dtype)]
      heights = [value / unit for value in values]
      axes.plot(LENGTHS, heights, LINE_STYLES[library], marker=".", color=color, label=system)
    axes.set(title=title, xlabel="tokens in the KV cache", ylim=(0, None))
    axes.set_xticks(LENGTHS[1:], [f"{length:,}" for length in LENGTHS[1:]])
    plots.label_lines(axes)


def main(argv: list[str] | None = None) -> int:
  description = (__doc__ or "").split("\n")[0]
  p = argparse.ArgumentParser(prog="plot_contexts.py", description=description)
  p.add_argument("file", type=Path, help="JSON file that bench.py has written")
  p.add_argument("--png", type=Path, default=PNG, help="file to write (default: docs/contexts.png)")
  args = p.parse_args(argv)
  results = read_json(args.file)["results"]
  if not curves(results, TIME):
    raise cli.UsageError(f"{args.file} has no contexts: run bench.py --figures contexts")
  if not plots.draw_png(args.png, lambda figure: draw(figure, results), height=4):
    raise cli.UsageError("matplotlib is not installed: run pip install -e '.[plot]'")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
