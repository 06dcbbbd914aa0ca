"""Notes and progress bars on standard error."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator

# The control characters C0, DEL and C1, except tab and line feed.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape_controls(text: str) -> str:
  """Return a text with its control characters escaped, except line breaks and tabs.

  A checkpoint's vocabulary, labels or file names may contain codes that control a terminal.
  """
  return CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def note(text: str) -> None:
  """Print a line to standard error. Control characters are escaped if it is a terminal.

  A closed pipe or a full disk is ignored, because it must not end a command that does its work.
  """
  text = escape_controls(text) if sys.stderr.isatty() else text
  with contextlib.suppress(OSError):
    print(text, file=sys.stderr, flush=True)


def cut_off_note(num_tokens: int) -> str:
  """Return the note that an answer is incomplete because of a default."""
  return f"the answer was cut off after {num_tokens:,} tokens: -n N allows more"


def write(text: str) -> None:
  """Write to standard output at once. Control characters are escaped if it is a terminal."""
  sys.stdout.write(escape_controls(text) if sys.stdout.isatty() else text)
  sys.stdout.flush()


def fancy(stream) -> bool:
  """Return whether a stream is a terminal that shows progress bars and colors.

  The variables NO_COLOR and TERM=dumb turn both off.
  """
  return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def clock(seconds: float) -> str:
  """Format a duration as minutes:seconds."""
  return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Bar:
  """A progress bar with the remaining time; silent if `quiet` or without a terminal.

  The remaining time is estimated from the progress since the first call.
  """

  def __init__(self, label: str, quiet: bool = False):
    self.label = label
    self.visible = not quiet and fancy(sys.stderr)
    self.total = 0
    self.initial = 0  # `done` of the first call
    self.start_time = 0.0  # of the first call, in seconds
    self.last_update = 0.0

  def __call__(self, done: int, total: int, details: str = "") -> None:
    """Show that `done` of `total` units are done, at most ten times per second."""
    now = time.monotonic()
    # A resumed run or download starts above 0. Another total starts another task.
    if total != self.total:
      self.total = total
      self.initial = done
      self.start_time = now
    if not self.visible or (done < total and now - self.last_update < 0.1):
      return
    self.last_update = now
    fraction = done / max(1, total)
    remaining = "?"
    if done > self.initial:
      remaining = clock((now - self.start_time) / (done - self.initial) * (total - done))
    bar = f"{'█' * int(24 * fraction):░<24}"
    print(
      f"\r{self.label} {bar} {fraction:4.0%} {details} {remaining} left\x1b[K",
      end="",
      file=sys.stderr,
      flush=True,
    )

  def clear(self) -> None:
    """Erase the bar."""
    if self.visible and self.last_update:
      print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def download_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
  """Yield a function that reports how much of a file is here: a note per large file, and a bar.

  The function is called with the file's name, the bytes received so far, and its size in bytes.
  """
  from tinyformer.checkpoints import hub

  bar = Bar("download", quiet)
  announced: set[str] = set()

  def report(file: str, done: int, total: int) -> None:
    if file not in announced and total > 1e6 and not quiet:
      bar.clear()
      note(f"Downloading {file} ({total / 1e6:,.0f} MB) into {hub.WEIGHTS}")
    announced.add(file)
    bar(done, total, f"{file} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

  try:
    yield report
  finally:
    bar.clear()
