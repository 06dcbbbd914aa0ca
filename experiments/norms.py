"""A 12-layer decoder trains with pre-norm; post-norm needs warm-up; without residuals it fails.

All variants train on the text of positions.py at one learning rate, as in Xiong et al. 2020. A run
counts as trained if it closes half of the gap between chance level and the lowest possible loss.
The experiment also measures each layer's gradient at initialization, and how unscaled scores
affect attention as the head width grows (Vaswani et al. 2017, sec. 3.2.1).
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Tensor, nn

from experiments import common
from experiments.small import CHANCE_LOSS, ENTROPY_RATE, NUM_SYMBOLS, Decoder, markov_batch
from layers.norms import pre_norm
from tinyformer import cli
from tinyformer.training import plots
from transformer import (
  attention_weights,
  dot_product,
  loss,
  scaled_dot_product,
  sinusoids,
)

NUM_LAYERS = 12
DIM = 32
HEADS = 2
LENGTH = 16
LEARNING_RATE = 2e-3
WARMUP = 150
HEAD_WIDTHS = (4, 16, 64, 256, 1024)
NUM_KEYS = 64

PRE_NORM = "pre-norm"
POST_NORM = "post-norm"
POST_NORM_WARMUP = "post-norm, warm-up"
NO_RESIDUALS = "no residuals, warm-up"

# Statistics of attention, as named in results.json, and their table headings.
STATISTICS = {
  "entropy": "entropy of 64 weights",
  "score_gradient": "gradient in the scores",
  "query_gradient": "gradient in the query",
}


class PostNormDecoder(Decoder):
  """A decoder whose norms follow the sublayers, so that it needs no norm after the last block."""

  def __init__(self, residual: Callable):
    super().__init__(NUM_SYMBOLS + 1, DIM, HEADS, NUM_LAYERS, residual)
    self.norm = lambda x: x  # type: ignore[assignment]


class Variant(NamedTuple):
  """A model and how to train it; residual_scale is 1 as in the paper, or 0 for no residuals."""

  trainer: common.MultiRunTrainer
  residual_scale: float
  warmup: int


def initial_gradients(
  trainer: common.MultiRunTrainer, batch: tuple[np.ndarray, ...]
) -> dict[str, np.ndarray]:
  """Return the gradient of the loss in each matrix, by parameter name.

  The trainer makes its first step at a learning rate of 0. AdamW's first moment is then a tenth
  of the gradient.
  """
  trainer.trainer.train_step(0.0, *batch)
  names = [name for name, t in nn.state.get_state_dict(trainer.model).items() if t.ndim > 1]
  return {
    name: 10 * trainer.trainer.state[f"optimizer.0.0.{i}"].numpy() for i, name in enumerate(names)
  }


def layer_gradient_norms(gradients: dict[str, np.ndarray]) -> list[float]:
  """Return the norm of the gradient in all matrices of each layer."""
  norms = []
  for layer in range(NUM_LAYERS):
    in_layer = [g for name, g in gradients.items() if name.startswith(f"blocks.{layer}.")]
    norms.append(math.sqrt(sum(float(np.square(g).sum()) for g in in_layer)))
  return norms


def scaled_post_norm(residual_scale: Tensor) -> Callable:
  """Return post_norm with x times `residual_scale` in the residual connection.

  A scale of 1 is the paper's post_norm, 0 has no residual connections. The scale is a Tensor, so
  that a compiled step can read a new value.
  """
  return lambda x, sublayer, norm: norm(x * residual_scale + sublayer(x))


def attention_statistics(
  similarity: Callable, width: int, seed: int, T: int = 256, S: int = NUM_KEYS
) -> dict[str, float]:
  """Measure attention for T queries and S keys whose entries are N(0, 1).

  The gradient in the attention weights also has entries N(0, 1).

  entropy: mean entropy of the attention weights in nats.
  score_gradient, query_gradient: median over queries of the gradient norm in scores and query.
  """
  rng = np.random.default_rng((seed, width))
  q, k, weight_gradient = (
    Tensor(rng.standard_normal(shape).astype(np.float32))
    for shape in ((T, width), (S, width), (T, S))
  )
  scores = similarity(q, k).contiguous()
  weights = attention_weights(q, k, similarity=lambda q, k: scores)
  gradients = (weights * weight_gradient).sum().gradient(scores, q)
  score_gradient, query_gradient = (
    float(np.median(np.linalg.norm(g.numpy(), axis=-1))) for g in gradients
  )
  return {
    "entropy": (-(weights * weights.maximum(1e-30).log()).sum(-1)).mean().item(),
    "score_gradient": score_gradient,
    "query_gradient": query_gradient,
  }


def make_variants(residual_scale: Tensor) -> dict[str, Variant]:
  """Return the variants by name. The post-norm variants share a trainer and read the scale."""

  def batch_loss(model: Decoder, x: Tensor, y: Tensor) -> Tensor:
    return loss(model(x, sinusoids(LENGTH, DIM)), y, smoothing=0)

  post = common.MultiRunTrainer(
    lambda: PostNormDecoder(scaled_post_norm(residual_scale)), batch_loss, betas=(0.9, 0.98)
  )
  pre = common.MultiRunTrainer(
    lambda: Decoder(NUM_SYMBOLS + 1, DIM, HEADS, NUM_LAYERS, pre_norm),
    batch_loss,
    betas=(0.9, 0.98),
  )
  return {
    POST_NORM: Variant(post, 1, 0),
    POST_NORM_WARMUP: Variant(post, 1, WARMUP),
    PRE_NORM: Variant(pre, 1, 0),
    NO_RESIDUALS: Variant(post, 0, WARMUP),
  }


def train_variants(experiment: common.Experiment, steps: int, seeds: range) -> dict[str, list]:
  """Return the results of all variants, in the order of the seeds."""
  residual_scale = Tensor([1.0]).contiguous().realize()
  variants = make_variants(residual_scale)

  def train_run(name: str, run: str, seed: int) -> dict[str, Any]:
    variant = variants[name]
    residual_scale.assign(Tensor([float(variant.residual_scale)])).realize()
    variant.trainer.reset(seed)
    gradients = initial_gradients(variant.trainer, markov_batch(LENGTH, seed, steps))
    config = common.RunConfig(
      steps,
      learning_rate=lambda step: LEARNING_RATE * min(1, (step + 1) / max(1, variant.warmup)),
      batch=lambda step: markov_batch(LENGTH, seed, step),
      eval_interval=steps // 20,
    )
    return {
      "gradient": layer_gradient_norms(gradients),
      "curve": variant.trainer.train(experiment, run, seed, config),
    }

  results: dict[str, list] = {name: [] for name in variants}
  # Seeds are the outer loop, so that an interrupted experiment has all variants of a seed.
  for seed, name in itertools.product(seeds, variants):
    run = f"{name}, seed {seed}"
    results[name].append(experiment.run_once(run, train_run, name, run, seed))
  return results


def measure_attention(experiment: common.Experiment) -> dict[Callable, list[dict[str, float]]]:
  """Return the statistics of attention for each similarity and head width."""
  return {
    similarity: [
      experiment.run_once(
        f"{similarity.__name__} of width {width}",
        attention_statistics,
        similarity,
        width,
        experiment.seed,
      )
      for width in HEAD_WIDTHS
    ]
    for similarity in (scaled_dot_product, dot_product)
  }


def final_losses(results: dict[str, list]) -> dict[str, list[float | None]]:
  return {name: [run["curve"][-1][1] for run in runs] for name, runs in results.items()}


def count_trained(results: dict[str, list]) -> dict[str, int]:
  """Return how many seeds of each variant end below half of the reducible loss."""
  threshold = (ENTROPY_RATE + CHANCE_LOSS) / 2
  return {
    name: sum(end is not None and end < threshold for end in ends)
    for name, ends in final_losses(results).items()
  }


def mean_gradients(results: dict[str, list]) -> dict[str, np.ndarray]:
  return {name: np.mean([run["gradient"] for run in runs], 0) for name, runs in results.items()}


def print_results(
  results: dict[str, list], attention: dict[Callable, list[dict[str, float]]], num_seeds: int
) -> None:
  trained = count_trained(results)
  gradients = mean_gradients(results)
  rows = []
  for name, ends in final_losses(results).items():
    losses = ", ".join("–" if end is None else f"{end:.2f}" for end in ends)
    gradient = ", ".join(f"{gradients[name][i]:.2g}" for i in (0, 5, 11))
    rows.append([name, trained[name], losses, gradient])
  common.print_table(
    [
      "twelve layers",
      f"trained seeds, of {num_seeds}",
      "final loss",
      "initial gradient norm in layers 1, 6, 12",
    ],
    rows,
  )
  columns = list(itertools.product(STATISTICS, attention))
  header = [
    f"{STATISTICS[key]}, {'scaled' if similarity is scaled_dot_product else 'unscaled'}"
    for key, similarity in columns
  ]
  rows = [
    [f"{width:,}", *(f"{attention[similarity][i][key]:.2g}" for key, similarity in columns)]
    for i, width in enumerate(HEAD_WIDTHS)
  ]
  common.print_table(["d_k", *header], rows)


def draw_training(results: dict[str, list], num_seeds: int, figure) -> None:
  curves, layers = figure.subplots(1, 2)
  gradients = mean_gradients(results)
  trained = count_trained(results)
  for i, (name, runs) in enumerate(results.items()):
    for run in runs:
      label = f"{name}:\n{trained[name]} of {num_seeds} seeds train" if run is runs[0] else None
      curves.plot(*np.array(run["curve"], float).T, c=f"C{i}", lw=0.8, label=label)
    # Warm-up does not change the initial gradient.
    if name != POST_NORM_WARMUP:
      label = name.removesuffix(", warm-up")
      layers.plot(range(1, NUM_LAYERS + 1), gradients[name], ".-", c=f"C{i}", label=label)
  curves.set(
    title="Pre-norm trains without warm-up,\npost-norm only with it",
    xlabel="step",
    ylabel="train loss, nats per symbol",
    ylim=(0, None),
  )
  plots.label_level(curves, CHANCE_LOSS, "chance", side="right")
  plots.label_level(curves, ENTROPY_RATE, "lowest possible loss")
  plots.label_lines(curves, line_height=0.14)
  layers.set(
    title="The initial gradient shrinks with depth\nonly with pre-norm",
    xlabel="layer",
    ylabel="gradient norm before the first step",
    ylim=(0, None),
  )
  plots.label_lines(layers)


def draw_attention(attention: dict[Callable, list[dict[str, float]]], figure) -> None:
  panels = zip(figure.subplots(1, 2), ("entropy", "score_gradient"), strict=True)
  for axes, key in panels:
    for similarity, statistics in attention.items():
      label = "scaled" if similarity is scaled_dot_product else "unscaled"
      axes.semilogx(HEAD_WIDTHS, [x[key] for x in statistics], ".-", label=label)
    axes.set(xlabel="head width d_k", ylim=(0, None))
    axes.set_xticks(HEAD_WIDTHS, [f"{width:,}" for width in HEAD_WIDTHS])
    axes.minorticks_off()
  entropy, gradient = figure.axes
  entropy.set(
    title="Without the scale, wide heads attend to one key",
    ylabel="entropy of the attention weights, nats",
  )
  entropy.set_ylim(0, 1.15 * math.log(NUM_KEYS))
  plots.label_level(entropy, math.log(NUM_KEYS), f"uniform weights: ln {NUM_KEYS}")
  gradient.set(
    title="and their scores get no gradient", ylabel="median gradient norm in the scores"
  )
  plots.label_lines(entropy)
  plots.label_lines(gradient)


def check_claims(
  results: dict[str, list], attention: dict[Callable, list[dict[str, float]]], num_seeds: int
) -> dict[str, bool]:
  trained = count_trained(results)
  gradients = mean_gradients(results)
  wide = HEAD_WIDTHS.index(256)
  unscaled_gradient = attention[dot_product][wide]["score_gradient"]
  scaled_gradients = [x["score_gradient"] for x in attention[scaled_dot_product]]
  return {
    "pre-norm: every seed trains without warm-up": trained[PRE_NORM] == num_seeds,
    "post-norm: every seed trains with warm-up": trained[POST_NORM_WARMUP] == num_seeds,
    "control: post-norm: no seed trains without warm-up": trained[POST_NORM] == 0,
    "control: without residuals no seed trains": trained[NO_RESIDUALS] == 0,
    "the initial gradient is larger in the last layer than in the first with post-norm, "
    "and smaller with pre-norm": (
      gradients[POST_NORM][-1] > gradients[POST_NORM][0]
      and gradients[PRE_NORM][-1] < gradients[PRE_NORM][0]
    ),
    "at d_k = 256, the median gradient in unscaled scores is below a fifth of that in "
    "scaled scores": unscaled_gradient < scaled_gradients[wide] / 5,
    "control: the median gradient in scaled scores varies by less than 20% over all widths": (
      max(scaled_gradients) < 1.2 * min(scaled_gradients)
    ),
  }


def main(argv: list[str] | None = None) -> int:
  args = common.argument_parser("norms", __doc__).parse_args(argv)
  experiment = common.Experiment("norms", args)
  steps, num_seeds = (450, 1) if experiment.quick else (500, 5)
  seeds = range(experiment.seed, experiment.seed + num_seeds)
  results = train_variants(experiment, steps, seeds)
  attention = measure_attention(experiment)
  print_results(results, attention, num_seeds)
  experiment.save_figure(functools.partial(draw_training, results, num_seeds))
  experiment.save_figure(functools.partial(draw_attention, attention), name="scaling")
  return experiment.report_claims(check_claims(results, attention, num_seeds))


if __name__ == "__main__":
  sys.exit(cli.run(main))
