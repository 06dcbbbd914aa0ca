"""A small decoder learns with any similarity to which the query matters, dot products soonest; with one to which it does not, it cannot.

The text is a sequence of symbols by lot and its reversal: each place of the reversal has to find the one place that it repeats. The cosine lies between
-1 and 1, so that no key can have much more than another; additive scores are the same for every query once the softmax has taken out its part.
"""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import nn

from experiments import common
from experiments.small import SYMBOLS, Decoder, losses, palindromes
from layers.similarity import Additive, Bahdanau, General, cosine
from tinyformer import cli
from transformer import dot_product, loss, scaled_dot_product, sinusoids

DIM, HEADS, LENGTH = 32, 4, 8
K = DIM // HEADS
SIMILARITIES: dict[str, Callable] = {
  "scaled dot product": lambda: scaled_dot_product,
  "dot product": lambda: dot_product,
  "general": lambda: General(K, K),
  "cosine": lambda: cosine,
  "Bahdanau": lambda: Bahdanau(K, K, K),
  "additive": lambda: Additive(K, K),
}


def main(argv: list[str] | None = None) -> int:
  lab = common.Lab("similarities", common.parser("similarities", __doc__).parse_args(argv))
  steps, seeds = (250, 1) if lab.quick else (500, 3)

  def rate(step: int) -> float:
    return 3e-3 * min(1, (step + 1) / 50)

  def compute(teacher: common.Teacher, run: str, seed: int) -> dict[str, Any]:
    curve = teacher.teach(
      lab, run, seed, steps, rate, lambda step: palindromes(LENGTH, seed, step), steps // 25
    )
    places = losses(lambda x: teacher.model(x, sinusoids(2 * LENGTH, DIM)))(
      *palindromes(LENGTH, seed, steps, count=500)
    )
    spent = []
    for _ in range(30):  # the model is measured already: these steps are for the clock
      begun = time.perf_counter()
      teacher.learner.train_step(0.0, *palindromes(LENGTH, seed, steps))
      spent.append(time.perf_counter() - begun)
    return {
      "curve": curve,
      "loss": float(places[:, LENGTH:].mean()),
      "seconds": min(spent),
      "parameters": sum(t.numel() for t in nn.state.get_parameters(teacher.model)),
    }

  runs: dict[str, list[dict[str, Any]]] = {}
  for name, similarity in SIMILARITIES.items():
    teacher = common.Teacher(
      lambda: Decoder(SYMBOLS + 1, DIM, HEADS, 1, similarity=similarity),
      lambda model, x, y: loss(model(x, sinusoids(2 * LENGTH, DIM)), y, smoothing=0),
    )
    runs[name] = [
      lab.once(run := f"{name}, seed {seed}", lambda: compute(teacher, run, seed))
      for seed in range(lab.seed, lab.seed + seeds)
    ]

  found = {name: [r["loss"] for r in runs[name]] for name in runs}
  common.table(
    ["similarity", "nats a symbol of the reversal", "from – to", "ms a step", "parameters"],
    [
      [
        name,
        f"{np.mean(found[name]):.3f}",
        f"{min(found[name]):.3f} – {max(found[name]):.3f}",
        f"{1000 * min(r['seconds'] for r in runs[name]):.1f}",
        f"{runs[name][0]['parameters']:,}",
      ]
      for name in runs
    ],
  )

  def draw(figure) -> None:
    axes = figure.add_subplot(
      xlabel="step",
      ylabel="loss, nats a symbol",
      title="a sequence and its reversal as one text, learned with each similarity",
    )
    for name in runs:
      axes.plot(*np.mean([np.array(r["curve"], float) for r in runs[name]], 0).T[:2], label=name)
    axes.axhline(math.log(SYMBOLS) / 2, ls=":", c="0.5", label="what must remain: the sequence")
    axes.legend()

  lab.picture(draw)
  return lab.verdict(
    {
      "with scaled dot products it learns the reversal: below 0.1 nats a symbol": max(
        found["scaled dot product"]
      )
      < 0.1,
      "control: additive scores, to which the query makes no difference after the softmax, do not: above 1 nat": min(
        found["additive"]
      )
      > 1,
    }
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
