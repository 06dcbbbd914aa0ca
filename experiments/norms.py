"""Twelve layers learn with the norms before the sublayers at once, with the norms after them only if the rate warms up, without residuals not at all.

As Xiong et al. (2020) have it, on the text of positions.py, at one rate for all. The gradient of each layer at the start is shown beside it, and what
unscaled scores do to attention as heads grow wide (Vaswani et al. 2017, 3.2.1). Half of what there is to learn counts as learned.
"""

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import Tensor, nn

from experiments import common
from experiments.small import FLOOR, SYMBOLS, Decoder, markov
from tinyformer import cli
from transformer import (
  attention_weights,
  dot_product,
  loss,
  pre_norm,
  scaled_dot_product,
  sinusoids,
)

DEPTH, DIM, HEADS, LENGTH = 12, 32, 2, 16
WIDTHS = (4, 16, 64, 256, 1024)  # of a head


class After(Decoder):
  """Norms after the sublayers, and so none at the end."""

  def __init__(self, residual: Callable):
    super().__init__(SYMBOLS + 1, DIM, HEADS, DEPTH, residual)
    self.norm = lambda x: x  # type: ignore[assignment]


def gradients(teacher: common.Teacher, batch: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
  """The loss's gradient in each matrix: after the first step, at a rate of 0, AdamW's first moment is a tenth of it."""
  teacher.learner.train_step(0.0, *batch)
  names = [name for name, t in nn.state.get_state_dict(teacher.model).items() if t.ndim > 1]
  return {
    name: 10 * teacher.learner.state[f"optimizer.0.0.{i}"].numpy() for i, name in enumerate(names)
  }


def after(shortcut: Tensor) -> Callable:
  """post_norm, of which `shortcut` says how much of x goes past a sublayer: 1 as in the paper, 0 without residuals. A number that a traced step reads."""
  return lambda x, sublayer, norm: norm(x * shortcut + sublayer(x))


def softness(
  width: int, similarity: Callable, seed: int, T: int = 256, S: int = 64
) -> dict[str, float]:
  """Of queries and keys with entries N(0, 1): the mean entropy of the weights in nats, and the length of the gradient that the median query gets, in its
  scores and in itself, where that in the weights has entries N(0, 1)."""
  draw = np.random.default_rng((seed, width))
  q, k, slope = (
    Tensor(draw.standard_normal(shape).astype(np.float32))
    for shape in ((T, width), (S, width), (T, S))
  )
  scores = similarity(q, k).contiguous()
  weights = attention_weights(q, k, similarity=lambda q, k: scores)
  by_scores, by_q = (
    float(np.median(np.linalg.norm(g.numpy(), axis=-1)))
    for g in (weights * slope).sum().gradient(scores, q)
  )
  return {
    "entropy": (-(weights * weights.maximum(1e-30).log()).sum(-1)).mean().item(),
    "scores": by_scores,
    "queries": by_q,
  }


def main(argv: list[str] | None = None) -> int:
  lab = common.Lab("norms", common.parser("norms", __doc__).parse_args(argv))
  steps, seeds = (450, 1) if lab.quick else (500, 5)
  lr, warmup = 2e-3, 150
  shortcut = Tensor([1.0]).contiguous().realize()

  def taught(make: Callable):
    return common.Teacher(
      make, lambda model, x, y: loss(model(x, sinusoids(LENGTH, DIM)), y, smoothing=0), b2=0.98
    )

  posts, pres = (
    taught(lambda: After(after(shortcut))),
    taught(lambda: Decoder(SYMBOLS + 1, DIM, HEADS, DEPTH, pre_norm)),
  )
  variants = {
    "post-norm": (posts, 1, 0),
    "post-norm, warm-up": (posts, 1, warmup),
    "pre-norm": (pres, 1, 0),
    "no residuals, warm-up": (posts, 0, warmup),
  }

  def compute(name: str, run: str, seed: int) -> dict[str, Any]:
    teacher, share, rising = variants[name]
    shortcut.assign(Tensor([float(share)])).realize()
    teacher.begin(seed)
    found = gradients(teacher, markov(LENGTH, seed, steps))
    lengths = [
      math.sqrt(
        sum(
          float(np.square(g).sum())
          for name, g in found.items()
          if name.startswith(f"blocks.{layer}.")
        )
      )
      for layer in range(DEPTH)
    ]

    def rate(step: int) -> float:
      return lr * min(1, (step + 1) / max(1, rising))

    return {
      "gradient": lengths,
      "curve": teacher.teach(
        lab, run, seed, steps, rate, lambda step: markov(LENGTH, seed, step), steps // 20
      ),
    }

  chosen = range(lab.seed, lab.seed + seeds)
  for seed, name in itertools.product(chosen, variants):
    lab.once(
      run := f"{name}, seed {seed}", lambda: compute(name, run, seed)
    )  # seed after seed: all variants soon
  runs = {
    name: [lab.results["runs"][f"{name}, seed {seed}"] for seed in chosen] for name in variants
  }
  soft = {
    similarity: [
      lab.once(f"{similarity.__name__} of {width}", lambda: softness(width, similarity, lab.seed))
      for width in WIDTHS
    ]
    for similarity in (scaled_dot_product, dot_product)
  }

  ends = {name: [r["curve"][-1][1] for r in runs[name]] for name in runs}
  captured_buffers = (FLOOR + math.log(SYMBOLS)) / 2  # half of what there is to learn
  learned = {
    name: sum(end is not None and end < captured_buffers for end in ends[name]) for name in runs
  }
  gradient = {name: np.mean([r["gradient"] for r in runs[name]], 0) for name in runs}
  common.table(
    [
      "twelve layers",
      f"seeds that learn, of {seeds}",
      "loss at the end",
      "gradient in layers 1, 6, 12 at the start",
    ],
    [
      [
        name,
        learned[name],
        ", ".join("–" if end is None else f"{end:.2f}" for end in ends[name]),
        ", ".join(f"{gradient[name][i]:.2g}" for i in (0, 5, 11)),
      ]
      for name in runs
    ],
  )
  common.table(
    [
      "d_k",
      *(
        f"{what}, {how}"
        for what in ("entropy of 64 weights", "gradient in the scores", "in the queries")
        for how in ("scaled", "not")
      ),
    ],
    [
      [
        f"{width:,}",
        *(
          f"{soft[similarity][i][what]:.2g}"
          for what in ("entropy", "scores", "queries")
          for similarity in soft
        ),
      ]
      for i, width in enumerate(WIDTHS)
    ],
  )

  def draw(figure) -> None:
    curves, layers, widths = figure.subplots(1, 3)
    for i, name in enumerate(runs):
      for r in runs[name]:
        curves.plot(
          *np.array(r["curve"], float).T,
          c=f"C{i}",
          lw=0.8,
          label=name if r is runs[name][0] else None,
        )
      if name != "post-norm, warm-up":
        layers.plot(range(1, DEPTH + 1), gradient[name], ".-", c=f"C{i}")
    for similarity, style in zip(soft, ("-", "--")):
      for what, colour in (("entropy", "C4"), ("scores", "C5")):
        widths.semilogx(
          WIDTHS,
          [x[what] / soft[scaled_dot_product][0][what] for x in soft[similarity]],
          style,
          c=colour,
          label=("entropy" if what == "entropy" else "gradient")
          + (", unscaled" if style == "--" else ""),
        )
    curves.axhline(math.log(SYMBOLS), ls=":", c="0.5")
    curves.axhline(FLOOR, ls=":", c="0.5")
    curves.set(title=f"{DEPTH} layers, learning", xlabel="step", ylabel="loss, nats a symbol")
    layers.set(title="its gradient at the start", xlabel="layer", ylabel="length", ylim=(0, None))
    widths.set(
      title="attention, by the width of a head",
      xlabel="d_k",
      ylabel="share of that at d_k = 4, scaled",
      ylim=(0, 2.1),
    )
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    widths.legend(loc="upper right")

  lab.picture(draw, width=8)
  unscaled, scaled = (
    soft[dot_product][WIDTHS.index(256)],
    soft[scaled_dot_product][WIDTHS.index(256)],
  )
  steady = [x["scores"] for x in soft[scaled_dot_product]]
  return lab.verdict(
    {
      "norms before the sublayers: every seed learns, without warm-up": learned["pre-norm"]
      == seeds,
      "norms after them: every seed learns with warm-up": learned["post-norm, warm-up"] == seeds,
      "control: and none without": learned["post-norm"] == 0,
      "control: without residuals none learns": learned["no residuals, warm-up"] == 0,
      "the gradient at the start is larger in the last layer than in the first with the norms after, smaller with them before": gradient[
        "post-norm"
      ][-1]
      > gradient["post-norm"][0]
      and gradient["pre-norm"][-1] < gradient["pre-norm"][0],
      "of unscaled scores with d_k = 256 the median query gets less than a fifth of the gradient": unscaled[
        "scores"
      ]
      < scaled["scores"] / 5,
      "control: of scaled ones it gets the same at any width": max(steady) < 1.2 * min(steady),
    }
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
