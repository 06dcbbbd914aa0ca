"""Standard streams that are closed, or that can no longer be written to."""

import contextlib
import io
import os
import sys


class ClosedOutput(io.TextIOBase):
  """Standard output that was closed before the process started. Writing to it raises OSError."""

  def write(self, text: str) -> int:
    raise OSError("standard output is closed")


def replace_closed_streams() -> None:
  """Replace the standard streams that were closed before the process started.

  Input is empty then, and errors are discarded. Otherwise, the next file that is opened would have
  the number of the closed stream, and other programs would write to it.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      file = os.open(os.devnull, os.O_RDWR)
      if file != number:
        os.dup2(file, number)
        os.close(file)
  if sys.stdin is None:
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
  if sys.stdout is None:
    sys.stdout = ClosedOutput()
  if sys.stderr is None:
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def discard_unwritten_output() -> None:
  """Discard what could not be written. Otherwise, Python reports an error for it at exit."""
  try:
    sys.stdout.flush()
  except OSError:
    with contextlib.suppress(OSError, ValueError):
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
