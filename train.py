"""`python train.py DATA` teaches a GPT-2 a text, from nothing or from a checkpoint: the best and the last model are folders that gpt.py and transformers open."""

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


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="train.py",
    description="Teach a GPT-2 a text.",
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  p.add_argument(
    "data",
    type=Path,
    nargs="+",
    help="text files (also .gz, .xz) or folders of them; <|endoftext|> stands between documents",
  )
  p.add_argument(
    "-o",
    "--out",
    type=Path,
    default=Path("weights/mine"),
    help="the folder to write: the best model there, the last one in last/",
  )
  p.add_argument(
    "--init",
    metavar="MODEL",
    help="go on from this GPT-2, with its sizes and its vocabulary: gpt2, owner/repo, or a folder",
  )
  p.add_argument(
    "--tokens",
    default="bpe",
    help="bpe learns a vocabulary from the text, characters takes the text's characters; or a model whose vocabulary it takes, such as gpt2",
  )
  p.add_argument(
    "--vocab",
    type=cli.number(int, 257),
    default=2048,
    help="tokens of the vocabulary that bpe learns",
  )
  p.add_argument("--layers", type=cli.number(int, 1), default=4)
  p.add_argument("--heads", type=cli.number(int, 1), default=4)
  p.add_argument("--dim", type=cli.number(int, 1), default=128)
  p.add_argument(
    "--context",
    type=cli.number(int, 1),
    default=256,
    help="tokens that the model sees at once; with --init, no more than it was made for",
  )
  p.add_argument(
    "--batch",
    type=cli.number(int, 1),
    default=8,
    help="texts of --context tokens that are read at once",
  )
  p.add_argument(
    "--grad-accum-steps",
    type=cli.number(int, 1),
    default=1,
    help="batches in a step: it learns what it would from one so much larger",
  )
  p.add_argument("--steps", type=cli.number(int, 1), default=2000)
  p.add_argument("--lr", type=cli.number(float, 0), default=1e-3, help="the highest learning rate")
  p.add_argument(
    "--warmup",
    type=cli.number(int, 0),
    default=100,
    help="steps in which the learning rate rises; a cosine takes it to a tenth after",
  )
  p.add_argument(
    "--weight-decay",
    type=cli.number(float, 0),
    default=0.1,
    help="of the matrices; norms and biases have none",
  )
  p.add_argument("--clip", type=cli.number(float, 1e-9), default=1.0, help="the longest gradient")
  p.add_argument("--dropout", type=cli.number(float, 0, 1), default=0.0)
  p.add_argument(
    "--smoothing",
    type=cli.number(float, 0, 1),
    default=0.0,
    help="of the labels: the share that goes to all tokens alike, in what is learned, not in what is held out",
  )
  p.add_argument(
    "--val-fraction",
    type=cli.number(float, 1e-9, 0.5),
    default=0.05,
    metavar="SHARE",
    help="of the text, in whole documents; of a single one, its end",
  )
  p.add_argument("--seed", type=cli.number(int, 0), default=1337)
  p.add_argument(
    "--eval-interval",
    type=cli.number(int, 1),
    default=250,
    help="steps between two looks at the held-out text, each of which saves",
  )
  p.add_argument(
    "--sample",
    type=cli.number(int, 0),
    default=60,
    metavar="TOKENS",
    help="that it writes at each such look, 0 for none",
  )
  p.add_argument(
    "--precision",
    choices=["float32", "bfloat16", "float16"],
    default="float32",
    help="of the numbers that are multiplied: bfloat16 is meant for a GPU; all else, and what is saved, is computed in float32",
  )
  p.add_argument(
    "--dtype",
    choices=["float32", "float16"],
    default="float32",
    help="of the weights in the folder",
  )
  p.add_argument(
    "--resume",
    action="store_true",
    help="go on from the folder's last checkpoint, with the settings that it began with; --eval-interval, --sample and --dtype may change",
  )
  p.add_argument("--device", help="tinygrad's device, such as CPU, METAL or CUDA")
  p.add_argument(
    "--devices",
    type=cli.number(int, 1),
    default=1,
    help="that share each batch: so many of --device",
  )
  p.add_argument("--offline", action="store_true", help="ask no hub")
  args = p.parse_args(argv)
  unset = argparse.Namespace(**dict.fromkeys(vars(args)))
  args.given = [
    name for name, value in vars(p.parse_args(argv, unset)).items() if value is not None
  ]  # not left at its default
  return args


