"""One layer knows the sums it was shown at once and learns to add long after, by a few waves; without weight decay it never does."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, nn

from experiments import common
from tinyformer import cli
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.linear import PackedLinear
from transformer import Block, FeedForward, MultiHeadAttention, loss, pre_norm, materialize


class Adder:
  """Tokens a, b, = to logits for a + b mod p, through one layer without norms (Nanda et al. 2023, sec. 3)."""

  def __init__(self, p: int, dim: int = 64, heads: int = 4, ff_dim: int = 256):
    self.tokens, self.positions = nn.Embedding(p + 1, dim), Tensor.normal(3, dim, std=dim**-0.5)
    self.tokens.weight = Tensor.normal(p + 1, dim, std=dim**-0.5)
    self.block = Block(
      MultiHeadAttention(dim, heads, PackedLinear),
      FeedForward(dim, ff_dim, linear=PackedLinear),
      lambda: lambda x: x,
      pre_norm,
    )
    self.head = PackedLinear(dim, p, bias=False)

  def __call__(self, ids: Tensor) -> Tensor:
    """(B, 3) -> (B, 1, p)."""
    x = materialize(self.tokens(ids) + self.positions)
    return self.head(
      self.block(x[:, 2:], cache=lambda k, v: self.block.attn.keys_values(x))
    )  # the sum is read at = alone, so = alone asks


def pairs(p: int) -> tuple[np.ndarray, np.ndarray]:
  """All there are: a, b, = as ids (p p, 3), and a + b mod p (p p, 1)."""
  a, b = np.divmod(np.arange(p * p), p)
  return np.stack([a, b, np.full(p * p, p)], 1).astype(np.int32), ((a + b) % p).astype(np.int32)[
    :, None
  ]


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Indices by lot: a share of them to learn, the others held out."""
  order = np.random.default_rng(seed).permutation(count)
  return np.sort(order[: int(share * count)]), np.sort(order[int(share * count) :])


def shares(embedding: np.ndarray) -> np.ndarray:
  """(p, D), a row for each residue, p odd -> ((p + 1) / 2): what share of the squared norm each frequency over the residues has, 0 their mean. They sum to 1."""
  power = (np.abs(np.fft.rfft(embedding.astype(np.float64), axis=0)) ** 2).sum(1)
  power[1:] *= 2  # each stands for its negative too
  return power / power.sum()


def waves(embedding: np.ndarray, frequencies: Sequence[int]) -> np.ndarray:
  """(p, D) -> (p, D): the part of it that these frequencies are."""
  spectrum = np.fft.rfft(embedding.astype(np.float64), axis=0)
  spectrum[[k for k in range(len(spectrum)) if k not in frequencies]] = 0
  return np.fft.irfft(spectrum, len(embedding), axis=0).astype(np.float32)


def nats(logits: np.ndarray, right: np.ndarray) -> float:
  """Mean cross-entropy of logits (N, p) against ids (N, 1)."""
  x = logits.astype(np.float64) - logits.max(1, keepdims=True)
  return float((np.log(np.exp(x).sum(1)) - np.take_along_axis(x, right, 1)[:, 0]).mean())


def mechanism(
  model: Adder, look: CompiledStep, ids: np.ndarray, sums: np.ndarray, count: int = 6
) -> dict[str, Any]:
  """The `count` strongest frequencies of the embedding, and the loss over all pairs with it whole, with these and the mean alone, and without these."""
  whole = model.tokens.weight.numpy().copy()
  strength = shares(whole[:-1])
  keys = sorted((np.argsort(-strength[1:])[:count] + 1).tolist())

  def with_embedding(residues: np.ndarray) -> float:
    model.tokens.weight.assign(Tensor(np.concatenate([residues, whole[-1:]]))).realize()
    return nats(look(ids)[:, 0], sums)

  found = {
    "shares": strength.tolist(),
    "keys": keys,
    "held": float(strength[keys].sum()),
    "whole": with_embedding(whole[:-1]),
    "restricted": with_embedding(waves(whole[:-1], [0, *keys])),
    "excluded": with_embedding(whole[:-1] - waves(whole[:-1], keys)),
  }
  with_embedding(whole[:-1])
  return found


