"""Train a GPT-2 on text files, from scratch or from a checkpoint: `python train.py DATA`.

The best and the last model are folders that gpt.py and transformers can load. The training loop is
in tinyformer/training/trainer.py.
"""

import argparse
import hashlib
import sys

from tinyformer import cli
from tinyformer.cli.folder_lock import FolderLock
from tinyformer.cli.training_arguments import parse_arguments
from tinyformer.device import open_devices, select_device


def make_trainer(args: argparse.Namespace, model, device: str):
  """Return the trainer of a GPT-2. The validation loss has no label smoothing."""
  from tinyformer.kernels import language_model_loss
  from tinyformer.training.run import TrainConfig
  from tinyformer.training.trainer import Trainer

  config = TrainConfig(
    weight_decay=args.weight_decay,
    clip=args.clip,
    grad_accum_steps=args.grad_accum_steps,
    devices=open_devices(device, args.devices) if args.devices > 1 else (),
  )
  train_loss = language_model_loss(model, args.smoothing)
  return Trainer(model, train_loss, config, eval_loss=language_model_loss(model))


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  device = select_device(args.device)
  with FolderLock(args.out):
    return train_model(args, device)


def train_model(args: argparse.Namespace, device: str) -> int:
  """Train the model in the output folder, and return the exit status."""
  from tinygrad import Tensor

  from tinyformer.cli.training_model import ModelFolder, make_model
  from tinyformer.cli.training_resume import initial_progress
  from tinyformer.cli.training_run import TextRun
  from tinyformer.training.documents import Corpus, read_documents, train_val_split
  from tinyformer.training.trainer import train

  if args.precision == "float16":
    raise cli.UsageError("--precision float16 would lose small gradients: use bfloat16")
  if device == "NUMPY" and (args.precision != "float32" or args.devices > 1):
    raise cli.UsageError("NUMPY trains in float32 on one device: omit --precision and --devices")
  documents = read_documents(args.data)
  text_hash = hashlib.sha256("\0".join(documents).encode()).hexdigest()
  progress = initial_progress(args, text_hash)
  if args.batch % args.devices:
    raise cli.UsageError(
      f"a batch of {args.batch} cannot be shared by {args.devices} devices: "
      "--batch must be a multiple of --devices"
    )
  train_documents, val_documents = train_val_split(documents, args.seed, args.val_fraction)
  Tensor.manual_seed(args.seed)
  model, tokenizer, source = make_model(args, train_documents)
  corpus = Corpus(tokenizer, train_documents, val_documents)
  corpus.check_length(args.context)
  trainer = make_trainer(args, model, device)
  if args.precision == "bfloat16" and device == "CPU":
    cli.note("a CPU rounds to bfloat16 and multiplies in float32, which is not faster than float32")
  parameters = sum(t.numel() for name, t in trainer.state.items() if name.startswith("model."))
  all_bytes = " (with all 256 bytes)" if args.tokens == "characters" else ""
  cli.note(
    f"{len(corpus.train_ids):,} train tokens, {len(corpus.val_ids):,} validation tokens, "
    f"vocabulary of {len(tokenizer):,}{all_bytes}, {parameters:,} parameters"
  )
  folder = ModelFolder(args, model, tokenizer, source)
  run = TextRun(args, progress, trainer, corpus, folder)
  if run.step >= run.steps:
    cli.note(f"this run was already finished after step {run.step}")
  # A signal waits for the end of a step, because a run cannot be resumed from half a step.
  with cli.deferred_interrupt() as interrupted:
    run.evaluate_resumed_step()
    train(trainer, run, interrupted)
  return run.finish(interrupted())


if __name__ == "__main__":
  sys.exit(cli.run(main))
