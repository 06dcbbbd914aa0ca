"""How a command ends: usage errors, interrupts and exit statuses."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator

from tinyformer.cli.progress import note
from tinyformer.tasks import InputError


class UsageError(Exception):
  """The command's arguments or inputs are invalid. The exit status is 2."""


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
  """Defer the first Ctrl-C, and yield a function that returns whether it was pressed.

  A second Ctrl-C raises KeyboardInterrupt as usual.
  """
  interrupted = False

  def handle_first(*_) -> None:
    nonlocal interrupted
    interrupted = True
    signal.signal(signal.SIGINT, previous)

  previous = signal.signal(signal.SIGINT, handle_first)
  try:
    yield lambda: interrupted
  finally:
    signal.signal(signal.SIGINT, previous)


# What the system's errors mean for a file, and what to do.
SYSTEM_ERRORS = {
  errno.ENOENT: "{} does not exist: check the name",
  errno.ENOTDIR: "{} does not exist, because a file has the name of one of its folders",
  errno.EISDIR: "{} is a folder: pass the name of a file",
  errno.EACCES: "{} must not be accessed by this user: check its permissions",
  errno.EPERM: "{} must not be accessed by this user: check its permissions",
  errno.EROFS: "{} is on a disk that is read-only: choose another folder",
  errno.ENOSPC: "{} does not fit on its disk, which is full: free some space",
  errno.EDQUOT: "{} exceeds this user's disk quota: free some space",
  errno.ENAMETOOLONG: "{:.50}... is too long for the name of a file",
  errno.ELOOP: "{} is a symbolic link that leads to itself",
}


def describe(e: BaseException) -> str:
  """Return an exception's message in one line. A system error is put into words."""
  if not isinstance(e, OSError) or e.errno is None:
    return str(e) or type(e).__name__
  if e.errno not in SYSTEM_ERRORS:
    return f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror)
  return SYSTEM_ERRORS[e.errno].format(e.filename or "a file")


def run(main: Callable[[], int | None]) -> int:
  """Call main and return the exit status; print an exception as one error message.

  The status is 1 for a failure, 2 for a usage error and 130 for Ctrl-C. A closed pipe is a normal
  end, with status 0.
  """
  try:
    status = main() or 0
    sys.stdout.flush()
    return status
  except KeyboardInterrupt:
    note("")
    return 130
  except BrokenPipeError:
    # Otherwise Python reports an error when it flushes standard output at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except (UsageError, OSError, ValueError, RuntimeError, MemoryError) as e:
    note(f"error: {describe(e)}")
    return 2 if isinstance(e, (UsageError, InputError)) else 1
