"""The tables of bench.py: medians, ranges, percentages of the machine's limits, ratios."""

import statistics
from typing import Any

from benchmarks.systems import OURS
from benchmarks.weights import SHAPES

# The scale of each block of 32 weights of 4 bits takes 2 bytes.
BYTES_PER_WEIGHT = {
  "float32": 4,
  "float16": 2,
  "bfloat16": 2,
  "int8": 1,
  "int4": 0.5 + 2 / 32,
}
Results = dict[str, dict[str, Any]]


def limit_of(figure: str, dtype: str, model: str) -> tuple[str, float] | None:
  """Return the machine limit that bounds a figure, and how much of the limit each unit needs.

  Decoding reads all weights for each step. Prefill computes all layers at each position. Other
  figures have no limit.
  """
  shape = SHAPES[model]
  if figure.startswith("decode"):
    batch = 8 if "batch" in figure else 1
    return "all cores read, GB/s", shape.parameters * BYTES_PER_WEIGHT[dtype] / 1e9 / batch
  if figure.startswith("prefill"):
    return "matrix product, GFLOP/s", 2 * (shape.parameters - shape.embedding) / 1e9
  return None


def median(values) -> float | None:
  """Return the median of a list; return a number or None unchanged."""
  return statistics.median(values) if isinstance(values, list) else values


def lower_is_better(figure: str) -> bool:
  return figure.endswith((" s", "MB", "ms"))


def ratio(figure: str, results: Results, ours: list[str], peers: list[str]) -> str:
  """Return our best result relative to the best peer, as text; above 1 is better for us."""

  def medians(names: list[str]) -> list[float]:
    values = [median(results[name].get(figure)) for name in names if name in results]
    return [value for value in values if value is not None]

  our_medians = medians(ours)
  peer_medians = medians(peers)
  if not our_medians or not peer_medians:
    return "–"
  if lower_is_better(figure):
    return f"{min(peer_medians) / min(our_medians):.2f}"
  return f"{max(our_medians) / max(peer_medians):.2f}"


def format_cell(values, limit: tuple[str, float] | None, machine: dict[str, Any]) -> str:
  """Format the median, the minimum and maximum in parentheses, and the percentage of the limit."""
  middle = median(values)
  if middle is None:
    return "–"
  digits = 1 if middle < 100 else 0
  text = f"{middle:,.{digits}f}"
  if isinstance(values, list) and len(values) > 1:
    text += f" ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
  if limit:
    limit_name, used_per_unit = limit
    if limit_name in machine:
      text += f" {middle * used_per_unit / machine[limit_name]:.0%}"
  return text


def table(results: Results, machine: dict[str, Any], model: str = "gpt2") -> str:
  """Return Markdown tables: for weights of 32, 16, 8 and 4 bits.

  Each has a row for each figure and a column for each peer. The last column is our best result
  relative to the best peer.
  """
  all_figures = list(dict.fromkeys(figure for r in results.values() for figure in r))

  def one_table(names: list[str]) -> str:
    ours = [name for name in names if name.startswith(OURS)]
    peers = [name for name in names if not name.startswith(OURS)]
    rows = [["", *names, "ratio to best peer"], ["---"] + ["---:"] * (len(names) + 1)]
    for figure in all_figures:
      if any(figure in results[name] for name in names):
        limits = [limit_of(figure, name.split()[1], model) for name in names]
        cells = [
          format_cell(results[name].get(figure), limit, machine)
          for name, limit in zip(names, limits, strict=True)
        ]
        rows.append([figure, *cells, ratio(figure, results, ours, peers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

  tables = []
  for dtypes in (["float32"], ["float16", "bfloat16"], ["int8"], ["int4"]):
    names = [name for name in results if name.split()[1] in dtypes and results[name]]
    if names:
      tables.append(one_table(names))
  return "\n\n".join(tables)
