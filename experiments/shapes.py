"""`python experiments/shapes.py DATA...` gives GPT-2s of several shapes and vocabularies the same compute and tells which then predicts the held-out text best."""

import argparse
import csv
import math
import sys
from pathlib import Path
from typing import NamedTuple

import train
from experiments import common
from tinyformer import cli
from tinyformer.device import select_device


class Shape(NamedTuple):
  vocab: int
  layers: int
  heads: int
  dim: int
  lr: float

  def __str__(self) -> str:
    return f"{self.vocab}-{self.layers}x{self.dim}"

  @property
  def weights(self) -> int:
    """Of its products: every matrix but the positions."""
    return 12 * self.layers * self.dim**2 + self.vocab * self.dim

  def flops(self, context: int) -> float:
    """Of a token that is learned: 6 for each weight of a product (Kaplan et al. 2020, sec. 2.1), and attention, of which the causal mask leaves half."""
    return 6 * self.weights + 6 * self.layers * self.dim * context


SHAPES = [
  Shape(2048, 4, 4, 128, 2e-3),
  Shape(2048, 6, 4, 192, 2e-3),
  Shape(4096, 4, 4, 192, 2e-3),
  Shape(4096, 6, 4, 192, 2e-3),
  Shape(8192, 4, 4, 192, 2e-3),
  Shape(4096, 6, 4, 256, 1.5e-3),
]


def shape(text: str) -> Shape:
  """VOCAB:LAYERS:HEADS:DIM:LR."""
  try:
    vocab, layers, heads, dim, lr = text.split(":")
  except ValueError as e:
    raise argparse.ArgumentTypeError(f"{text!r} is not VOCAB:LAYERS:HEADS:DIM:LR") from e
  whole = cli.number(int, 1)
  return Shape(whole(vocab), whole(layers), whole(heads), whole(dim), cli.number(float, 0)(lr))


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="experiments/shapes.py",
    description="Give GPT-2s of several shapes the same compute and tell which predicts best.",
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  p.add_argument("data", type=Path, nargs="+", help="what train.py takes")
  p.add_argument(
    "--shape",
    type=shape,
    action="append",
    metavar="VOCAB:LAYERS:HEADS:DIM:LR",
    help="one to compare; more than once for more (default: six around weights/tiny's)",
  )
  p.add_argument(
    "--flops",
    type=cli.number(float, 1),
    default=2e13,
    help="that each may take: 2e13 are some minutes on two cores",
  )
  p.add_argument("--context", type=cli.number(int, 1), default=256)
  p.add_argument("--batch", type=cli.number(int, 1), default=8)
  p.add_argument(
    "--max-tokens-per-document",
    type=cli.number(int, 100),
    default=8000,
    metavar="CHARACTERS",
    help="of each held-out document that are predicted",
  )
  p.add_argument("--seed", type=cli.number(int, 0), default=1337)
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    default=Path("runs/shapes"),
    help="the folder to write, a model in each of its own, and to go on from",
  )
  p.add_argument("--device", help="tinygrad's device, such as CPU, METAL or CUDA")
  return p.parse_args(argv)


def bits(folder: Path, documents: list[str]) -> float:
  """A byte of the documents, by the model of a folder."""
  import evaluate
  from tinyformer import checkpoints
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

  model = checkpoints.load_module(folder)
  ids, texts = evaluate.begun(BytePairEncoding.load(folder), documents)
  return (
    sum(losses.sum() for _, losses in evaluate.nats(model, ids, max(1, model.context // 2)))
    / math.log(2)
    / sum(len(t.encode()) for t in texts)
  )


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  select_device(args.device)
  from tinyformer.training.documents import train_val_split, read_documents

  held = [
    d[: args.max_tokens_per_document]
    for d in train_val_split(read_documents(args.data), args.seed)[1]
  ]
  rows, vocabularies = list[tuple[float, list]](), dict[int, Path]()
  for s in args.shape or SHAPES:
    out, each = args.out / str(s), args.batch * args.context
    steps = max(1, round(args.flops / s.flops(args.context) / each))
    more: list = [
      "--resume",
      "--heads",
      s.heads,
      "--lr",
      s.lr,
    ]  # which the name of its folder does not tell
    if not (out / "training.safetensors").exists():
      more = [
        "--layers",
        s.layers,
        "--heads",
        s.heads,
        "--dim",
        s.dim,
        "--lr",
        s.lr,
        "--context",
        args.context,
        "--batch",
        args.batch,
        "--steps",
        steps,
        "--seed",
        args.seed,
        "--warmup",
        min(200, steps // 10),
        "--eval-interval",
        -(-steps // 4),
        "--sample",
        0,
        *(["--tokens", vocabularies[s.vocab]] if s.vocab in vocabularies else ["--vocab", s.vocab]),
      ]
    cli.note(f"{s}: {steps:,} steps of {each:,} tokens")
    if status := train.main(
      [
        *map(str, args.data),
        "-o",
        str(out),
        *map(str, more),
        *(["--device", args.device] if args.device else []),
      ]
    ):
      return status
    vocabularies.setdefault(s.vocab, out)
    log = list(csv.DictReader((out / "log.csv").open()))
    if log[-1]["step"] != str(steps):
      raise cli.Usage(
        f"{out} holds a run of {log[-1]['step']} steps, not {steps}: name another folder with -o"
      )
    value = bits(out, held)
    rows.append(
      (
        value,
        [
          f"{s.vocab:,}",
          s.layers,
          s.heads,
          s.dim,
          f"{s.weights / 1e6:.2f} M",
          f"{steps * each / 1e6:.1f} M",
          f"{sum(float(r['seconds']) for r in log) / 60:.0f}",
          f"{value:.4f}",
        ],
      )
    )
  print(
    f"{args.flops:.1e} FLOPs each, {len(held):,} held-out documents, the first {args.max_tokens_per_document:,} characters of each\n"
  )
  common.table(
    [
      "vocabulary",
      "layers",
      "heads",
      "width",
      "weights of products",
      "tokens learned",
      "minutes",
      "bits a byte",
    ],
    [row for _, row in sorted(rows, key=lambda r: r[0])],
  )
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
