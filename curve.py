"""The log of a run of train.py, and its losses as a picture or in the terminal."""
from collections.abc import Sequence
from pathlib import Path
import numpy as np

def rows(path:Path, step:int) -> list[str]:
  """The log's lines up to a step; of a new log, its head."""
  lines = path.read_text().splitlines() if path.exists() else ["step,tokens,learned,held_out,bits_per_byte,seconds"]
  return lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]

def losses(lines:list[str]) -> tuple[list[int], list[float], list[float]]:
  """Of a log: steps, and the nats a token of what was learned from and of what was held out."""
  cells = [line.split(",") for line in lines[1:]]
  return [int(c[0]) for c in cells], [float(c[2]) for c in cells], [float(c[3]) for c in cells]

def picture(lines:list[str], path:Path) -> bool:
  """Draws a log's losses as a PNG, whole or not at all. False where there is no matplotlib to do it."""
  from models.checkpoint import replacing
  try: from matplotlib.figure import Figure
  except ImportError: return False
  steps, learned, held = losses(lines)
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.add_subplot(xlabel="step", ylabel="nats a token")
  axes.plot(steps, learned, ".-", label="learned")
  axes.plot(steps, held, ".-", label="held out")
  axes.legend()
  with replacing(path) as part: figure.savefig(part, format="png", dpi=150)
  return True

def blocks(steps:Sequence[int], values:Sequence[float], width:int=60, height:int=6) -> str:
  """A curve as lines of block characters, the largest value at their top and the least at their foot."""
  at = np.interp(np.linspace(steps[0], steps[-1], width), steps, values)
  low, high = min(values), max(values)
  eighths = np.rint((at - low) / ((high - low) or 1) * (8*height - 1)).astype(int) + 1
  lines = ["".join(" ▁▂▃▄▅▆▇█"[n] for n in (eighths - 8*row).clip(0, 8)) for row in reversed(range(height))]
  return "\n".join(f"{name:>7} {line}" for name, line in zip([f"{high:.3f}", *[""] * (height - 2), f"{low:.3f}"], lines)) + f"\n{'step':>7} {steps[0]:<{width - len(str(steps[-1]))}}{steps[-1]}"
