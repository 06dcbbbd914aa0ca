"""One layer memorizes modular addition, then groks it with a few Fourier frequencies.

It generalizes long after it has memorized the training pairs. Without weight decay it never does.
The setting is that of Power et al. 2022; the analysis of the embedding follows Nanda et al. 2023.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, nn

from experiments import common
from layers.attention import CachedAttention
from layers.norms import pre_norm
from tinyformer import cli
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.fused import attention, materialize
from tinyformer.kernels.linear import PackedLinear
from tinyformer.training import plots
from transformer import Block, FeedForward, loss

WITH_DECAY = "weight decay"
WITHOUT_DECAY = "no weight decay"
NUM_FREQUENCIES = 6
# Columns of a training curve.
TRAIN_ACCURACY = 2
VAL_ACCURACY = 3


class ModularAddition:
  """Map the tokens a, b, = to logits for a + b mod p (Nanda et al. 2023, sec. 3).

  One layer without norms. The id of = is p.
  """

  def __init__(self, p: int, dim: int = 64, heads: int = 4, ff_dim: int = 256):
    self.tokens = nn.Embedding(p + 1, dim)
    self.positions = Tensor.normal(3, dim, std=dim**-0.5)
    self.tokens.weight = Tensor.normal(p + 1, dim, std=dim**-0.5)
    self.block = Block(
      CachedAttention(dim, heads, PackedLinear, attention),
      FeedForward(dim, ff_dim, linear=PackedLinear),
      lambda: lambda x: x,
      pre_norm,
    )
    self.head = PackedLinear(dim, p, bias=False)

  def __call__(self, ids: Tensor) -> Tensor:
    """ids (B, 3) -> logits (B, 1, p) at the position of =."""
    x = materialize(self.tokens(ids) + self.positions)
    # Only = is a query, because the logits of the other positions are not needed.
    return self.head(self.block(x[:, 2:], cache=lambda k, v: self.block.attn.keys_values(x)))


def all_pairs(p: int) -> tuple[np.ndarray, np.ndarray]:
  """Return the ids (p^2, 3) of a, b, = for all pairs of residues, and a + b mod p (p^2, 1)."""
  a, b = np.divmod(np.arange(p * p), p)
  ids = np.stack([a, b, np.full(p * p, p)], 1).astype(np.int32)
  sums = ((a + b) % p).astype(np.int32)
  return ids, sums[:, None]


def split_indices(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Return sorted random indices: a fraction of `count` for training, the rest for validation."""
  order = np.random.default_rng(seed).permutation(count)
  num_train = int(fraction * count)
  return np.sort(order[:num_train]), np.sort(order[num_train:])


def frequency_shares(embedding: np.ndarray) -> np.ndarray:
  """Return the share of the squared norm at each Fourier frequency over the residues.

  embedding (p, D), p odd -> ((p + 1) / 2). Frequency 0 is the mean. The shares sum to 1.
  """
  power = (np.abs(np.fft.rfft(embedding.astype(np.float64), axis=0)) ** 2).sum(1)
  power[1:] *= 2  # rfft omits the negative frequencies
  return power / power.sum()


def project_frequencies(embedding: np.ndarray, frequencies: Sequence[int]) -> np.ndarray:
  """Project an embedding (p, D) onto some Fourier frequencies over the residues -> (p, D)."""
  spectrum = np.fft.rfft(embedding.astype(np.float64), axis=0)
  spectrum[[k for k in range(len(spectrum)) if k not in frequencies]] = 0
  return np.fft.irfft(spectrum, len(embedding), axis=0).astype(np.float32)


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
  """Return the mean cross-entropy in nats of logits (N, p) against ids (N, 1)."""
  x = logits.astype(np.float64) - logits.max(1, keepdims=True)
  target_logits = np.take_along_axis(x, target, 1)[:, 0]
  return float((np.log(np.exp(x).sum(1)) - target_logits).mean())


