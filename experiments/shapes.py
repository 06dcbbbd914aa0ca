"""Train GPT-2 models of several shapes with equal compute and compare their bits per byte.

`python experiments/shapes.py DATA...` evaluates each model on the validation documents. `--ray`
trains the models on a Ray cluster.
"""

import argparse
import csv
import math
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import train
from experiments import common
from tinyformer import cli
from tinyformer.cli import ray_cluster


class Shape(NamedTuple):
  """The sizes and the peak learning rate of a model."""

  vocab_size: int
  num_layers: int
  heads: int
  dim: int
  learning_rate: float

  def __str__(self) -> str:
    return f"{self.vocab_size}-{self.num_layers}x{self.dim}"

  @property
  def matmul_parameters(self) -> int:
    """The number of parameters in matrices, without the positions."""
    return 12 * self.num_layers * self.dim**2 + self.vocab_size * self.dim

  def flops_per_token(self, context: int) -> float:
    """Return the FLOPs of training on one token.

    These are 6 per matrix parameter (Kaplan et al. 2020, sec. 2.1), and attention, half of which
    the causal mask removes.
    """
    return 6 * self.matmul_parameters + 6 * self.num_layers * self.dim * context


SHAPES = [
  Shape(2048, 4, 4, 128, 2e-3),
  Shape(2048, 6, 4, 192, 2e-3),
  Shape(4096, 4, 4, 192, 2e-3),
  Shape(4096, 6, 4, 192, 2e-3),
  Shape(8192, 4, 4, 192, 2e-3),
  Shape(4096, 6, 4, 256, 1.5e-3),
]


def parse_shape(text: str) -> Shape:
  """Parse VOCAB:LAYERS:HEADS:DIM:LR. Raises argparse.ArgumentTypeError if the text differs."""
  try:
    vocab_size, num_layers, heads, dim, learning_rate = text.split(":")
  except ValueError as e:
    raise argparse.ArgumentTypeError(f"{text!r} does not match VOCAB:LAYERS:HEADS:DIM:LR") from e
  size = cli.number(int, 1, 1_000_000)
  rate = cli.number(float, 0, 1000)
  return Shape(size(vocab_size), size(num_layers), size(heads), size(dim), rate(learning_rate))


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="experiments/shapes.py",
    description="Train GPT-2 models of several shapes with equal compute and compare their bits "
    "per byte of validation text.",
  )
  p.add_argument("data", type=Path, nargs="+", help="files and folders of text, as for train.py")
  p.add_argument(
    "--shape",
    type=parse_shape,
    action="append",
    metavar="VOCAB:LAYERS:HEADS:DIM:LR",
    help="shape to train, may be repeated (default: six shapes similar to weights/tiny)",
  )
  p.add_argument(
    "--flops",
    type=cli.number(float, 1, 1e24),
    default=2e13,
    help="FLOPs to train each model with (default: 2e13, some minutes on two cores)",
  )
  p.add_argument(
    "--context",
    type=cli.number(int, 1, 1_000_000),
    default=256,
    help="context of the models in tokens (default: %(default)s)",
  )
  p.add_argument(
    "--batch",
    type=cli.number(int, 1, 100_000),
    default=8,
    help="sequences per training step (default: %(default)s)",
  )
  p.add_argument(
    "--max-chars-per-document",
    type=cli.number(int, 100, cli.MAX_COUNT),
    default=8000,
    metavar="N",
    help="evaluate on the first N characters of each validation document (default: %(default)s)",
  )
  p.add_argument(
    "--seed",
    type=cli.number(int, 0, cli.MAX_SEED),
    default=1337,
    help="random seed of training and of the validation split (default: %(default)s)",
  )
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    default=Path("runs/shapes"),
    help="output folder with a subfolder per model; an interrupted command resumes from its "
    "contents (default: %(default)s)",
  )
  p.add_argument("--device", help="tinygrad device to compute on, such as CPU, METAL or CUDA")
  ray_cluster.add_arguments(p.add_argument_group("several machines"), "shapes")
  return p.parse_args(argv)


def steps_of(args: argparse.Namespace, shape: Shape) -> int:
  """Return the number of training steps for the FLOPs of --flops."""
  flops_per_step = shape.flops_per_token(args.context) * args.batch * args.context
  return max(1, round(args.flops / flops_per_step))


def validation_documents(args: argparse.Namespace) -> list[str]:
  """Return the beginnings of the documents that no model is trained on."""
  from tinyformer.training.documents import read_documents, train_val_split

  _, documents = train_val_split(read_documents(args.data), args.seed)
  return [document[: args.max_chars_per_document] for document in documents]