def schedule(step: int, steps: int, warmup: int, lr: float) -> float:
  """The learning rate of a step, the first of which is 0: up in a line, then down along a cosine to a tenth."""
  if step < warmup:
    return lr * (step + 1) / warmup
  return lr * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def agree(args: argparse.Namespace, source: str, **sizes: int) -> None:
  """The arguments take these values. Raises Usage where another one was given."""
  for name, size in sizes.items():
    if name in args.given and getattr(args, name) != size:
      raise cli.UsageError(f"{source} has --{name} {size}, not {getattr(args, name)}")
    setattr(args, name, size)


def make(args: argparse.Namespace, learn: list[str]):
  """(model, tokenizer, the folder of another model that its vocabulary is from or None). Raises Usage for arguments that do not fit."""
  from models import gpt2
  from tinyformer.checkpoints.config import Config
  from tinyformer.kernels.mixed_precision import MIXED
  from tinyformer.kernels.parts import CPU_KERNELS
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

  parts = {"dropout": args.dropout} | CPU_KERNELS | (MIXED if args.precision == "bfloat16" else {})
  if args.resume:
    return gpt2.load(args.out / "last", **parts), BytePairEncoding.load(args.out), None
  if args.init and "tokens" in args.given:
    raise cli.UsageError("--init brings its own vocabulary: leave --tokens out")
  source = (
    cli.find_model(args, args.init or args.tokens, bool(args.init))
    if args.init or args.tokens not in ("bpe", "characters")
    else None
  )
  if source:
    tokenizer = BytePairEncoding.load(source)
  else:
    tokenizer = (
      BytePairEncoding.train(learn, args.vocab)
      if args.tokens == "bpe"
      else BytePairEncoding.characters(learn)
    )
  if args.init and source:
    if (kind := Config.read(source).get("model_type")) != "gpt2":
      raise cli.UsageError(f"--init {args.init} is a {kind}, only a gpt2 can be taught here")
    model = gpt2.load(source, **parts)
    if len(tokenizer) > model.vocab_size:
      raise ValueError(
        f"{source}: the vocabulary has {len(tokenizer):,} tokens, the model {model.vocab:,}"
      )
    agree(
      args,
      f"--init {args.init}",
      vocab=model.vocab_size,
      layers=len(model.blocks),
      heads=model.heads,
      dim=model.dim,
    )
    if "context" not in args.given:
      args.context = model.context
    if args.context > model.context:
      raise cli.UsageError(
        f"--init {args.init} sees {model.context} tokens at once, not {args.context}"
      )
  else:
    if args.tokens != "bpe":
      agree(args, f"--tokens {args.tokens}", vocab=len(tokenizer))
    model = gpt2.GPT2(len(tokenizer), args.context, args.dim, args.heads, args.layers, **parts)
  return model, tokenizer, source


def copy_tokens(source: Path, folder: Path) -> None:
  """The files of a vocabulary, as they are."""
  for name in (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
  ):
    if (source / name).exists():
      shutil.copyfile(source / name, folder / name)


