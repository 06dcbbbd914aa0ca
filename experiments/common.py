"""What the experiments share: options, resumable results, training, intervals and figures."""

import argparse
import functools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor, nn

from tinyformer import cli
from tinyformer.backend import is_numpy
from tinyformer.cli.folder_lock import LOCK, FolderLock
from tinyformer.device import select_device
from tinyformer.files import write_text
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.training import plots, random_state
from tinyformer.training.checkpoint import restore_checkpoint, save_checkpoint
from tinyformer.training.run import TrainConfig
from tinyformer.training.trainer import Trainer, train

Curve = list[list[float | None]]

SAVE_INTERVAL = 30  # seconds


def argument_parser(name: str, description: str) -> argparse.ArgumentParser:
  """Return a parser with the options that all experiments share.

  description: the docstring of the experiment, whose first line `--help` shows.
  """
  p = argparse.ArgumentParser(
    prog=f"experiments/{name}.py", description=description.strip().split("\n")[0]
  )
  p.add_argument(
    "--quick",
    action="store_true",
    help="run a smaller setting that checks the finding and its control in about a minute",
  )
  p.add_argument(
    "--seed",
    type=cli.number(int, 0, 2**31),
    default=0,
    help="random seed of the first run; later runs use the following integers "
    "(default: %(default)s)",
  )
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    help="output folder; an interrupted experiment resumes from its contents "
    f'(default: runs/{name}, plus "-quick" with --quick)',
  )
  p.add_argument(
    "--fresh",
    action="store_true",
    help="delete the results and checkpoints in the output folder and start again",
  )
  p.add_argument("--device", help="tinygrad device, such as CPU, METAL or CUDA")
  return p


def select_tinygrad_device(device: str | None) -> None:
  """Select the device of --device. Raises UsageError for NUMPY.

  The models are built from parts of tinyformer/kernels that need tinygrad, and tinygrad has been
  imported before the option is read.
  """
  if is_numpy(device or os.environ.get("TINYFORMER_DEVICE")):
    raise cli.UsageError(
      "this experiment needs tinygrad, because its model is built from tinygrad's kernels: choose "
      "another --device than NUMPY, such as CPU. train.py and experiments/baselines.py run on NUMPY"
    )
  select_device(device)


class Experiment:
  """The output folder of an experiment: results.json, checkpoints of unfinished runs, the figure.

  The constructor also selects the device. It raises cli.UsageError if the folder holds results of
  other settings, or files but no results.json, or if another experiment is writing to it.
  """

  def __init__(self, name: str, args: argparse.Namespace):
    select_tinygrad_device(args.device)
    # Each run sets the state of the random number generator itself: see MultiRunTrainer.reset.
    Tensor.manual_seed(0)
    self.name = name
    self.quick = args.quick
    self.seed = args.seed
    self.out: Path = args.out or Path("runs") / (name + "-quick" * args.quick)
    self.file = self.out / "results.json"
    settings = {
      key: str(value) if isinstance(value, Path) else value
      for key, value in vars(args).items()
      if key not in ("out", "fresh", "device")
    }
    self.lock = FolderLock(self.out)
    if not self.file.exists() and any(f.name != LOCK for f in self.out.iterdir()):
      raise cli.UsageError(
        f"{self.out} contains files but no results.json: choose another folder with -o"
      )
    if args.fresh:
      for old in [self.file, *self.out.glob("*.safetensors"), *self.out.glob(".*.part")]:
        old.unlink(missing_ok=True)
    saved = json.loads(self.file.read_text()) if self.file.exists() else {}
    if saved and saved.get("settings") != settings:
      raise cli.UsageError(
        f"{self.out} contains results of other settings: "
        "choose another folder with -o, or start again with --fresh"
      )
    self.results: dict[str, Any] = saved or {"settings": settings, "runs": {}, "seconds": 0.0}
    self.last_update = time.monotonic()
    self.update({})

  def run_once(self, run: str, compute: Callable[..., Any], *args: Any) -> Any:
    """Return the saved result of a run, or compute it with `compute(*args)` and save it.

    The result must be serializable as JSON. The checkpoint of a finished run is deleted.
    """
    if run not in self.results["runs"]:
      self.results["runs"][run] = compute(*args)
      self.add_elapsed_time()
      (self.out / f"{run}.safetensors").unlink(missing_ok=True)
    return self.results["runs"][run]

  def add_elapsed_time(self) -> None:
    """Add the time since the last call to the total time in results.json."""
    now = time.monotonic()
    self.update({"seconds": self.results["seconds"] + now - self.last_update})
    self.last_update = now

  def update(self, entries: dict[str, Any]) -> None:
    """Add entries to results.json and write the file."""
    self.results |= entries
    write_text(self.file, json.dumps(self.results, indent=1) + "\n")

  def save_figure(
    self, draw: Callable[[Any], None], height: float = 3.6, name: str | None = None
  ) -> None:
    """Write NAME.png atomically; `draw` receives a matplotlib Figure.

    height: in inches; see plots.draw_png.
    name: the name of the file without ".png"; None: the name of the experiment.
    Print a note instead if matplotlib is not installed.
    """
    path = self.out / f"{name or self.name}.png"
    if plots.draw_png(path, draw, height):
      return cli.note(f"figure: {path}")
    return cli.note(
      "no figure was drawn, because matplotlib is not installed: "
      "run pip install -e '.[plot]', then repeat the command"
    )

  def report_claims(self, claims: dict[str, bool]) -> int:
    """Print and save whether each claim holds; return exit status 1 if any fails, else 0.

    Claims that begin with "control:" check that the finding disappears without its cause.
    """
    for claim, holds in claims.items():
      print(f"{'holds' if holds else 'does not hold'}: {claim}")
    self.update({"claims": {claim: bool(holds) for claim, holds in claims.items()}})
    return int(not all(claims.values()))


