"""Trained on 32 places, a decoder goes on to 128 with ALiBi; T5's biases lose a little; sinusoids, learned rows and rotations are lost at once.

As Press et al. (2022) have it, on a text made by lot whose next symbol depends on the last two, so that nobody foretells it better than to 0.87 nats a
symbol. The table of learned rows has 128, of which training reaches 32: the others are as they were drawn. The control has no positions.
"""

import math
import sys
from typing import Any

import numpy as np
from tinygrad import Tensor

from experiments import common
from experiments.small import FLOOR, SYMBOLS, Decoder, losses, markov
from layers.positions import RelativeBias, alibi, rope_inv_freq, rope_cos_sin, apply_rope_half
from tinyformer import cli
from transformer import loss, sinusoids

DIM, HEADS, LAYERS = 32, 4, 2
SCHEMES = ["none", "sinusoidal", "learned", "rotary", "ALiBi", "relative"]


class Placed(Decoder):
  """One model for all schemes, each of which is numbers that come with the batch: one traced step then serves them all."""

  def __init__(self, length: int, most: int):
    super().__init__(SYMBOLS + 1, DIM, HEADS, LAYERS)
    self.learned, self.relative = (
      Tensor.normal(most, DIM),
      RelativeBias(HEADS, bidirectional=False, buckets=16, max_distance=length),
    )

  def places(
    self, ids: Tensor, share: Tensor, added: Tensor, cos: Tensor, sin: Tensor, bias: Tensor
  ) -> Tensor:
    """share (2): 1 where the learned rows, where T5's biases count.  added (T, D); cos, sin (T, K/2); bias (H, T, T): as layers/positions.py gives them."""
    T = ids.shape[1]
    return self(
      ids,
      added + share[0] * self.learned[:T],
      lambda x: apply_rope_half(x, cos, sin),
      bias + share[1] * self.relative(T, T),
    )


def numbers(scheme: str, T: int) -> tuple[np.ndarray, ...]:
  """What `places` takes of a scheme, for T places."""
  cos, sin = (t.numpy() for t in rope_cos_sin(0, T, rope_inv_freq(DIM // HEADS)))
  added, bias = sinusoids(T, DIM).numpy(), alibi(T, T, HEADS).numpy()
  turned = scheme == "rotary"
  return (
    np.array([scheme == "learned", scheme == "relative"], np.float32),
    added * np.float32(scheme == "sinusoidal"),
    cos if turned else np.ones_like(cos),
    sin if turned else np.zeros_like(sin),
    bias * np.float32(scheme == "ALiBi"),
  )


def main(argv: list[str] | None = None) -> int:
  lab = common.Lab("positions", common.parser("positions", __doc__).parse_args(argv))
  length, steps, seeds = 32, 600, 1 if lab.quick else 3
  most = 4 * length
  teacher = common.Teacher(
    lambda: Placed(length, most),
    lambda model, *batch: loss(model.places(*batch[:-1]), batch[-1], smoothing=0),
    weight_decay=0,
  )
  measure = losses(lambda *batch: teacher.model.places(*batch))

  def rate(step: int) -> float:
    return 3e-3 * min(1, (step + 1) / 50, 2 * (1 - step / steps))

  def compute(scheme: str, run: str, seed: int) -> dict[str, Any]:
    learned, tested = numbers(scheme, length), numbers(scheme, most)

    def batch(step: int) -> tuple[np.ndarray, ...]:
      x, y = markov(length, seed, step)
      return x, *learned, y

    curve = teacher.teach(lab, run, seed, steps, rate, batch, steps // 20)
    x, y = markov(most, seed, steps, count=200)
    return {"curve": curve, "places": measure(x, *tested, y).mean(0).tolist()}

  runs = {
    scheme: [
      lab.once(run := f"{scheme}, seed {seed}", lambda: compute(scheme, run, seed))
      for seed in range(lab.seed, lab.seed + seeds)
    ]
    for scheme in SCHEMES
  }

  spans = {
    f"{length // 2 + 1} to {length}, learned": slice(length // 2, length),
    f"to {2 * length}": slice(length, 2 * length),
    f"to {most}": slice(2 * length, most),
  }
  excess = {
    scheme: [[np.mean(r["places"][span]) - FLOOR for r in runs[scheme]] for span in spans.values()]
    for scheme in SCHEMES
  }  # scheme, span, seed
  common.table(
    ["nats above the least, places", *spans],
    [
      [scheme, *(f"{np.mean(e):.2f} ({min(e):.2f} – {max(e):.2f})" for e in excess[scheme])]
      for scheme in SCHEMES
    ],
  )

  def draw(figure) -> None:
    axes = figure.add_subplot(
      xlabel=f"place in the text; lengths up to {length} were learned",
      ylabel="loss, nats a symbol",
      xticks=[1, length, 2 * length, most],
    )
    for scheme in SCHEMES:
      curve = (
        np.mean([r["places"] for r in runs[scheme]], 0)[4:].reshape(-1, 4).mean(1)
      )  # four places together; the first four know little
      axes.plot(np.arange(len(curve)) * 4 + 6.5, curve, label=scheme)
    axes.axhline(math.log(SYMBOLS), ls=":", c="0.5")
    axes.axhline(FLOOR, ls=":", c="0.5")
    axes.axvline(length, ls=":", c="0.8")
    axes.annotate("nothing known", (most, math.log(SYMBOLS)), ha="right", va="bottom")
    axes.annotate("nothing left to know", (most, FLOOR), ha="right", va="top")
    axes.legend(ncols=3, loc=(0.5, 0.64))

  lab.picture(draw)
  worst, best = (
    {scheme: [choose(e) for e in excess[scheme]] for scheme in SCHEMES} for choose in (max, min)
  )
  return lab.verdict(
    {
      f"with ALiBi a text is foretold as well up to place {most} as up to {length}: less than 0.15 nats more": max(
        worst["ALiBi"]
      )
      < best["ALiBi"][0] + 0.15,
      "with T5's biases not much worse: less than 0.6 nats more": max(worst["relative"])
      < best["relative"][0] + 0.6,
      "with sinusoids, learned rows and rotations much is lost at once: more than 0.8 nats": all(
        min(best[s][1:]) > worst[s][0] + 0.8 for s in ("sinusoidal", "learned", "rotary")
      ),
      "control: without positions it learns less well than with any of them, at the lengths that it learned": best[
        "none"
      ][0]
      > max(worst[s][0] for s in SCHEMES[1:]) + 0.1,
    }
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
