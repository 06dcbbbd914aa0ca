"""How train.py resumes a run: the checkpoint in the output folder, and its settings."""

import argparse
import math
from pathlib import Path
from typing import Any

from tinyformer import cli
from tinyformer.cli.training_model import TOKENIZER_FILES
from tinyformer.training.checkpoint import read_progress

# The name of the checkpoint in the output folder, and the key of its progress.
CHECKPOINT = "training.safetensors"
CHECKPOINT_KEY = "training"
# Arguments that are not settings of the run, and settings that may change when it is resumed.
NOT_SETTINGS = ("data", "out", "resume", "device", "offline", "given")
CHANGEABLE = ("eval_interval", "sample", "dtype")
# The entries of a checkpoint's progress, and their types.
PROGRESS_TYPES = {"step": int, "best": float, "recent": list, "text": str, "settings": dict}


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


def read_run(file: Path) -> dict[str, Any]:
  """Return the progress in a checkpoint. Raises ValueError if train.py did not write the file."""
  progress = read_progress(file, CHECKPOINT_KEY)
  for name, kind in PROGRESS_TYPES.items():
    if not isinstance(progress.get(name), kind):
      raise ValueError(
        f"{file} is not a checkpoint of train.py: {name!r} is {progress.get(name)!r} instead of "
        f"{kind.__name__}; start a new run in another folder"
      )
  return progress


def existing_file(folder: Path) -> str | None:
  """Return the name of a file in the output folder that a new run would overwrite, or None.

  What a run leaves that was killed before its first evaluation may be overwritten: a checkpoint of
  step 0, and no model.
  """
  if (folder / CHECKPOINT).exists():
    is_new = read_run(folder / CHECKPOINT)["step"] == 0
    return None if is_new and not (folder / "model.safetensors").exists() else CHECKPOINT
  names = ("model.safetensors", "config.json", *TOKENIZER_FILES, "last/model.safetensors")
  return next((name for name in names if (folder / name).exists()), None)


def initial_progress(args: argparse.Namespace, text_hash: str) -> dict[str, Any]:
  """Return the progress at the first step or, with --resume, that of the checkpoint.

  With --resume, also set the arguments to the checkpoint's settings. Raises UsageError for a folder
  or arguments that do not match.
  """
  file = args.out / CHECKPOINT
  if not args.resume:
    existing = existing_file(args.out)
    if existing:
      resume = "continue with --resume, or " if file.exists() else ""
      raise cli.UsageError(
        f"{args.out} already contains {existing}: {resume}name another folder with -o"
      )
    return {"step": 0, "best": math.inf, "recent": [], "text": text_hash}
  for required in (file, args.out / "last" / "model.safetensors"):
    if not required.exists():
      raise cli.UsageError(
        f"--resume: {required} does not exist; start the run again without --resume"
      )
  progress = read_run(file)
  if progress["text"] != text_hash:
    raise cli.UsageError("--resume: this is not the text on which the run was started")
  restore_settings(args, progress["settings"])
  return progress
