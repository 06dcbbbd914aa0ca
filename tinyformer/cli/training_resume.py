"""How train.py resumes a run: the checkpoint in the output folder, and its settings."""

import argparse
import math
from typing import Any

from tinyformer import cli
from tinyformer.training.checkpoint import read_progress

# The name of the checkpoint in the output folder, and the key of its progress.
CHECKPOINT = "training.safetensors"
CHECKPOINT_KEY = "training"
# Arguments that are not settings of the run, and settings that may change when it is resumed.
NOT_SETTINGS = ("data", "out", "resume", "device", "offline", "given")
CHANGEABLE = ("eval_interval", "sample", "dtype")


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
  """Return the settings that a checkpoint stores, by the names of the arguments."""
  return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}


def restore_settings(args: argparse.Namespace, settings: dict[str, Any]) -> None:
  """Set the arguments to the settings of a checkpoint.

  Raises UsageError if another value was given for a setting that must not change.
  """
  for name, value in settings.items():
    if name in CHANGEABLE and name in args.given:
      continue
    if name in args.given and getattr(args, name) != value:
      flag = name.replace("_", "-")
      raise cli.UsageError(f"--resume: the run was started with --{flag} {value}")
    setattr(args, name, value)


def initial_progress(args: argparse.Namespace, text_hash: str) -> dict[str, Any]:
  """Return the progress at the first step or, with --resume, that of the checkpoint.

  With --resume, also set the arguments to the checkpoint's settings. Raises UsageError for a folder
  or arguments that do not match.
  """
  file = args.out / CHECKPOINT
  if not args.resume:
    names = (CHECKPOINT, "model.safetensors", "config.json", "vocab.json")
    existing = [name for name in names if (args.out / name).exists()]
    if existing:
      resume = "continue with --resume, or " if file.exists() else ""
      raise cli.UsageError(
        f"{args.out} already contains {existing[0]}: {resume}name another folder with -o"
      )
    return {"step": 0, "best": math.inf, "recent": [], "text": text_hash}
  if not file.exists():
    raise cli.UsageError(f"--resume: {file} does not exist")
  progress = read_progress(file, CHECKPOINT_KEY)
  if progress["text"] != text_hash:
    raise cli.UsageError("--resume: this is not the text on which the run was started")
  restore_settings(args, progress["settings"])
  return progress
