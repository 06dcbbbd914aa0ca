"""What the commands say beside their text: notes, bars and troubles on standard error, and how a command ends."""

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tinyformer import __version__ as VERSION


class Usage(Exception):
  """The arguments cannot be used as they are: exit status 2."""


def number(kind: Callable, least: float, most: float = math.inf) -> Callable:
  """A type for argparse: an int or a float within bounds."""

  def convert(text: str):
    try:
      value = kind(text)
    except ValueError:
      value = math.nan
    if not least <= value <= most:
      raise argparse.ArgumentTypeError(
        f"{text!r} is not a number from {least}" + (f" to {most}" if most < math.inf else " on")
      )
    return value

  return convert


def model_arguments(p: argparse.ArgumentParser, models: str, required: bool = False) -> None:
  """The options of every command that runs a model. models: what -m takes."""
  p.add_argument("-m", "--model", required=required, help=models)
  p.add_argument(
    "--device",
    help="tinygrad's device, such as CPU, METAL or CUDA (default: DEV, else what it finds)",
  )
  p.add_argument(
    "--dtype",
    choices=["float32", "float16", "bfloat16", "int8"],
    default="float32",
    help="of the weights in memory; it computes in float32 (default: %(default)s)",
  )
  p.add_argument("--offline", action="store_true", help="ask no hub")
  volume = p.add_mutually_exclusive_group()
  volume.add_argument(
    "-v", "--verbose", action="store_true", help="tell what runs where, and how fast"
  )
  volume.add_argument(
    "-q",
    "--quiet",
    action="store_true",
    help="no notes and no bars, but for the one that another model had to be used",
  )
  p.add_argument("--version", action="version", version=f"tinyformer {VERSION}")


def read_input() -> str:
  """All of standard input. Raises Usage if it is no text."""
  try:
    return sys.stdin.buffer.read().decode()
  except UnicodeDecodeError as e:
    raise Usage(f"standard input is not UTF-8: {e.reason} at {e.start:,}") from e


def read_prompt(given: str | None) -> str:
  """The text given; all of standard input, without its last line's end, for - or None. Raises Usage for one that is empty or no text."""
  try:
    if given not in (None, "-"):
      prompt = given.encode().decode()  # type: ignore[union-attr]
    else:
      prompt = read_input().removesuffix("\n").removesuffix("\r")
  except UnicodeEncodeError as e:
    raise Usage(f"the prompt is not UTF-8: {e.reason} at {e.start:,}") from e
  if not prompt:
    raise Usage("the prompt is empty")
  return prompt


def find_model(args: argparse.Namespace, name: str, weights: bool = True) -> Path:
  """The folder of a model, with a bar while it comes from the hub; weights: or of its vocabulary alone. Raises what models.hub.find does."""
  from tinyformer.checkpoints import hub

  bar = Bar("download", getattr(args, "quiet", False))

  def report(file: str, done: int, total: int) -> None:
    bar(done, total, f"{file} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

  try:
    return hub.find(name, args.offline, report, weights)
  finally:
    bar.clear()


def note(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def fancy(stream) -> bool:
  """Whether bars and colours are welcome there."""
  return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def clock(seconds: float) -> str:
  return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Bar:
  """A line that is drawn over and over on a terminal, and nothing elsewhere or where `quiet`. The time left is by what was done since its first call."""

  def __init__(self, label: str, quiet: bool = False):
    self.label, self.shown, self.first, self.last = (
      label,
      not quiet and fancy(sys.stderr),
      (0, 0, 0.0),
      0.0,
    )

  def __call__(self, done: int, total: int, more: str = "") -> None:
    now = time.monotonic()
    if total != self.first[0]:
      self.first = total, done, now  # it may begin anywhere: a run or a download is gone on with
    if not self.shown or (done < total and now - self.last < 0.1):
      return
    self.last, share, _, begun, start = now, done / max(1, total), *self.first
    left = clock((now - start) / (done - begun) * (total - done)) if done > begun else "?"
    print(
      f"\r{self.label} {'█' * int(24 * share):░<24} {share:4.0%} {more} {left} left\x1b[K",
      end="",
      file=sys.stderr,
      flush=True,
    )

  def clear(self) -> None:
    if self.shown and self.last:
      print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
  """Holds back the first Ctrl-C: gives a function that tells whether it came. A second one interrupts as ever."""
  came: list[bool] = []

  def note_it(*_) -> None:
    came.append(True)
    signal.signal(signal.SIGINT, before)

  before = signal.signal(signal.SIGINT, note_it)
  try:
    yield lambda: bool(came)
  finally:
    signal.signal(signal.SIGINT, before)


def run(main: Callable[[], int | None]) -> int:
  """Calls main and turns what ends it into an exit status: 1 a failed run, 2 for usage, 130 for Ctrl-C; a closed pipe is quiet."""
  try:
    status = main() or 0
    sys.stdout.flush()
    return status
  except KeyboardInterrupt:
    note("")
    return 130
  except BrokenPipeError:
    os.dup2(
      os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
    )  # or Python complains as it flushes at the end
    return 0
  except (Usage, OSError, ValueError, RuntimeError, MemoryError) as e:
    note(f"error: {e if str(e) else type(e).__name__}")
    return 2 if isinstance(e, Usage) else 1
