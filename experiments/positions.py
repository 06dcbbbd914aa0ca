"""Trained on 32 positions, a decoder extrapolates to 128 with ALiBi; T5's biases lose a little.

Sinusoids, learned positions and RoPE lose much as soon as a text is longer, as in Press et al.
2022. The text is a second-order Markov chain, whose lowest possible loss is 0.87 nats per symbol.
The table of learned positions has 128 rows, of which training updates the first 32. The control
has no positions.
"""

import functools
import sys
from typing import Any

import numpy as np
from tinygrad import Tensor

from experiments import common
from experiments.small import (
  CHANCE_LOSS,
  ENTROPY_RATE,
  NUM_SYMBOLS,
  Decoder,
  markov_batch,
  token_losses,
)
from layers.positions import RelativeBias, alibi, apply_rope_half, rope_cos_sin, rope_inv_freq
from tinyformer import cli
from tinyformer.training import plots
from transformer import loss, sinusoids

DIM = 32
HEADS = 4
NUM_LAYERS = 2
TRAIN_LENGTH = 32
TEST_LENGTH = 4 * TRAIN_LENGTH
STEPS = 600
SCHEMES = ["none", "sinusoidal", "learned", "rotary", "ALiBi", "relative"]

# Ranges of positions, as table headings.
SPANS = {
  f"{TRAIN_LENGTH // 2 + 1} to {TRAIN_LENGTH}, trained": slice(TRAIN_LENGTH // 2, TRAIN_LENGTH),
  f"{TRAIN_LENGTH + 1} to {2 * TRAIN_LENGTH}": slice(TRAIN_LENGTH, 2 * TRAIN_LENGTH),
  f"{2 * TRAIN_LENGTH + 1} to {TEST_LENGTH}": slice(2 * TRAIN_LENGTH, TEST_LENGTH),
}


class PositionDecoder(Decoder):
  """A decoder that takes its positional scheme as arrays, so that one compiled step serves all."""

  def __init__(self, train_length: int, max_length: int):
    super().__init__(NUM_SYMBOLS + 1, DIM, HEADS, NUM_LAYERS)
    self.learned = Tensor.normal(max_length, DIM)
    # heads, bidirectional, buckets, max_distance
    self.relative = RelativeBias(HEADS, False, 16, train_length)

  def with_scheme(
    self, ids: Tensor, enabled: Tensor, added: Tensor, cos: Tensor, sin: Tensor, bias: Tensor
  ) -> Tensor:
    """Return logits (B, T, V) for ids (B, T), with the arrays that `scheme_arrays` returns.

    enabled: (2,), 1 to use the learned positions and T5's biases, else 0.
    added: (T, D).  cos, sin: (T, K/2).  bias: (H, T, T).
    """
    T = ids.shape[1]
    return self(
      ids,
      added + enabled[0] * self.learned[:T],
      lambda x: apply_rope_half(x, cos, sin),
      bias + enabled[1] * self.relative(T, T),
    )


def scheme_arrays(scheme: str, T: int) -> tuple[np.ndarray, ...]:
  """Return the arguments of `with_scheme` after the ids, for T positions."""
  cos, sin = (t.numpy() for t in rope_cos_sin(Tensor.arange(T), rope_inv_freq(DIM // HEADS)))
  added = sinusoids(T, DIM).numpy()
  bias = alibi(T, T, HEADS).numpy()
  use_rope = scheme == "rotary"
  return (
    np.array([scheme == "learned", scheme == "relative"], np.float32),
    added * np.float32(scheme == "sinusoidal"),
    cos if use_rope else np.ones_like(cos),
    sin if use_rope else np.zeros_like(sin),
    bias * np.float32(scheme == "ALiBi"),
  )


def learning_rate(step: int) -> float:
  """Return the rate of a step: 50 steps of warm-up, constant, then linear decay from half way."""
  return 3e-3 * min(1, (step + 1) / 50, 2 * (1 - step / STEPS))


def train_schemes(experiment: common.Experiment, seeds: range) -> dict[str, list[dict[str, Any]]]:
  """Return for each scheme and seed the training curve and the mean loss at each position."""
  trainer = common.MultiRunTrainer(
    lambda: PositionDecoder(TRAIN_LENGTH, TEST_LENGTH),
    lambda model, *batch: loss(model.with_scheme(*batch[:-1]), batch[-1], smoothing=0),
    weight_decay=0,
  )
  losses = token_losses(lambda *inputs: trainer.model.with_scheme(*inputs))

  def train_run(scheme: str, run: str, seed: int) -> dict[str, Any]:
    train_arrays = scheme_arrays(scheme, TRAIN_LENGTH)
    test_arrays = scheme_arrays(scheme, TEST_LENGTH)

    def batch(step: int) -> tuple[np.ndarray, ...]:
      x, y = markov_batch(TRAIN_LENGTH, seed, step)
      return x, *train_arrays, y

    config = common.RunConfig(STEPS, learning_rate, batch, eval_interval=STEPS // 20)
    curve = trainer.train(experiment, run, seed, config)
    x, y = markov_batch(TEST_LENGTH, seed, STEPS, count=200)
    return {"curve": curve, "position_losses": losses(x, *test_arrays, y).mean(0).tolist()}

  results: dict[str, list[dict[str, Any]]] = {}
  for scheme in SCHEMES:
    runs = {seed: f"{scheme}, seed {seed}" for seed in seeds}
    results[scheme] = [
      experiment.run_once(run, train_run, scheme, run, seed) for seed, run in runs.items()
    ]
  return results


def excess_losses(runs: list[dict[str, Any]]) -> list[list[float]]:
  """Return the mean loss above the lowest possible one, for each span and seed."""
  return [
    [float(np.mean(run["position_losses"][span])) - ENTROPY_RATE for run in runs]
    for span in SPANS.values()
  ]


def draw(results: dict[str, list[dict[str, Any]]], figure) -> None:
  axes = figure.add_subplot(
    title=f"Trained on {TRAIN_LENGTH} positions, ALiBi extrapolates, and T5's biases nearly so",
    xlabel=f"position in the text; training used positions 1 to {TRAIN_LENGTH}",
    ylabel="validation loss, nats per symbol",
    xticks=[1, TRAIN_LENGTH, 2 * TRAIN_LENGTH, TEST_LENGTH],
  )
  for scheme, runs in results.items():
    losses = np.mean([run["position_losses"] for run in runs], 0)
    # The first positions have too little context. The curve averages over groups of four.
    curve = losses[4:].reshape(-1, 4).mean(1)
    label = "no positions" if scheme == "none" else scheme
    axes.plot(np.arange(len(curve)) * 4 + 6.5, curve, label=label)
  axes.set_ylim(0, None)
  axes.axvline(TRAIN_LENGTH, ls=":", c=plots.GRAY, lw=1)
  plots.label_level(axes, CHANCE_LOSS, "chance")
  plots.label_level(axes, ENTROPY_RATE, "lowest possible loss", below=True)
  plots.label_lines(axes)


def check_claims(excess: dict[str, list[list[float]]]) -> dict[str, bool]:
  """Check the claims, comparing worst with best seeds. excess: losses by scheme, span, seed."""
  worst = {scheme: [max(seeds) for seeds in spans] for scheme, spans in excess.items()}
  best = {scheme: [min(seeds) for seeds in spans] for scheme, spans in excess.items()}
  return {
    f"ALiBi: up to position {TEST_LENGTH}, the loss is less than 0.15 nats above that up to "
    f"position {TRAIN_LENGTH}": max(worst["ALiBi"]) < best["ALiBi"][0] + 0.15,
    "T5's biases: the loss is less than 0.6 nats higher": (
      max(worst["relative"]) < best["relative"][0] + 0.6
    ),
    "sinusoids, learned positions and RoPE: the loss is more than 0.8 nats higher": all(
      min(best[s][1:]) > worst[s][0] + 0.8 for s in ("sinusoidal", "learned", "rotary")
    ),
    "control: without positions the loss is higher than with any scheme, at trained positions": (
      best["none"][0] > max(worst[s][0] for s in SCHEMES[1:]) + 0.1
    ),
  }


def main(argv: list[str] | None = None) -> int:
  args = common.argument_parser("positions", __doc__).parse_args(argv)
  experiment = common.Experiment("positions", args)
  num_seeds = 1 if experiment.quick else 3
  seeds = range(experiment.seed, experiment.seed + num_seeds)
  results = train_schemes(experiment, seeds)
  excess = {scheme: excess_losses(runs) for scheme, runs in results.items()}
  rows = []
  for scheme, spans in excess.items():
    rows.append([scheme, *(f"{np.mean(e):.2f} ({min(e):.2f} – {max(e):.2f})" for e in spans)])
  common.print_table(["nats above the lowest possible loss, positions", *SPANS], rows)
  experiment.save_figure(functools.partial(draw, results))
  return experiment.report_claims(check_claims(excess))


if __name__ == "__main__":
  sys.exit(cli.run(main))