def main(argv: list[str] | None = None) -> int:
  parser = common.parser("grokking", __doc__)
  parser.add_argument(
    "--prime",
    type=int,
    choices=[59, 97, 113],
    default=59,
    help="a step costs as much more as there are pairs: 2.7 times with 97, 3.7 times with 113",
  )
  parser.add_argument(
    "--share",
    type=cli.number(float, 0.05, 0.95),
    help="of the pairs that it learns from (default: 0.4, with --quick 0.5)",
  )
  parser.add_argument(
    "--decay", type=cli.number(float, 0), help="weight decay (default: 1, with --quick 2)"
  )
  parser.add_argument("--steps", type=cli.number(int, 10), help="(default: 5000, with --quick 800)")
  args = parser.parse_args(argv)

  def chosen(given, usual, quick):
    return given if given is not None else quick if args.quick else usual

  share, decay, steps = (
    chosen(args.share, 0.4, 0.5),
    chosen(args.decay, 1.0, 2.0),
    chosen(args.steps, 5000, 800),
  )
  lab = common.Lab("grokking", args)
  ids, sums = pairs(args.prime)
  learn, held = split(len(ids), share, lab.seed)

  def run(name: str, decay: float) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
      teacher = common.Teacher(
        lambda: Adder(args.prime),
        lambda model, ids, sums: loss(model(ids), sums, smoothing=0),
        weight_decay=decay,
        b2=0.98,
      )
      look = CompiledStep(lambda ids: teacher.model(ids).realize())

      def accuracy() -> list[float]:
        right = look(ids)[:, 0].argmax(1) == sums[:, 0]
        return [right[learn].mean(), right[held].mean()]

      rows = teacher.teach(
        lab,
        name,
        lab.seed,
        steps,
        lambda step: 3e-3 * min(1, (step + 1) / 10),
        lambda _: (ids[learn], sums[learn]),
        10,
        accuracy,
      )
      return {"curve": rows} | mechanism(teacher.model, look, ids, sums)

    return lab.once(name, compute)

  runs = {"decay": run("decay", decay), "no decay": run("no decay", 0)}

  def first(name: str, column: int, level: float) -> int | None:
    return next((row[0] for row in runs[name]["curve"] if row[column] >= level), None)

  print(f"p = {args.prime}: {len(learn):,} of {len(ids):,} pairs learned, {steps:,} steps\n")
  common.table(
    [
      "",
      "99% of the learned pairs at step",
      "99% of the held-out ones at step",
      "held out at the end",
      "share of the 6 strongest frequencies",
      "loss",
      "with these alone",
      "without these",
    ],
    [
      [
        name,
        first(name, 2, 0.99),
        first(name, 3, 0.99) or "never",
        f"{r['curve'][-1][3]:.1%}",
        f"{r['held']:.1%}",
        *(f"{r[k]:.2g}" for k in ("whole", "restricted", "excluded")),
      ]
      for name, r in runs.items()
    ],
  )
  print(f"\nthe frequencies: {', '.join(map(str, runs['decay']['keys']))}")

  def draw(figure) -> None:
    curve, spectrum = figure.subplots(1, 2, width_ratios=[3, 2])
    for (name, r), colour in zip(runs.items(), ("#0072b2", "#d55e00")):
      steps, _, learned, held = zip(*r["curve"])
      curve.semilogx(steps, learned, "--", color=colour, label=f"{name}: learned")
      curve.semilogx(steps, held, color=colour, label=f"{name}: held out")
    curve.set(xlabel="step", ylabel="accuracy", title=f"a + b mod {args.prime}")
    curve.legend(loc="upper left", fontsize=6.5, handlelength=1.5)
    spectrum.bar(range(len(runs["decay"]["shares"])), runs["decay"]["shares"])
    spectrum.set(
      xlabel="frequency over the residues",
      ylabel="share of the squared norm",
      title="embedding, with weight decay",
    )

  lab.picture(draw)
  known, added, good, bad = (
    first("decay", 2, 0.99),
    first("decay", 3, 0.99),
    runs["decay"],
    runs["no decay"],
  )
  return lab.verdict(
    {
      "the learned pairs are known in less than half of the steps that adding takes": bool(
        known and added and 2 * known < added
      ),
      "six frequencies hold over 90% of the embedding's squared norm": good["held"] > 0.9,
      "with these alone the loss is near zero, below 0.05, and without them above log p": good[
        "restricted"
      ]
      < 0.05
      and good["excluded"] > np.log(args.prime),
      "control: without weight decay the held-out pairs stay below 60%, with the learned ones known": bool(
        first("no decay", 2, 0.99)
      )
      and bad["curve"][-1][3] < 0.6,
      "control: there, no six frequencies hold 60%": bad["held"] < 0.6,
    }
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
