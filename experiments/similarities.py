"""A small decoder learns with any similarity that depends on the query, fastest with dot products.

The text is a random sequence and its reversal. Each position of the reversal must find the one
position whose symbol it repeats. A cosine lies between -1 and 1, which limits how sharp attention
can be. Additive scores are the control: the softmax over keys cancels the part of the query.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import Tensor, nn

from experiments import common
from experiments.small import CHANCE_LOSS, NUM_SYMBOLS, Decoder, palindrome_batch, token_losses
from layers.similarity import Additive, Bahdanau, General, cosine
from tinyformer import cli
from tinyformer.training import plots
from transformer import dot_product, loss, scaled_dot_product, sinusoids

DIM = 32
HEADS = 4
LENGTH = 8
K = DIM // HEADS
SIMILARITIES: dict[str, Callable] = {
  "scaled dot product": lambda: scaled_dot_product,
  "dot product": lambda: dot_product,
  "general": lambda: General(K, K),
  "cosine": lambda: cosine,
  "Bahdanau": lambda: Bahdanau(K, K, K),
  "additive": lambda: Additive(K, K),
}

Results = dict[str, list[dict[str, Any]]]


def logits(model: Decoder, ids: Tensor) -> Tensor:
  return model(ids, sinusoids(2 * LENGTH, DIM))


def seconds_per_step(trainer: common.MultiRunTrainer, batch: tuple[np.ndarray, ...]) -> float:
  """Return the shortest time of 30 training steps. The steps change the state of the optimizer."""
  times = []
  for _ in range(30):
    start = time.perf_counter()
    trainer.trainer.train_step(0.0, *batch)
    times.append(time.perf_counter() - start)
  return min(times)


def train_similarity(
  experiment: common.Experiment, name: str, steps: int, seeds: range
) -> list[dict[str, Any]]:
  """Return for each seed the curve, the loss in the reversal, the time per step and the size."""
  trainer = common.MultiRunTrainer(
    lambda: Decoder(NUM_SYMBOLS + 1, DIM, HEADS, 1, similarity=SIMILARITIES[name]),
    lambda model, x, y: loss(logits(model, x), y, smoothing=0),
  )

  def train_run(run: str, seed: int) -> dict[str, Any]:
    config = common.RunConfig(
      steps,
      learning_rate=lambda step: 3e-3 * min(1, (step + 1) / 50),
      batch=lambda step: palindrome_batch(LENGTH, seed, step),
      eval_interval=steps // 25,
    )
    curve = trainer.train(experiment, run, seed, config)
    losses = token_losses(functools.partial(logits, trainer.model))
    test_losses = losses(*palindrome_batch(LENGTH, seed, steps, count=500))
    return {
      "curve": curve,
      "loss": float(test_losses[:, LENGTH:].mean()),
      "seconds": seconds_per_step(trainer, palindrome_batch(LENGTH, seed, steps)),
      "parameters": sum(t.numel() for t in nn.state.get_parameters(trainer.model)),
    }

  runs = {seed: f"{name}, seed {seed}" for seed in seeds}
  return [experiment.run_once(run, train_run, run, seed) for seed, run in runs.items()]


def print_results(results: Results) -> None:
  rows = []
  for name, runs in results.items():
    losses = [run["loss"] for run in runs]
    rows.append(
      [
        name,
        f"{np.mean(losses):.3f}",
        f"{min(losses):.3f} – {max(losses):.3f}",
        f"{1000 * min(run['seconds'] for run in runs):.1f}",
        f"{runs[0]['parameters']:,}",
      ]
    )
  common.print_table(
    ["similarity", "nats per symbol of the reversal", "range", "ms per step", "parameters"], rows
  )


def draw(results: Results, figure) -> None:
  axes = figure.add_subplot(
    title="Every similarity but the additive one learns the reversal",
    xlabel="step",
    ylabel="train loss, nats per symbol",
  )
  for name, runs in results.items():
    curve = np.mean([np.array(run["curve"], float) for run in runs], 0)
    axes.plot(*curve.T[:2], label=name)
  # Half of the symbols cannot be predicted.
  plots.label_level(axes, CHANCE_LOSS / 2, "lowest possible loss")
  plots.label_lines(axes)


def main(argv: list[str] | None = None) -> int:
  args = common.argument_parser("similarities", __doc__).parse_args(argv)
  experiment = common.Experiment("similarities", args)
  steps, num_seeds = (250, 1) if experiment.quick else (500, 3)
  seeds = range(experiment.seed, experiment.seed + num_seeds)
  results = {name: train_similarity(experiment, name, steps, seeds) for name in SIMILARITIES}
  print_results(results)
  experiment.save_figure(functools.partial(draw, results))
  highest_scaled = max(run["loss"] for run in results["scaled dot product"])
  lowest_additive = min(run["loss"] for run in results["additive"])
  return experiment.report_claims(
    {
      "scaled dot product: the loss in the reversal is below 0.1 nats per symbol": (
        highest_scaled < 0.1
      ),
      "control: additive scores, in which the query has no effect after the softmax, "
      "stay above 1 nat per symbol": lowest_additive > 1,
    }
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