def analyze_embedding(
  model: ModularAddition, forward: CompiledStep, ids: np.ndarray, sums: np.ndarray
) -> dict[str, Any]:
  """Return the strongest frequencies of the embedding, and the losses with and without them.

  The losses are over all pairs. Keys of the result:
  shares: of the squared norm, by frequency.  frequencies: the strongest ones.
  frequencies_share: their total share.  loss: with the full embedding.
  restricted_loss: with the strongest frequencies and the mean only.
  excluded_loss: without the strongest frequencies.
  """
  weight = model.tokens.weight.numpy().copy()
  embedding = weight[:-1]
  equals_row = weight[-1:]
  shares = frequency_shares(embedding)
  frequencies = sorted((np.argsort(-shares[1:])[:NUM_FREQUENCIES] + 1).tolist())

  def loss_with(residues: np.ndarray) -> float:
    model.tokens.weight.assign(Tensor(np.concatenate([residues, equals_row]))).realize()
    return cross_entropy(forward(ids)[:, 0], sums)

  result = {
    "shares": shares.tolist(),
    "frequencies": frequencies,
    "frequencies_share": float(shares[frequencies].sum()),
    "loss": loss_with(embedding),
    "restricted_loss": loss_with(project_frequencies(embedding, [0, *frequencies])),
    "excluded_loss": loss_with(embedding - project_frequencies(embedding, frequencies)),
  }
  loss_with(embedding)  # restores the weights
  return result


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = common.argument_parser("grokking", __doc__)
  p.add_argument(
    "--prime",
    type=int,
    choices=[59, 97, 113],
    default=59,
    help="modulus; a step takes 2.7 times as long with 97 and 3.7 times as long with 113 "
    "(default: %(default)s)",
  )
  p.add_argument(
    "--train-fraction",
    type=cli.number(float, 0.05, 0.95),
    help="fraction of all pairs to train on (default: 0.4, or 0.5 with --quick)",
  )
  p.add_argument(
    "--weight-decay",
    type=cli.number(float, 0, 1000),
    help="weight decay of the first run (default: 1, or 2 with --quick)",
  )
  p.add_argument(
    "--steps",
    type=cli.number(int, 10, cli.MAX_COUNT),
    help="number of training steps (default: 5000, or 800 with --quick)",
  )
  args = p.parse_args(argv)
  defaults = (0.5, 2.0, 800) if args.quick else (0.4, 1.0, 5000)
  for name, default in zip(("train_fraction", "weight_decay", "steps"), defaults, strict=True):
    if getattr(args, name) is None:
      setattr(args, name, default)
  return args


def train_run(
  experiment: common.Experiment, args: argparse.Namespace, run: str, weight_decay: float
) -> dict[str, Any]:
  """Train one model and analyze its embedding."""
  ids, sums = all_pairs(args.prime)
  train, val = split_indices(len(ids), args.train_fraction, experiment.seed)
  trainer = common.MultiRunTrainer(
    functools.partial(ModularAddition, args.prime),
    lambda model, ids, sums: loss(model(ids), sums, smoothing=0),
    weight_decay=weight_decay,
    betas=(0.9, 0.98),
  )
  forward = CompiledStep(lambda ids: trainer.model(ids).realize())

  def accuracies() -> list[float]:
    correct = forward(ids)[:, 0].argmax(1) == sums[:, 0]
    return [correct[train].mean(), correct[val].mean()]

  config = common.RunConfig(
    args.steps,
    learning_rate=lambda step: 3e-3 * min(1, (step + 1) / 10),
    batch=lambda _: (ids[train], sums[train]),
    eval_interval=10,
    evaluate=accuracies,
  )
  curve = trainer.train(experiment, run, experiment.seed, config)
  return {"curve": curve} | analyze_embedding(trainer.model, forward, ids, sums)


def first_step(result: dict[str, Any], column: int, level: float = 0.99) -> int | None:
  """Return the first step whose accuracy in a column of the curve reaches the level, or None."""
  return next((row[0] for row in result["curve"] if row[column] >= level), None)