def bits_per_byte(folder: Path, documents: list[str]) -> float:
  """Return the bits per byte of documents under the model in a folder."""
  from tinyformer import checkpoints
  from tinyformer.tasks import perplexity
  from tinyformer.tokenization import load_tokenizer

  model = checkpoints.load_module(folder)
  ids, texts = perplexity.encode_documents(load_tokenizer(folder), documents)
  stride = max(1, model.context // 2)
  nats = sum(losses.sum() for _, losses in perplexity.token_losses(model, ids, stride))
  return nats / math.log(2) / sum(len(t.encode()) for t in texts)


def train_arguments(
  args: argparse.Namespace, shape: Shape, steps: int, tokenizer: Path | None
) -> list[str]:
  """Return the arguments of train.py that train a shape, or resume its training.

  tokenizer: a folder with a tokenizer of the shape's vocabulary; None to train a new one.
  """
  out = args.out / str(shape)
  # Resuming checks these two as well, because the name of the folder does not contain them.
  options: dict[str, object] = {"--heads": shape.heads, "--lr": shape.learning_rate}
  flags = ["--resume"]
  if not (out / "training.safetensors").exists():
    flags = []
    options |= {
      "--layers": shape.num_layers,
      "--dim": shape.dim,
      "--context": args.context,
      "--batch": args.batch,
      "--steps": steps,
      "--seed": args.seed,
      "--warmup": min(200, steps // 10),
      "--eval-interval": math.ceil(steps / 4),
      "--sample": 0,
    }
    options |= {"--tokens": tokenizer} if tokenizer else {"--vocab": shape.vocab_size}
  if args.device:
    options["--device"] = args.device
  values = [str(x) for option in options.items() for x in option]
  return [*map(str, args.data), "-o", str(out), *flags, *values]


def train_shape(args: argparse.Namespace, shape: Shape, tokenizer: Path | None) -> int:
  """Train a shape, or resume its training, and return the exit status of train.py.

  tokenizer: that of train_arguments. Raises UsageError if the folder has another run.
  """
  steps = steps_of(args, shape)
  status = train.main(train_arguments(args, shape, steps, tokenizer))
  if status == 0 and (last_step := read_log(args, shape)[-1]["step"]) != str(steps):
    raise cli.UsageError(
      f"{args.out / str(shape)} contains a run of {last_step} steps, not {steps}: "
      "choose another folder with -o"
    )
  return status


def read_log(args: argparse.Namespace, shape: Shape) -> list[dict[str, str]]:
  """Return the rows of a shape's log.csv."""
  with (args.out / str(shape) / "log.csv").open() as file:
    return list(csv.DictReader(file))


def train_here(
  args: argparse.Namespace, shapes: list[Shape], documents: list[str]
) -> dict[Shape, float]:
  """Train one shape after the other in this process, and return the bits per byte of each.

  Raises SystemExit if a signal ends the training.
  """
  tokenizers: dict[int, Path] = {}
  results: dict[Shape, float] = {}
  for shape in shapes:
    if status := train_shape(args, shape, tokenizers.get(shape.vocab_size)):
      raise SystemExit(status)
    out = args.out / str(shape)
    tokenizers.setdefault(shape.vocab_size, out)
    results[shape] = bits_per_byte(out, documents)
  return results


def train_in_worker(
  args: argparse.Namespace, shape: Shape, folder: str, cpus: int
) -> tuple[float, str] | None:
  """Train a shape in a worker of Ray. Return the bits per byte and the machine's name.

  Return None if the training was stopped.  folder: the command's.  cpus: the number of cores.
  """
  ray_cluster.prepare_worker(cpus, folder)
  if not args.out.is_dir():
    raise cli.UsageError(
      f"{platform.node()} does not have the folder {args.out}: with -o, choose one that all "
      "machines share"
    )
  common.select_tinygrad_device(args.device)
  # The tokenizers that are trained on the same documents are equal.
  if train_shape(args, shape, tokenizer=None):
    return None
  value = bits_per_byte(args.out / str(shape), validation_documents(args))
  return value, platform.node()


def train_on_cluster(args: argparse.Namespace, shapes: list[Shape]) -> dict[Shape, float]:
  """Train each shape in a task of Ray, and return the bits per byte of each.

  Raises SystemExit if a signal ends the training.
  """
  args.out.mkdir(parents=True, exist_ok=True)
  with ray_cluster.connected(args) as cluster, cli.deferred_interrupt() as interrupted:
    cli.note(str(cluster))
    # The worker ends after the task, so the memory of the model is free again.
    options = {"num_cpus": cluster.cpus, "max_calls": 1, "max_retries": ray_cluster.RETRIES}
    train_remotely = cluster.ray.remote(**options)(train_in_worker)
    tasks = {
      train_remotely.remote(args, shape, os.getcwd(), cluster.cpus): shape for shape in shapes
    }
    results: dict[Shape, float] = {}
    with ray_cluster.stopping(cluster, tasks):
      for task in ray_cluster.finished(cluster, tasks, interrupted):
        with ray_cluster.one_line_errors():
          value, machine = cluster.ray.get(task)
        results[tasks[task]] = value
        cli.note(f"{tasks[task]}: {value:.4f} bits per byte, trained on {machine}")
    if number := interrupted():
      cli.note("stopped: the same command continues the training")
      raise SystemExit(128 + number)
  return results


def table_row(args: argparse.Namespace, shape: Shape, value: float) -> list:
  """Return a row of the table. value: the bits per byte."""
  tokens = steps_of(args, shape) * args.batch * args.context
  seconds = sum(float(row["seconds"]) for row in read_log(args, shape))
  return [
    f"{shape.vocab_size:,}",
    shape.num_layers,
    shape.heads,
    shape.dim,
    f"{shape.matmul_parameters / 1e6:.2f} M",
    f"{tokens / 1e6:.1f} M",
    f"{seconds / 60:.0f}",
    f"{value:.4f}",
  ]


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  ray_cluster.check_arguments(args)
  common.select_tinygrad_device(args.device)
  documents = validation_documents(args)
  shapes: list[Shape] = list(dict.fromkeys(args.shape or SHAPES))
  for shape in shapes:
    tokens_per_step = args.batch * args.context
    cli.note(f"{shape}: {steps_of(args, shape):,} steps of {tokens_per_step:,} tokens")
  if args.ray is None:
    results = train_here(args, shapes, documents)
  else:
    results = train_on_cluster(args, shapes)
  print(
    f"{args.flops:.1e} FLOPs per model, {len(documents):,} validation documents, "
    f"the first {args.max_chars_per_document:,} characters of each\n"
  )
  header = ["vocabulary", "layers", "heads", "width", "matrix parameters", "training tokens"]
  rows = [
    table_row(args, shape, results[shape]) for shape in sorted(shapes, key=results.__getitem__)
  ]
  common.print_table([*header, "minutes", "bits per byte"], rows)
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
