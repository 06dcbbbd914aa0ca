"""What the experiments share: options, results that a stopped run goes on from, training, an interval, a picture and a verdict."""

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor, nn

from tinyformer import cli
from tinyformer.checkpoints.safetensors import (
  read_metadata,
  read_safetensors,
  atomic_write,
  skip_init,
  write_safetensors,
  write_text,
)
from tinyformer.device import select_device
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.training.trainer import Trainer


def parser(name: str, finding: str) -> argparse.ArgumentParser:
  """The options of every experiment. finding: its docstring, whose first line --help shows."""
  p = argparse.ArgumentParser(
    prog=f"experiments/{name}.py",
    description=finding.strip().split("\n")[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  p.add_argument(
    "--quick",
    action="store_true",
    help="a smaller setting, about a minute, that checks the finding and its control",
  )
  p.add_argument(
    "--seed", type=cli.number(int, 0), default=0, help="of the first run; the others follow"
  )
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    help=f"the folder to write, and to go on from (default: runs/{name}, with --quick runs/{name}-quick)",
  )
  p.add_argument("--fresh", action="store_true", help="forget what the folder holds")
  p.add_argument("--device", help="tinygrad's device, such as CPU, METAL or CUDA")
  return p


class Lab:
  """The folder of an experiment: results.json, the checkpoint of a run that was stopped, the picture.

  Opens the device. Raises Usage for a folder with the results of other settings.
  """

  def __init__(self, name: str, args: argparse.Namespace):
    select_device(args.device)
    Tensor.manual_seed(0)  # what a run draws begins at a place of its own, see Teacher.begin
    self.name, self.quick, self.seed = name, args.quick, args.seed
    self.out: Path = args.out or Path("runs") / (name + "-quick" * args.quick)
    self.file = self.out / "results.json"
    settings = {
      key: str(value) if isinstance(value, Path) else value
      for key, value in vars(args).items()
      if key not in ("out", "fresh", "device")
    }
    self.out.mkdir(parents=True, exist_ok=True)
    if not self.file.exists() and any(self.out.iterdir()):
      raise cli.Usage(
        f"{self.out} holds other files, and no results.json: name another folder with -o"
      )
    if args.fresh:
      for old in [self.file, *self.out.glob("*.safetensors"), *self.out.glob(".*.part")]:
        old.unlink(missing_ok=True)
    kept = json.loads(self.file.read_text()) if self.file.exists() else {}
    if kept and kept.get("settings") != settings:
      raise cli.Usage(
        f"{self.out} holds results of other settings: name another folder with -o, or begin anew with --fresh"
      )
    self.results: dict[str, Any] = kept or {"settings": settings, "runs": {}, "seconds": 0.0}
    self.begun = time.monotonic()
    self.keep({})

  def once(self, run: str, compute: Callable[[], Any]) -> Any:
    """What a run gives, as JSON: computed once, then read from results.json."""
    if run not in self.results["runs"]:
      self.results["runs"][run] = compute()
      self.tick()
      (self.out / f"{run}.safetensors").unlink(missing_ok=True)
    return self.results["runs"][run]

  def tick(self) -> None:
    """Adds the time since the last tick to that of the whole experiment."""
    now = time.monotonic()
    self.keep({"seconds": self.results["seconds"] + now - self.begun})
    self.begun = now

  def keep(self, more: dict[str, Any]) -> None:
    """Adds to results.json."""
    self.results |= more
    write_text(self.file, json.dumps(self.results, indent=1) + "\n")

  def picture(self, draw: Callable[[Any], None], width: float = 7, height: float = 3.5) -> None:
    """NAME.png of what `draw` does with a matplotlib Figure, whole or not at all; without matplotlib, a line says how to get it."""
    try:
      from cycler import cycler  # matplotlib's own
      from matplotlib import rc_context
      from matplotlib.figure import Figure
    except ImportError:
      return cli.note(
        "no picture: matplotlib is not installed; pip install -e '.[plot]' brings it, and the same command then draws"
      )
    style: dict[Any, Any] = {
      "axes.spines.top": False,
      "axes.spines.right": False,
      "font.size": 8,
      "axes.titlesize": 9,
      "lines.linewidth": 1.2,
      "legend.frameon": False,
      "axes.prop_cycle": cycler(
        color=[
          "#0072b2",
          "#d55e00",
          "#009e73",
          "#cc79a7",
          "#e69f00",
          "#56b4e9",
          "#999999",
          "#000000",
        ]
      ),
    }  # Okabe & Ito's, for all eyes
    with rc_context(style), atomic_write(self.out / f"{self.name}.png") as part:
      figure = Figure(figsize=(width, height), layout="constrained")
      draw(figure)
      figure.savefig(part, format="png", dpi=90, pil_kwargs={"optimize": True})
    cli.note(f"picture: {self.out / self.name}.png")

  def verdict(self, claims: dict[str, bool]) -> int:
    """Prints each claim and whether it holds, the controls among them -> the exit status: 1 if one does not."""
    for claim, holds in claims.items():
      print(f"{'holds' if holds else 'does not hold'}: {claim}")
    self.keep({"claims": {claim: bool(holds) for claim, holds in claims.items()}})
    return int(not all(claims.values()))


class Teacher:
  """One traced step for many runs: each run's numbers take the places of the last one's in `model`, which is what `loss` reads.

  make: makes the model.  loss: (model, tensors of a batch) -> a number.  more: what parts.learner.Learner takes besides.
  Nothing is made before it is needed.
  """

  def __init__(self, make: Callable[[], Any], loss: Callable[..., Tensor], **more):
    self.make, self.loss, self.more = make, loss, more

  @functools.cached_property
  def model(self) -> Any:
    with skip_init():
      return self.make()  # `begin` draws its numbers

  @functools.cached_property
  def learner(self) -> Trainer:
    return Trainer(self.model, lambda *batch: self.loss(self.model, *batch), **self.more)

  @functools.cached_property
  def blank(self) -> dict[str, np.ndarray]:
    """An optimizer that has seen nothing."""
    return {
      name: t.numpy().copy()
      for name, t in self.learner.state.items()
      if name.startswith("optimizer.")
    }

  @functools.cached_property
  def draw(self) -> CompiledStep:
    """Gives the model numbers as `make` does, traced once: to plan it anew for each seed would take longer than many a run."""

    def fresh() -> Tensor:
      mine, counts = nn.state.get_state_dict(self.model), Tensor._device_rng_counters.values()
      drawn = [mine[name].assign(t) for name, t in nn.state.get_state_dict(self.make()).items()]
      return drawn[0].sum().realize(*drawn, *counts)

    return CompiledStep(fresh)

  def begin(self, seed: int) -> None:
    """The model as the seed draws it, and an optimizer that has seen nothing. Dropout draws on from there."""
    for name, value in self.blank.items():
      self.learner.state[name].assign(
        Tensor(value)
      ).realize()  # makes the learner, and with it the counters
    for count in Tensor._device_rng_counters.values():
      count.assign(Tensor([0, seed], dtype=count.dtype, device=count.device)).realize()
    self.draw()

  def teach(
    self,
    lab: Lab,
    run: str,
    seed: int,
    steps: int,
    rate: float | Callable[[int], float],
    batch: Callable[[int], Sequence[np.ndarray]],
    every: int = 100,
    look: Callable[[], list[float]] = list,
  ) -> list[list[float | None]]:
    """Teaches from the seed's beginning, or from where `run` was stopped -> rows of step, mean loss since the last row, and what `look` says then.

    batch: its arrays, from the number of the step alone.  rate: a number, or one of the step, the first of which is 0. Ctrl-C saves, and raises
    KeyboardInterrupt; a kill costs what was done since the last half minute. None stands for what is not finite.
    """
    file, step, rows, recent = (
      lab.out / f"{run}.safetensors",
      0,
      list[list[float | None]](),
      list[float](),
    )
    self.begin(seed)
    if file.exists():
      told, entries = json.loads(read_metadata(file)["run"]), read_safetensors(file)
      step, rows, recent = told["step"], told["rows"], told["recent"]
      self.learner.restore(
        {name: entries[name].numpy() for name in self.learner.state}, told["drawn"]
      )

    def save() -> None:
      told = {"step": step, "rows": rows, "recent": recent, "drawn": self.learner.rng_state}
      write_safetensors(
        file, {name: t.numpy() for name, t in self.learner.state.items()}, {"run": json.dumps(told)}
      )

    bar, saved = cli.Bar(run), time.monotonic()
    with cli.deferred_interrupt() as interrupted:  # half a step could not be gone on from
      while step < steps:
        recent.append(self.learner.train_step(rate(step) if callable(rate) else rate, *batch(step)))
        step += 1
        if step % every == 0 or step == steps:
          rows.append(
            [step, *(x if math.isfinite(x) else None for x in (float(np.mean(recent)), *look()))]
          )
          recent = []
        bar(step, steps, f"loss {rows[-1][1] or math.nan if not recent else recent[-1]:.3f}")
        if interrupted() or step == steps or time.monotonic() - saved > 30:
          save()
          lab.tick()
          saved = time.monotonic()
        if interrupted():
          bar.clear()
          cli.note(f"stopped at step {step} of {run}: the same command goes on")
          raise KeyboardInterrupt
    bar.clear()
    return rows


def ramp(step: int, steps: int, most: float) -> float:
  """A learning rate, the first step being 0: up for a tenth of the steps, then down to nothing, in lines."""
  return most * min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))


def wilson(right: float, of: int, z: float = 1.96) -> tuple[float, float]:
  """The 95% interval of a share of `right` in `of` independent trials (Wilson 1927): stays within 0 and 1, and is right also near them."""
  share = right / of
  middle, spread = (
    (share + z * z / (2 * of)) / (1 + z * z / of),
    z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of),
  )
  return max(0.0, min(share, middle - spread)), min(
    1.0, max(share, middle + spread)
  )  # the share itself, where rounding would leave it out


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """Prints rows under a head, as Markdown, which docs/experiments.md quotes."""
  for row in (head, [":--"] + ["--:"] * (len(head) - 1), *rows):
    print("| " + " | ".join(map(str, row)) + " |")
  sys.stdout.flush()