def begin(args: argparse.Namespace, text: str) -> dict[str, Any]:
  """Where the run stands: at its first step, or, with --resume, where the folder's checkpoint was saved, with the settings of that run.

  text: a hash of the documents. Raises Usage for a folder or arguments that do not fit.
  """
  from tinyformer.checkpoints import safetensors

  file = args.out / "training.safetensors"
  if not args.resume:
    if there := [
      n
      for n in ("training.safetensors", "model.safetensors", "config.json", "vocab.json")
      if (args.out / n).exists()
    ]:
      raise cli.UsageError(
        f"{args.out} holds {there[0]}: "
        + ("go on with --resume, or " if file.exists() else "")
        + "name another folder with -o"
      )
    return {"step": 0, "best": math.inf, "recent": [], "text": text}
  if not file.exists():
    raise cli.UsageError(f"--resume: {file} is not there")
  saved = json.loads(safetensors.read_metadata(file)["training"])
  if saved["text"] != text:
    raise cli.UsageError("--resume: this is not the text that the run began with")
  for name, value in saved["settings"].items():
    if name in ("eval_interval", "sample", "dtype") and name in args.given:
      continue
    if name in args.given and getattr(args, name) != value:
      raise cli.UsageError(f"--resume: the run began with --{name.replace('_', '-')} {value}")
    setattr(args, name, value)
  return saved


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  device = select_device(args.device)
  from tinygrad import Tensor

  from models import gpt2
  from tinyformer.checkpoints import safetensors
  from tinyformer.files import write_text
  from tinyformer.generation import Engine, generate
  from tinyformer.kernels.cross_entropy import loss
  from tinyformer.training.batches import eval_batches, inputs_and_targets, sample_batch, windows
  from tinyformer.training.documents import read_documents, train_val_split
  from tinyformer.training.trainer import Trainer

  out, checkpoint_file, log = args.out, args.out / "training.safetensors", args.out / "log.csv"
  if args.precision == "float16":
    raise cli.UsageError(
      "--precision float16 would lose small gradients, which bfloat16 does not: take that"
    )
  documents = read_documents(args.data)
  state = begin(args, hashlib.sha256("\0".join(documents).encode()).hexdigest())
  if args.batch % args.devices:
    raise cli.UsageError(
      f"a batch of {args.batch} cannot be shared by {args.devices} devices: make --batch a multiple"
    )
  learn, held = train_val_split(documents, args.seed, args.val_fraction)
  Tensor.manual_seed(args.seed)
  model, tokenizer, source = make(args, learn)
  settings = {
    name: value
    for name, value in vars(args).items()
    if name not in ("data", "out", "resume", "device", "offline", "given")
  }
  ids, held_ids = tokenizer.encode_documents(learn), tokenizer.encode_documents(held)
  if min(len(ids), len(held_ids)) <= args.context:
    raise ValueError(f"the text is too short for a context of {args.context} tokens")
  bits_per_byte = (
    len(held_ids) / sum(len(d.encode()) for d in held) / math.log(2)
  )  # for each nat per token
  learner = Trainer(
    model,
    lambda x, y: loss(model(x), y, args.smoothing),
    args.weight_decay,
    args.clip,
    measured=lambda x, y: loss(model(x), y, smoothing=0),
    pieces=args.grad_accum_steps,
    devices=[f"{device}:{i}" for i in range(args.devices)] if args.devices > 1 else (),
  )
  opening = (
    [tokenizer.end] if len(documents) > 1 and tokenizer.end is not None else tokenizer.encode("\n")
  )
  if args.precision == "bfloat16" and device == "CPU":
    cli.note(
      "a CPU only rounds to bfloat16 and multiplies float32: that is no faster than float32 throughout"
    )
  cli.note(
    f"{len(ids):,} tokens to learn from, {len(held_ids):,} held out, a vocabulary of {len(tokenizer):,}, "
    f"{sum(t.numel() for name, t in learner.state.items() if name.startswith('model.')):,} parameters"
  )

  def write(folder: Path) -> None:
    gpt2.save(model, folder, args.dtype, eos_token_id=tokenizer.end, bos_token_id=tokenizer.end)

  if not args.resume:
    for folder in (out, out / "last"):
      folder.mkdir(parents=True, exist_ok=True)
      if source:
        copy_tokens(source, folder)
      else:
        tokenizer.save(folder)
    write(out / "last")  # as it begins: what --resume makes its model from
  alone = (
    model if args.devices == 1 or not args.sample else gpt2.load(out / "last")
  )  # a text is written on one device
  reader = Engine(alone) if args.sample and model.context > len(opening) else None
  step, best, lines = state["step"], state["best"], plot_loss.rows(log, state["step"])
  batch, recent, pictured = (
    args.batch * args.grad_accum_steps,
    state["recent"],
    False,
  )  # recent: the losses since the last look
  if args.resume:
    entries = safetensors.read_safetensors(checkpoint_file)
    learner.restore({name: entries[name].numpy() for name in learner.state}, state["drawn"])
    for part in [*out.glob(".*.part"), *out.glob("last/.*.part")]:
      part.unlink()  # of a run that was killed as it wrote

  def save() -> None:
    write(out / "last")
    training = json.dumps(
      {
        "step": step,
        "best": best,
        "recent": recent,
        "text": state["text"],
        "settings": settings,
        "drawn": learner.rng_state,
      }
    )
    safetensors.write_safetensors(
      checkpoint_file,
      {name: t.numpy() for name, t in learner.state.items()},
      {"training": training},
    )

  def check(step: int, value: float) -> None:
    if math.isfinite(value):
      return
    raise ValueError(
      f"the loss of step {step} is {value}: "
      + (
        f"{checkpoint_file} is the last good one"
        if checkpoint_file.exists()
        else "try a lower --lr"
      )
    )

  bar, begun, first = cli.Bar("train"), time.monotonic(), step
  with (
    cli.deferred_interrupt() as interrupted
  ):  # Ctrl-C waits for the step to end: half of one could not be gone on from
    while True:
      if (
        step
        and (step % args.eval_interval == 0 or step == args.steps)
        and not lines[-1].startswith(f"{step},")
      ):
        pieces = eval_batches(windows(held_ids, args.context), 128, args.batch)
        now, learned, recent = (
          float(np.mean([learner.evaluate(*inputs_and_targets(p)) for p in pieces])),
          float(np.mean(recent)),
          [],
        )
        lines.append(
          f"{step},{step * batch * args.context},{learned:.4f},{now:.4f},{now * bits_per_byte:.4f},{time.monotonic() - begun:.0f}"
        )
        bar.clear()
        check(step, now)
        cli.note(
          f"step {step}: learned {learned:.3f}, held out {now:.3f} nats a token, {now * bits_per_byte:.3f} bits a byte"
        )
        if now < best:
          best = now
          write(out)
        if reader:
          if alone is not model:
            learner.copy_to(alone)
          reader.position = 0
          written = generate(reader, opening, args.sample, seed=args.seed, end=tokenizer.end)
          cli.note(
            textwrap.indent(
              tokenizer.decode(t for [t] in written if t is not None).strip(),
              "  | ",
              lambda _: True,
            )
          )
        write_text(log, "\n".join(lines) + "\n")
        pictured = plot_loss.picture(lines, out / "loss.png")
        save()
        begun, first = time.monotonic(), step
      if step >= args.steps or interrupted():
        break
      recent.append(
        learner.train_step(
          schedule(step, args.steps, args.warmup, args.lr),
          *inputs_and_targets(sample_batch(ids, args.context, batch, args.seed, step)),
        )
      )
      step += 1
      check(step, recent[-1])
      bar(
        step,
        args.steps,
        f"loss {recent[-1]:.3f} {(step - first) * batch * args.context / (time.monotonic() - begun):,.0f} tokens/s",
      )
  bar.clear()
  if len(lines) > 2 and not pictured and cli.fancy(sys.stderr):
    cli.note(plot_loss.blocks(*plot_loss.losses(lines)[::2]))
  if step >= args.steps:
    if state["step"] >= args.steps:
      cli.note(f"this run was over after step {step}")
    return 0
  save()
  cli.note(f"stopped after step {step}: go on with --resume")
  return 130


if __name__ == "__main__":
  sys.exit(cli.run(main))
