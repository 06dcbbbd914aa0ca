"""The paper's encoder-decoder reverses sequences that it never saw; a decoder alone learns the half that can be known, and no other.

Sequences of ten symbols by lot. Exact: every symbol right, written one after the other, each the likeliest. The controls: without the causal mask the
loss falls as well, and most of what it writes is wrong; without positions a sequence is a bag. The decoder alone reads a sequence and its reversal as one text.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import Tensor

from experiments import common, small
from experiments.small import START, SYMBOLS, losses, palindromes, reversal
from tinyformer import cli
from tinyformer.kernels.compiled_step import CompiledStep
from transformer import (
  Decoder,
  Transformer,
  causal_mask,
  learning_rate,
  loss,
  sinusoids,
  materialize,
)

DIM, HEADS = 32, 4


class Leaky(Decoder):
  """A control: no causal mask, so that the input holds what is asked for."""

  def __call__(self, y: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
    for block in self.blocks:
      y = block(y, memory, None, memory_mask)
    return y


class Unplaced(Transformer):
  """A control: no positions."""

  def embed(self, ids: Tensor) -> Tensor:
    return materialize(self.tokens(ids) * math.sqrt(self.dim))


def paper(layers: int, kind: type[Transformer] = Transformer) -> Transformer:
  return kind(SYMBOLS + 1, DIM, HEADS, 4 * DIM, layers, dropout=0)


def leaky(layers: int) -> Transformer:
  model = paper(layers)
  model.decoder = Leaky(layers, DIM, HEADS, 4 * DIM, dropout=0)
  return model


PAIRS: dict[str, Callable[[int], Transformer]] = {
  "encoder-decoder": paper,
  "no causal mask": leaky,
  "no positions": lambda layers: paper(layers, Unplaced),
}
ALONE: dict[str, Callable] = {"decoder alone": causal_mask, "alone, no mask": lambda T, S: None}


def exact(model: Callable, source: np.ndarray) -> int:
  """How many of the sources (B, S) it reverses without a fault: greedy, each symbol from those that it wrote before."""
  write = CompiledStep(lambda source, target: model(source, target).argmax(-1).realize())
  target = np.full((len(source), source.shape[1] + 1), START, np.int32)
  for t in range(source.shape[1]):
    target[:, t + 1] = write(source, target[:, :-1].copy())[:, t]
  return int((target[:, 1:] == source[:, ::-1]).all(1).sum())


def main(argv: list[str] | None = None) -> int:
  lab = common.Lab("reverse", common.parser("reverse", __doc__).parse_args(argv))
  length, layers, steps, seeds, fresh = (6, 1, 250, 1, 500) if lab.quick else (10, 2, 600, 3, 1000)

  def read(model: small.Decoder, ids: Tensor) -> Tensor:
    return model(ids, sinusoids(2 * length, DIM))

  def teach(
    teacher: common.Teacher, run: str, seed: int, batch: Callable[..., Any]
  ) -> dict[str, Any]:
    def rate(step: int) -> float:
      return learning_rate(step + 1, DIM, steps // 4)

    return {
      "curve": teacher.teach(
        lab, run, seed, steps, rate, lambda step: batch(length, seed, step), steps // 20
      )
    }

  def pair(teacher: common.Teacher, run: str, seed: int) -> dict[str, Any]:
    return teach(teacher, run, seed, reversal) | {
      "exact": exact(teacher.model, reversal(length, seed, steps, count=fresh)[0])
    }

  def alone(teacher: common.Teacher, run: str, seed: int) -> dict[str, Any]:
    measure = losses(functools.partial(read, teacher.model))
    return teach(teacher, run, seed, palindromes) | {
      "places": measure(*palindromes(length, seed, steps, count=fresh)).mean(0).tolist()
    }

  runs: dict[str, list[dict[str, Any]]] = {}
  for name in [*PAIRS, *ALONE]:
    if name in PAIRS:
      run, teacher = (
        pair,
        common.Teacher(
          lambda: PAIRS[name](layers),
          lambda model, *batch: loss(model(*batch[:2]), batch[2], smoothing=0),
          b2=0.98,
        ),
      )
    else:
      run, teacher = (
        alone,
        common.Teacher(
          lambda: small.Decoder(SYMBOLS + 1, DIM, HEADS, layers, mask=ALONE[name]),
          lambda model, x, y: loss(read(model, x), y, smoothing=0),
          b2=0.98,
        ),
      )
    chosen = range(
      lab.seed, lab.seed + (seeds if name in ("encoder-decoder", "decoder alone") else 1)
    )
    runs[name] = [
      lab.once(told := f"{name}, seed {seed}", lambda: run(teacher, told, seed)) for seed in chosen
    ]

  last = {name: [r["curve"][-1][1] for r in runs[name]] for name in runs}
  right = {name: (sum(r["exact"] for r in runs[name]), fresh * len(runs[name])) for name in PAIRS}
  places = {name: np.mean([r["places"] for r in runs[name]], 0) for name in ALONE}
  halves = {name: (places[name][:length].mean(), places[name][length:].mean()) for name in ALONE}
  common.table(
    ["", "loss at the end", "exact", "95% interval"],
    [
      [
        name,
        f"{np.mean(last[name]):.4f}",
        f"{r:,} of {n:,}",
        "{:.1%} to {:.1%}".format(*common.wilson(r, n)),
      ]
      for name, (r, n) in right.items()
    ],
  )
  common.table(
    ["nats a symbol", "of the sequence", "of its reversal"],
    [[name, *(f"{x:.3f}" for x in halves[name])] for name in ALONE],
  )

  def draw(figure) -> None:
    left, middle = figure.subplots(1, 2)
    for name in PAIRS:
      left.semilogy(
        *np.array(runs[name][0]["curve"]).T[:2],
        label=f"{name}: {right[name][0] / right[name][1]:.1%} exact",
      )
    left.set(title="sequence to its reversal", xlabel="step", ylabel="loss, nats a symbol")
    for name in ALONE:
      middle.plot(range(1, 2 * length + 1), places[name], ".-", label=name)
    middle.axhline(math.log(SYMBOLS), ls=":", c="0.5", label=f"ln {SYMBOLS}: nothing known")
    middle.axvline(length + 0.5, ls=":", c="0.8")
    middle.set(
      title="sequence and reversal as one text", xlabel="place", ylabel="loss, nats a symbol"
    )
    left.legend(), middle.legend()

  lab.picture(draw)
  first, second = halves["decoder alone"]
  lowest = min(row[1] for row in runs["no causal mask"][0]["curve"])
  return lab.verdict(
    {
      "the encoder-decoder reverses more than 95% of fresh sequences": common.wilson(
        *right["encoder-decoder"]
      )[0]
      > 0.95,
      "control: without the causal mask its loss falls below 0.05, and most of what it writes is wrong": lowest
      < 0.05
      and common.wilson(*right["no causal mask"])[1] < 0.5,
      "control: without positions it reverses less than a tenth": common.wilson(
        *right["no positions"]
      )[1]
      < 0.1,
      f"a decoder alone learns the reversal, and of the sequence nothing: no less than ln {SYMBOLS}": second
      < 0.1
      and -0.02 < first - math.log(SYMBOLS) < 0.15,
      "control: without the mask it is told the sequence too": halves["alone, no mask"][0] < 0.1,
    }
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