@dataclass(frozen=True)
class RunConfig:
  """Settings of one training run.

  steps: number of training steps.
  learning_rate: a constant, or a function of the step; the first step is 0.
  batch: a function of the step alone that returns the arrays of its batch.
  eval_interval: number of steps between two rows of the training curve.
  evaluate: a function that returns the numbers to append to each row.
  """

  steps: int
  learning_rate: float | Callable[[int], float]
  batch: Callable[[int], Sequence[np.ndarray]]
  eval_interval: int = 100
  evaluate: Callable[[], list[float]] = list

  def learning_rate_at(self, step: int) -> float:
    """Return the learning rate of a step, the first of which is 0."""
    return self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate


class ExperimentRun:
  """What training.trainer.train needs to train one run of an experiment; see training.run.Run.

  curve: rows of [step, mean training loss since the last row, *config.evaluate()], in which None
  replaces a number that is not finite.
  """

  def __init__(self, experiment: Experiment, name: str, config: RunConfig, trainer: Trainer):
    self.experiment = experiment
    self.config = config
    self.trainer = trainer
    self.steps = config.steps
    self.eval_interval = config.eval_interval
    self.step = 0
    self.curve: Curve = []
    self.recent_losses: list[float] = []
    self.checkpoint = experiment.out / f"{name}.safetensors"
    self.bar = cli.Bar(name)
    self.last_save = time.monotonic()

  def restore(self) -> None:
    """Restore the trainer and the progress from the checkpoint, if it exists."""
    if self.checkpoint.exists():
      progress = restore_checkpoint(self.checkpoint, self.trainer, "run")
      self.step = progress["step"]
      self.curve = progress["curve"]
      self.recent_losses = progress["recent_losses"]

  def learning_rate(self, step: int) -> float:
    return self.config.learning_rate_at(step)

  def batch(self, step: int) -> Sequence[np.ndarray]:
    return self.config.batch(step)

  def report(self, loss: float) -> None:
    """Show the loss of the step."""
    self.bar(self.step, self.steps, f"loss {loss:.3f}")

  def evaluate(self) -> None:
    """Append a row to the curve."""
    values = (float(np.mean(self.recent_losses)), *self.config.evaluate())
    self.curve.append([self.step, *(x if math.isfinite(x) else None for x in values)])
    self.recent_losses = []

  def save_is_due(self) -> bool:
    """Return whether this is the last step, or the last checkpoint is SAVE_INTERVAL old."""
    return self.step == self.steps or time.monotonic() - self.last_save > SAVE_INTERVAL

  def save(self) -> None:
    """Write a checkpoint: model, optimizer, progress and the random number generator's state."""
    progress = {"step": self.step, "curve": self.curve, "recent_losses": self.recent_losses}
    save_checkpoint(self.checkpoint, self.trainer, "run", progress)
    self.experiment.add_elapsed_time()
    self.last_save = time.monotonic()


