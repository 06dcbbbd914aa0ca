"""Train a GPT-2 on text files, from scratch or from a checkpoint: `python train.py DATA`.

The best and the last model are folders that gpt.py and transformers can load.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer import cli
from tinyformer.device import select_device
from tinyformer.training import plot_loss
from tinyformer.training.log import parse_losses, read_log

# Arguments that are not settings of the run, and settings that may change when it is resumed.
NOT_SETTINGS = ("data", "out", "resume", "device", "offline", "given")
CHANGEABLE = ("eval_interval", "sample", "dtype")


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
    "--vocab", type=number(int, 257), default=2048, help="vocabulary size for --tokens bpe"
  )
  p.add_argument("--layers", type=number(int, 1), default=4, help="number of blocks")
  p.add_argument("--heads", type=number(int, 1), default=4, help="attention heads per block")
  p.add_argument("--dim", type=number(int, 1), default=128, help="model width")
  p.add_argument(
    "--context",
    type=number(int, 1),
    default=256,
    help="context length in tokens; with --init, at most that of the checkpoint",
  )
  p.add_argument(
    "--batch", type=number(int, 1), default=8, help="sequences of --context tokens per batch"
  )
  p.add_argument(
    "--grad-accum-steps",
    type=number(int, 1),
    default=1,
    help="micro-batches of --batch sequences per step; their gradients are averaged",
  )
  p.add_argument("--steps", type=number(int, 1), default=2000, help="number of training steps")
  p.add_argument("--lr", type=number(float, 0), default=1e-3, help="maximum learning rate")
  p.add_argument(
    "--warmup",
    type=number(int, 0),
    default=100,
    help="steps of linear warmup, followed by cosine decay to a tenth",
  )
  p.add_argument(
    "--weight-decay",
    type=number(float, 0),
    default=0.1,
    help="weight decay of matrices; norms and biases have none",
  )
  p.add_argument("--clip", type=number(float, 1e-9), default=1.0, help="maximum gradient norm")
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
    type=number(int, 0),
    default=1337,
    help="seed of the initial weights, the batches and the train/validation split",
  )
  p.add_argument(
    "--eval-interval",
    type=number(int, 1),
    default=250,
    metavar="N",
    help="evaluate and save a checkpoint every N steps",
  )
  p.add_argument(
    "--sample",
    type=number(int, 0),
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
  p.add_argument("--device", help="tinygrad device, such as CPU, METAL or CUDA")
  p.add_argument(
    "--devices",
    type=number(int, 1),
    default=1,
    help="number of --device devices across which each batch is split",
  )
  p.add_argument("--offline", action="store_true", help="contact no server")
  args = p.parse_args(argv)
  unset = argparse.Namespace(**dict.fromkeys(vars(args)))
  parsed = vars(p.parse_args(argv, unset))
  args.given = [name for name, value in parsed.items() if value is not None]
  return args


def schedule(step: int, steps: int, warmup: int, lr: float) -> float:
  """Return the learning rate of a step, counted from 0: linear warmup, then cosine to a tenth."""
  if step < warmup:
    return lr * (step + 1) / warmup
  return lr * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_sizes(args: argparse.Namespace, source: str, **sizes: int) -> None:
  """Set arguments to the sizes of `source`. Raises UsageError if other values were given."""
  for name, size in sizes.items():
    if name in args.given and getattr(args, name) != size:
      raise cli.UsageError(f"{source} has --{name} {size}, not {getattr(args, name)}")
    setattr(args, name, size)


def make_model(args: argparse.Namespace, train_documents: list[str]):
  """Return the model, the tokenizer, and the folder that its vocabulary is from, or None.

  Raises UsageError for arguments that contradict each other or the checkpoint.
  """
  from models import gpt2
  from tinyformer.kernels.mixed_precision import MIXED
  from tinyformer.kernels.parts import CPU_KERNELS
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

  mixed = MIXED if args.precision == "bfloat16" else {}
  parts = {"dropout": args.dropout} | CPU_KERNELS | mixed
  if args.resume:
    return gpt2.load(args.out / "last", **parts), BytePairEncoding.load(args.out), None
  if args.init and "tokens" in args.given:
    raise cli.UsageError("--init has its own vocabulary: omit --tokens")
  source = None
  if args.init or args.tokens not in ("bpe", "characters"):
    source = cli.find_model(args, args.init or args.tokens, bool(args.init))
    tokenizer = BytePairEncoding.load(source)
  elif args.tokens == "bpe":
    tokenizer = BytePairEncoding.train(train_documents, args.vocab)
  else:
    tokenizer = BytePairEncoding.characters(train_documents)
  if args.init and source:
    return load_initial_model(args, source, tokenizer, parts), tokenizer, source
  if args.tokens != "bpe":
    set_sizes(args, f"--tokens {args.tokens}", vocab=len(tokenizer))
  model = gpt2.GPT2(len(tokenizer), args.context, args.dim, args.heads, args.layers, **parts)
  return model, tokenizer, source


def load_initial_model(args: argparse.Namespace, source: Path, tokenizer, parts: dict[str, Any]):
  """Return the model of --init. Raises UsageError if it is not a GPT-2 or has other sizes."""
  from models import gpt2
  from tinyformer.checkpoints.config import Config

  kind = Config.read(source).get("model_type")
  if kind != "gpt2":
    raise cli.UsageError(f"--init {args.init} is a {kind}; only gpt2 can be trained")
  model = gpt2.load(source, **parts)
  if len(tokenizer) > model.vocab_size:
    raise ValueError(
      f"{source}: the tokenizer has {len(tokenizer):,} tokens, the model only {model.vocab_size:,}"
    )
  sizes = {"vocab": model.vocab_size, "layers": len(model.blocks)}
  sizes |= {"heads": model.heads, "dim": model.dim}
  set_sizes(args, f"--init {args.init}", **sizes)
  if "context" not in args.given:
    args.context = model.context
  if args.context > model.context:
    raise cli.UsageError(
      f"--init {args.init} has a context of {model.context} tokens, less than {args.context}"
    )
  return model


def copy_tokenizer(source: Path, folder: Path) -> None:
  """Copy the files of a tokenizer."""
  for name in (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
  ):
    if (source / name).exists():
      shutil.copyfile(source / name, folder / name)


def initial_state(args: argparse.Namespace, text_hash: str) -> dict[str, Any]:
  """Return the state at the first step or, with --resume, that of the checkpoint.

  With --resume, also set the arguments to the checkpoint's settings. Raises UsageError for a folder
  or arguments that do not match.
  """
  from tinyformer.checkpoints import safetensors

  file = args.out / "training.safetensors"
  if not args.resume:
    names = ("training.safetensors", "model.safetensors", "config.json", "vocab.json")
    existing = [name for name in names if (args.out / name).exists()]
    if existing:
      resume = "continue with --resume, or " if file.exists() else ""
      raise cli.UsageError(
        f"{args.out} already contains {existing[0]}: {resume}name another folder with -o"
      )
    return {"step": 0, "best": math.inf, "recent": [], "text": text_hash}
  if not file.exists():
    raise cli.UsageError(f"--resume: {file} does not exist")
  state = json.loads(safetensors.read_metadata(file)["training"])
  if state["text"] != text_hash:
    raise cli.UsageError("--resume: this is not the text on which the run was started")
  for name, value in state["settings"].items():
    if name in CHANGEABLE and name in args.given:
      continue
    if name in args.given and getattr(args, name) != value:
      flag = name.replace("_", "-")
      raise cli.UsageError(f"--resume: the run was started with --{flag} {value}")
    setattr(args, name, value)
  return state


class Data:
  """The tokens of the train and validation text.

  bits_per_byte: bits per byte of the validation text for a loss of one nat per token.
  """

  def __init__(self, tokenizer, train_documents: list[str], val_documents: list[str]):
    self.train_ids = tokenizer.encode_documents(train_documents)
    self.val_ids = tokenizer.encode_documents(val_documents)
    val_bytes = sum(len(d.encode()) for d in val_documents)
    self.bits_per_byte = len(self.val_ids) / val_bytes / math.log(2)

  def check_length(self, context: int) -> None:
    """Raise ValueError if a part has no window of `context` tokens and its targets."""
    if min(len(self.train_ids), len(self.val_ids)) <= context:
      raise ValueError(f"the text is too short for a context of {context} tokens")


class Sampler:
  """Generates a sample at each evaluation.

  With several devices, the sample is generated by a copy of the model on one device.
  """

  def __init__(self, args: argparse.Namespace, model, tokenizer, num_documents: int):
    from models import gpt2
    from tinyformer.generation import Engine

    several_documents = num_documents > 1 and tokenizer.end is not None
    self.prompt = [tokenizer.end] if several_documents else tokenizer.encode("\n")
    self.args, self.tokenizer = args, tokenizer
    self.trained = model
    self.model = model
    if args.devices > 1 and args.sample:
      self.model = gpt2.load(args.out / "last")
    has_room = args.sample and model.context > len(self.prompt)
    self.engine = Engine(self.model) if has_room else None

  def print_sample(self, trainer) -> None:
    """Print a sample to standard error, indented."""
    from tinyformer.generation import generate

    if not self.engine:
      return
    if self.model is not self.trained:
      trainer.copy_to(self.model)
    self.engine.position = 0
    seed, end = self.args.seed, self.tokenizer.end
    tokens = generate(self.engine, self.prompt, self.args.sample, seed=seed, end=end)
    text = self.tokenizer.decode(t for [t] in tokens if t is not None).strip()
    cli.note(textwrap.indent(text, "  | ", lambda _: True))


class Run:
  """A training run: its state, its folder and its log."""

  def __init__(self, args: argparse.Namespace, state: dict[str, Any], model, tokenizer, trainer):
    self.args, self.model, self.tokenizer, self.trainer = args, model, tokenizer, trainer
    self.out = args.out
    self.checkpoint_file = args.out / "training.safetensors"
    self.log_file = args.out / "log.csv"
    self.text_hash = state["text"]
    self.step, self.best = state["step"], state["best"]
    self.recent: list[float] = state["recent"]  # train losses since the last evaluation
    self.lines = read_log(self.log_file, self.step)
    self.settings = {name: v for name, v in vars(args).items() if name not in NOT_SETTINGS}
    self.plotted = False

  @property
  def tokens_per_step(self) -> int:
    return self.args.batch * self.args.grad_accum_steps * self.args.context

  def create_folder(self, source: Path | None) -> None:
    """Write the tokenizer and the initial model, from which --resume constructs the model."""
    for folder in (self.out, self.out / "last"):
      folder.mkdir(parents=True, exist_ok=True)
      if source:
        copy_tokenizer(source, folder)
      else:
        self.tokenizer.save(folder)
    self.save_model(self.out / "last")

  def restore(self, state: dict[str, Any]) -> None:
    """Restore the trainer from the checkpoint, and delete what a killed run left half-written."""
    from tinyformer.checkpoints import safetensors

    tensors = safetensors.read_safetensors(self.checkpoint_file)
    arrays = {name: tensors[name].numpy() for name in self.trainer.state}
    self.trainer.restore(arrays, state["rng_state"])
    for part in [*self.out.glob(".*.part"), *self.out.glob("last/.*.part")]:
      part.unlink()

  def save_model(self, folder: Path) -> None:
    from models import gpt2

    end = self.tokenizer.end
    gpt2.save(self.model, folder, self.args.dtype, eos_token_id=end, bos_token_id=end)

  def save(self) -> None:
    """Save the last model and a checkpoint of the training state."""
    from tinyformer.checkpoints import safetensors

    self.save_model(self.out / "last")
    state = {
      "step": self.step,
      "best": self.best,
      "recent": self.recent,
      "text": self.text_hash,
      "settings": self.settings,
      "rng_state": self.trainer.rng_state,
    }
    arrays = {name: t.numpy() for name, t in self.trainer.state.items()}
    metadata = {"training": json.dumps(state)}
    safetensors.write_safetensors(self.checkpoint_file, arrays, metadata)

  def check_loss(self, value: float) -> None:
    """Raise ValueError if a loss is NaN or infinite."""
    if math.isfinite(value):
      return
    has_checkpoint = self.checkpoint_file.exists()
    remedy = f"{self.checkpoint_file} is the last good checkpoint"
    raise ValueError(
      f"the loss of step {self.step} is {value}: "
      + (remedy if has_checkpoint else "try a lower --lr")
    )

  def is_evaluation_due(self) -> bool:
    """Return whether this step needs an evaluation that is not in the log yet."""
    due = self.step % self.args.eval_interval == 0 or self.step == self.args.steps
    return self.step > 0 and due and not self.lines[-1].startswith(f"{self.step},")

  def evaluate(self, data: Data, start: float) -> None:
    """Compute the validation loss, add a line to the log, and save the model if it is the best.

    start: when the steps since the last evaluation began; the log has their duration.
    """
    from tinyformer.training.batches import eval_batches, inputs_and_targets, windows

    batches = eval_batches(windows(data.val_ids, self.args.context), 128, self.args.batch)
    losses = [self.trainer.evaluate(*inputs_and_targets(batch)) for batch in batches]
    val_loss = float(np.mean(losses))
    train_loss = float(np.mean(self.recent))
    self.recent = []
    bits_per_byte = val_loss * data.bits_per_byte
    tokens = self.step * self.tokens_per_step
    seconds = time.monotonic() - start
    self.lines.append(
      f"{self.step},{tokens},{train_loss:.4f},{val_loss:.4f},{bits_per_byte:.4f},{seconds:.0f}"
    )
    self.check_loss(val_loss)
    cli.note(
      f"step {self.step}: train loss {train_loss:.3f}, validation loss {val_loss:.3f} "
      f"nats per token, {bits_per_byte:.3f} bits per byte"
    )
    if val_loss < self.best:
      self.best = val_loss
      self.save_model(self.out)

  def write_log(self) -> None:
    """Write log.csv, and draw it if matplotlib is installed."""
    from tinyformer.files import write_text

    write_text(self.log_file, "\n".join(self.lines) + "\n")
    self.plotted = plot_loss.plot(self.lines, self.out / "loss.png")

  def train_step(self, data: Data) -> None:
    """Train on one batch and advance the step."""
    from tinyformer.training.batches import inputs_and_targets, sample_batch

    args = self.args
    rate = schedule(self.step, args.steps, args.warmup, args.lr)
    count = args.batch * args.grad_accum_steps
    batch = sample_batch(data.train_ids, args.context, count, args.seed, self.step)
    self.recent.append(self.trainer.train_step(rate, *inputs_and_targets(batch)))
    self.step += 1
    self.check_loss(self.recent[-1])


def run_training(run: Run, data: Data, sampler: Sampler) -> int:
  """Train until the last step or Ctrl-C, and return the exit status."""
  args, first_step = run.args, run.step
  bar, start = cli.Bar("train"), time.monotonic()
  # Ctrl-C waits for the end of a step, because a run cannot be resumed from half a step.
  with cli.deferred_interrupt() as interrupted:
    while True:
      if run.is_evaluation_due():
        bar.clear()
        run.evaluate(data, start)
        sampler.print_sample(run.trainer)
        run.write_log()
        run.save()
        start, first_step = time.monotonic(), run.step
      if run.step >= args.steps or interrupted():
        break
      run.train_step(data)
      speed = (run.step - first_step) * run.tokens_per_step / (time.monotonic() - start)
      bar(run.step, args.steps, f"loss {run.recent[-1]:.3f} {speed:,.0f} tokens/s")
  bar.clear()
  if len(run.lines) > 2 and not run.plotted and cli.fancy(sys.stderr):
    steps, _, val_losses = parse_losses(run.lines)
    cli.note(plot_loss.terminal_plot(steps, val_losses))
  if run.step >= args.steps:
    return 0
  run.save()
  cli.note(f"stopped after step {run.step}: continue with --resume")
  return 130


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  device = select_device(args.device)
  from tinygrad import Tensor

  from tinyformer.kernels.cross_entropy import loss
  from tinyformer.training.documents import read_documents, train_val_split
  from tinyformer.training.trainer import Trainer

  if args.precision == "float16":
    raise cli.UsageError("--precision float16 would lose small gradients: use bfloat16")
  documents = read_documents(args.data)
  state = initial_state(args, hashlib.sha256("\0".join(documents).encode()).hexdigest())
  if args.batch % args.devices:
    raise cli.UsageError(
      f"a batch of {args.batch} cannot be shared by {args.devices} devices: "
      "--batch must be a multiple of --devices"
    )
  train_documents, val_documents = train_val_split(documents, args.seed, args.val_fraction)
  Tensor.manual_seed(args.seed)
  model, tokenizer, source = make_model(args, train_documents)
  data = Data(tokenizer, train_documents, val_documents)
  data.check_length(args.context)
  trainer = Trainer(
    model,
    lambda x, y: loss(model(x), y, args.smoothing),
    args.weight_decay,
    args.clip,
    eval_loss=lambda x, y: loss(model(x), y, smoothing=0),
    grad_accum_steps=args.grad_accum_steps,
    devices=[f"{device}:{i}" for i in range(args.devices)] if args.devices > 1 else (),
  )
  if args.precision == "bfloat16" and device == "CPU":
    cli.note("a CPU rounds to bfloat16 and multiplies in float32, which is not faster than float32")
  parameters = sum(t.numel() for name, t in trainer.state.items() if name.startswith("model."))
  cli.note(
    f"{len(data.train_ids):,} train tokens, {len(data.val_ids):,} validation tokens, "
    f"vocabulary of {len(tokenizer):,}, {parameters:,} parameters"
  )
  run = Run(args, state, model, tokenizer, trainer)
  if not args.resume:
    run.create_folder(source)
  sampler = Sampler(args, model, tokenizer, len(documents))
  if args.resume:
    run.restore(state)
    if run.step >= args.steps:
      cli.note(f"this run was already finished after step {run.step}")
  return run_training(run, data, sampler)


if __name__ == "__main__":
  sys.exit(cli.run(main))
