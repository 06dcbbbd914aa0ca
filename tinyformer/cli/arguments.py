"""Command-line arguments that several commands share, and the inputs that they name."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from tinyformer import __version__
from tinyformer.cli.errors import UsageError
from tinyformer.progress import download_progress


class HelpFormatter(argparse.HelpFormatter):
  """Append "(default: X)" to an option's help.

  The suffix is omitted if the default is None, False or empty, or if the help mentions a default.
  """

  def _get_help_string(self, action: argparse.Action) -> str | None:
    text = action.help
    default = action.default
    hidden = default is None or default is False or default in ([], argparse.SUPPRESS)
    if not text or hidden or "default" in text or not action.option_strings:
      return text
    return f"{text} (default: %(default)s)"


# Limits of options: of counts of tokens, steps and the like, and of seeds.
MAX_COUNT = 1_000_000_000
MAX_SEED = 2**63 - 1


def number(kind: Callable, minimum: float, maximum: float) -> Callable:
  """Return an argparse type: an int or a float between two bounds, inclusive."""

  def convert(text: str):
    try:
      value = kind(text)
    except ValueError:
      value = math.nan
    if not minimum <= value <= maximum:
      shown = text if len(text) <= 40 else f"{text[:40]}..."
      raise argparse.ArgumentTypeError(f"{shown!r} is not a number from {minimum:,} to {maximum:,}")
    return value

  return convert


def model_arguments(p: argparse.ArgumentParser, models: str, required: bool = False) -> None:
  """Add the options of every command that runs a model. models: the help text of -m."""
  p.add_argument("-m", "--model", required=required, help=models)
  p.add_argument(
    "--device",
    help="NUMPY for minigrad, or a tinygrad device such as CPU, METAL or CUDA "
    "(default: TINYFORMER_DEVICE, DEV, or the best device found)",
  )
  p.add_argument(
    "--dtype",
    choices=["float32", "float16", "bfloat16", "int8", "int4"],
    default="float32",
    help="data type of the weights in memory; computations use float32 (default: %(default)s)",
  )
  p.add_argument("--offline", action="store_true", help="do not contact any server")
  verbosity = p.add_mutually_exclusive_group()
  verbosity.add_argument(
    "-v", "--verbose", action="store_true", help="print the model, the device and the speed"
  )
  verbosity.add_argument(
    "-q",
    "--quiet",
    action="store_true",
    help="print no notes and no progress bars, except a note if another model had to be used",
  )
  p.add_argument("--version", action="version", version=f"tinyformer {__version__}")


def read_input() -> str:
  """Return all of standard input. Raises UsageError if it is not UTF-8."""
  try:
    return sys.stdin.buffer.read().decode()
  except UnicodeDecodeError as e:
    raise UsageError(f"standard input is not UTF-8: {e.reason} at byte {e.start:,}") from e


def read_prompt(argument: str | None) -> str:
  """Return the prompt given as an argument, or read the prompt from standard input.

  "-" and None select standard input; its final line break is removed. Raises UsageError if the
  prompt is empty or not UTF-8.
  """
  if argument is None or argument == "-":
    prompt = read_input().removesuffix("\n").removesuffix("\r")
  else:
    prompt = argument
    try:
      prompt.encode()
    except UnicodeEncodeError as e:
      raise UsageError(f"the prompt is not UTF-8: {e.reason} at character {e.start:,}") from e
  if not prompt:
    raise UsageError("the prompt is empty")
  return prompt


def find_model(args: argparse.Namespace, name: str, weights: bool = True) -> Path:
  """Return a model's folder, and show a progress bar if the model is downloaded.

  weights: whether the weights are needed; otherwise the vocabulary suffices. Raises what
  checkpoints.hub.find raises.
  """
  from tinyformer.checkpoints import hub

  with download_progress(getattr(args, "quiet", False)) as report:
    return hub.find(name, args.offline, report, weights)