class MultiRunTrainer:
  """A trainer whose model and compiled training step serve many runs.

  Each run overwrites the parameters of `model`; compiling a step for every run would take longer
  than most runs. The model, the trainer and the compiled step are created when first needed.

  make: a function that creates the model.
  loss: (model, *tensors of a batch) -> scalar.
  options: fields of training.run.TrainConfig.
  """

  def __init__(self, make: Callable[[], Any], loss: Callable[..., Tensor], **options: Any):
    self.make = make
    self.loss = loss
    self.options = options

  @functools.cached_property
  def model(self) -> Any:
    return self.make()  # `reset` draws the initial values

  @functools.cached_property
  def trainer(self) -> Trainer:
    config = TrainConfig(**self.options)
    return Trainer(self.model, lambda *batch: self.loss(self.model, *batch), config)

  @functools.cached_property
  def initial_optimizer_state(self) -> dict[str, np.ndarray]:
    """The state of an optimizer before its first step."""
    return {
      name: t.numpy().copy()
      for name, t in self.trainer.state.items()
      if name.startswith("optimizer.")
    }

  @functools.cached_property
  def initialize(self) -> CompiledStep:
    """A compiled step that initializes the parameters as `make` does.

    Scheduling the initialization again for each seed would take longer than many a run.
    """

    def initialize_parameters() -> Tensor:
      parameters = nn.state.get_state_dict(self.model)
      new_parameters = nn.state.get_state_dict(self.make())
      assigned = [parameters[name].assign(t) for name, t in new_parameters.items()]
      return assigned[0].sum().realize(*assigned, *random_state.counters())

    return CompiledStep(initialize_parameters)

  def reset(self, seed: int) -> None:
    """Initialize the parameters from a seed and reset the optimizer.

    Dropout continues with the random numbers that follow.
    """
    # Reading the initial state creates the trainer, which creates the counters.
    for name, value in self.initial_optimizer_state.items():
      self.trainer.state[name].assign(Tensor(value)).realize()
    random_state.set_rng_state({device: [0, seed] for device in random_state.get_rng_state()})
    self.initialize()

  def train(self, experiment: Experiment, run: str, seed: int, config: RunConfig) -> Curve:
    """Train a run from its seed, or resume it from its checkpoint, and return its curve.

    ExperimentRun describes the curve. Ctrl-C saves a checkpoint and raises KeyboardInterrupt;
    another signal that ends a process also saves one, and raises SystemExit.
    If the process is killed, at most about 30 seconds of training are lost.
    """
    self.reset(seed)
    current = ExperimentRun(experiment, run, config, self.trainer)
    current.restore()
    # A step that is interrupted halfway could not be resumed.
    with cli.deferred_interrupt() as interrupted:
      train(self.trainer, current, interrupted)
      current.bar.clear()
      if number := interrupted():
        cli.note(f"stopped at step {current.step} of {run}: repeat the command to resume")
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    return current.curve


def wilson_interval(correct: float, total: int, z: float = 1.96) -> tuple[float, float]:
  """Return the 95% confidence interval of the proportion correct / total (Wilson 1927).

  The interval stays within 0 and 1 and is accurate near both.
  """
  p = correct / total
  scale = 1 + z * z / total
  center = (p + z * z / (2 * total)) / scale
  half_width = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / scale
  # Rounding errors must not exclude the proportion itself.
  return max(0.0, min(p, center - half_width)), min(1.0, max(p, center + half_width))


def accuracy_bars(axes, correct: dict[str, int], total: int, controls: Sequence[str] = ()) -> None:
  """Draw the accuracy of each method as a horizontal bar with its 95% confidence interval.

  correct: the number of correct answers of each method, of `total`.
  controls: the methods whose bars are gray.
  """
  accuracies = np.array([n / total for n in correct.values()])
  intervals = np.array([wilson_interval(n, total) for n in correct.values()])
  colors = [plots.COLORS[6] if name in controls else plots.COLORS[0] for name in correct]
  errors = np.abs(intervals.T - accuracies)
  bars = axes.barh(list(correct), accuracies, xerr=errors, color=colors)
  axes.bar_label(bars, [f"{accuracy:.1%}" for accuracy in accuracies], padding=4)
  axes.yaxis.set_inverted(True)
  axes.set_xlim(0, 1)


def format_accuracy(correct: int, total: int) -> str:
  """Return an accuracy and its 95% confidence interval, such as "50.0% (40.4% to 59.6%)"."""
  low, high = wilson_interval(correct, total)
  return f"{correct / total:.1%} ({low:.1%} to {high:.1%})"


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """Print a Markdown table; docs/experiments.md quotes these tables."""
  for row in (header, [":--"] + ["--:"] * (len(header) - 1), *rows):
    print("| " + " | ".join(map(str, row)) + " |")
  sys.stdout.flush()