def print_results(results: dict[str, dict[str, Any]]) -> None:
  header = [
    "",
    "99% training accuracy at step",
    "99% validation accuracy at step",
    "validation accuracy at the end",
    f"share of the {NUM_FREQUENCIES} strongest frequencies",
    "loss",
    "loss with these frequencies only",
    "loss without these frequencies",
  ]
  rows = []
  for run, result in results.items():
    losses = [result[key] for key in ("loss", "restricted_loss", "excluded_loss")]
    rows.append(
      [
        run,
        first_step(result, TRAIN_ACCURACY),
        first_step(result, VAL_ACCURACY) or "never",
        f"{result['curve'][-1][VAL_ACCURACY]:.1%}",
        f"{result['frequencies_share']:.1%}",
        *(f"{x:.2g}" for x in losses),
      ]
    )
  common.print_table(header, rows)
  frequencies = results[WITH_DECAY]["frequencies"]
  print(f"\nstrongest frequencies with weight decay: {', '.join(map(str, frequencies))}")


def draw(results: dict[str, dict[str, Any]], prime: int, figure) -> None:
  curve, spectrum = figure.subplots(1, 2, width_ratios=[3, 2])
  for (run, result), color in zip(results.items(), plots.COLORS[:2], strict=True):
    steps, _, train_accuracy, val_accuracy = zip(*result["curve"], strict=True)
    curve.semilogx(steps, train_accuracy, "--", color=color, label=f"train, {run}")
    curve.semilogx(steps, val_accuracy, color=color, label=f"validation, {run}")
  curve.set(
    xlabel="step",
    ylabel=f"accuracy of a + b mod {prime}",
    title="With weight decay, the model generalizes\nlong after it has memorized",
  )
  plots.label_level(curve, 1 / prime, f"chance: 1/{prime}", side="right")
  plots.label_lines(curve)
  shares = results[WITH_DECAY]["shares"]
  spectrum.bar(range(len(shares)), shares)
  spectrum.set(
    xlabel="frequency over the residues",
    ylabel="share of the embedding's squared norm",
    title="Its embedding then consists\nof a few frequencies",
  )


def check_claims(results: dict[str, dict[str, Any]], prime: int) -> dict[str, bool]:
  decay = results[WITH_DECAY]
  no_decay = results[WITHOUT_DECAY]
  memorized = first_step(decay, TRAIN_ACCURACY)
  generalized = first_step(decay, VAL_ACCURACY)
  memorized_without_decay = first_step(no_decay, TRAIN_ACCURACY)
  return {
    "training accuracy reaches 99% in less than half the steps of validation accuracy": bool(
      memorized and generalized and 2 * memorized < generalized
    ),
    "six frequencies have over 90% of the embedding's squared norm": (
      decay["frequencies_share"] > 0.9
    ),
    "with these frequencies only, the loss is below 0.05; without them, it is above log p": (
      decay["restricted_loss"] < 0.05 and decay["excluded_loss"] > np.log(prime)
    ),
    "control: without weight decay, the model memorizes, but validation stays below 60%": (
      bool(memorized_without_decay) and no_decay["curve"][-1][VAL_ACCURACY] < 0.6
    ),
    "control: without weight decay, no six frequencies have 60% of the squared norm": (
      no_decay["frequencies_share"] < 0.6
    ),
  }


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  experiment = common.Experiment("grokking", args)
  results = {
    run: experiment.run_once(run, train_run, experiment, args, run, weight_decay)
    for run, weight_decay in ((WITH_DECAY, args.weight_decay), (WITHOUT_DECAY, 0))
  }
  num_pairs = args.prime**2
  num_train = int(args.train_fraction * num_pairs)
  print(
    f"p = {args.prime}: {num_train:,} of {num_pairs:,} pairs for training, {args.steps:,} steps\n"
  )
  print_results(results)
  experiment.save_figure(lambda figure: draw(results, args.prime, figure))
  return experiment.report_claims(check_claims(results, args.prime))


if __name__ == "__main__":
  sys.exit(cli.run(main))
