"""Command-line arguments of train.py."""

import argparse
from pathlib import Path

from tinyformer import cli


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
  """Parse the command line. `given` lists the arguments that differ from their defaults."""
  p = argparse.ArgumentParser(
    prog="train.py",
    description="Train a GPT-2 on text files, from scratch or from a checkpoint.",
    formatter_class=cli.HelpFormatter,
  )
  p.add_argument(
    "data",
    type=Path,
    nargs="+",
    help="text files (also .gz, .xz) or folders of them; <|endoftext|> separates documents",
  )
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    default=Path("weights/mine"),
    help="output folder of the best model; the latest model is saved in its subfolder last/",
  )
  p.add_argument(
    "--init",
    metavar="MODEL",
    help="start from this GPT-2, with its sizes and vocabulary: gpt2, owner/repo, or a folder",
  )
  p.add_argument(
    "--tokens",
    default="bpe",
    help="vocabulary: bpe learns one from the text, characters uses the text's characters, and the "
    "name of a model, such as gpt2, uses its vocabulary",
  )
  number = cli.number
  p.add_argument(
    "--vocab",
    type=number(int, 257, 1_000_000),
    default=2048,
    help="vocabulary size for --tokens bpe",
  )
  p.add_argument("--layers", type=number(int, 1, 1000), default=4, help="number of blocks")
  p.add_argument("--heads", type=number(int, 1, 1000), default=4, help="attention heads per block")
  p.add_argument("--dim", type=number(int, 1, 65_536), default=128, help="model width")
  p.add_argument(
    "--context",
    type=number(int, 1, 1_000_000),
    default=256,
    help="context length in tokens; with --init, at most that of the checkpoint",
  )
  p.add_argument(
    "--batch",
    type=number(int, 1, 100_000),
    default=8,
    help="sequences of --context tokens per batch",
  )
  p.add_argument(
    "--grad-accum-steps",
    type=number(int, 1, 100_000),
    default=1,
    help="micro-batches of --batch sequences per step; their gradients are averaged",
  )
  p.add_argument(
    "--steps", type=number(int, 1, cli.MAX_COUNT), default=2000, help="number of training steps"
  )
  p.add_argument("--lr", type=number(float, 0, 1000), default=1e-3, help="maximum learning rate")
  p.add_argument(
    "--warmup",
    type=number(int, 0, cli.MAX_COUNT),
    default=100,
    help="steps of linear warmup, followed by cosine decay to a tenth",
  )
  p.add_argument(
    "--weight-decay",
    type=number(float, 0, 1000),
    default=0.1,
    help="weight decay of matrices; norms and biases have none",
  )
  p.add_argument("--clip", type=number(float, 1e-9, 1e9), default=1.0, help="maximum gradient norm")
  p.add_argument("--dropout", type=number(float, 0, 1), default=0.0, help="dropout probability")
  p.add_argument(
    "--smoothing",
    type=number(float, 0, 1),
    default=0.0,
    help="label smoothing of the train loss; the validation loss is not smoothed",
  )
  p.add_argument(
    "--val-fraction",
    type=number(float, 1e-9, 0.5),
    default=0.05,
    metavar="FRACTION",
    help="fraction of the text for validation: whole documents, or the end of a single document",
  )
  p.add_argument(
    "--seed",
    type=number(int, 0, cli.MAX_SEED),
    default=1337,
    help="seed of the initial weights, the batches and the train/validation split",
  )
  p.add_argument(
    "--eval-interval",
    type=number(int, 1, cli.MAX_COUNT),
    default=250,
    metavar="N",
    help="evaluate and save a checkpoint every N steps",
  )
  p.add_argument(
    "--sample",
    type=number(int, 0, 10_000),
    default=60,
    metavar="N",
    help="generate a sample of N tokens at each evaluation; 0 generates none",
  )
  p.add_argument(
    "--precision",
    choices=["float32", "bfloat16", "float16"],
    default="float32",
    help="precision of matrix products; all other operations use float32 (bfloat16 is for GPUs)",
  )
  p.add_argument(
    "--dtype",
    choices=["float32", "float16"],
    default="float32",
    help="data type of the saved weights",
  )
  p.add_argument(
    "--resume",
    action="store_true",
    help="continue from the folder's last checkpoint with its settings; --eval-interval, --sample "
    "and --dtype may change",
  )
  p.add_argument(
    "--device", help="NUMPY for minigrad, or a tinygrad device such as CPU, METAL or CUDA"
  )
  p.add_argument(
    "--devices",
    type=number(int, 1, 1000),
    default=1,
    help="number of --device devices across which each batch is split",
  )
  p.add_argument("--offline", action="store_true", help="contact no server")
  args = p.parse_args(argv)
  unset = argparse.Namespace(**dict.fromkeys(vars(args)))
  parsed = vars(p.parse_args(argv, unset))
  args.given = [name for name, value in parsed.items() if value is not None]
  return args


def set_sizes(args: argparse.Namespace, source: str, **sizes: int) -> None:
  """Set arguments to the sizes of `source`. Raises UsageError if other values were given."""
  for name, size in sizes.items():
    if name in args.given and getattr(args, name) != size:
      raise cli.UsageError(f"{source} has --{name} {size}, not {getattr(args, name)}")
    setattr(args, name, size)
