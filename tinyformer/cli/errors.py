"""How a command ends: errors, interrupts and exit statuses."""

import errno
import sys
from collections.abc import Callable

from tinyformer.cli.signals import ending_process
from tinyformer.cli.streams import discard_unwritten_output, replace_closed_streams
from tinyformer.progress import note
from tinyformer.tasks import InputError


class UsageError(Exception):
  """The command's arguments or inputs are invalid. The exit status is 2."""


# What the system's errors mean for a file, and what to do.
SYSTEM_ERRORS = {
  errno.ENOENT: "{} does not exist: check the name",
  errno.ENOTDIR: "{} does not exist, because a file has the name of one of its folders",
  errno.EISDIR: "{} is a folder: pass the name of a file",
  errno.EACCES: "access to {} is denied: check its permissions",
  errno.EPERM: "access to {} is denied: check its permissions",
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
  end, with status 0. A signal ends the process, unless `main` handles it.
  """
  replace_closed_streams()
  with ending_process():
    try:
      status = main() or 0
      sys.stdout.flush()
      return status
    except KeyboardInterrupt:
      note("")
      return 130
    except BrokenPipeError:
      discard_unwritten_output()
      return 0
    except Exception as e:
      message = error_message(e)
      if message is None:
        raise
      discard_unwritten_output()
      note(f"error: {message}")
      return 2 if isinstance(e, (UsageError, InputError)) else 1


def error_message(e: Exception) -> str | None:
  """Return the message for an exception, or None for a defect, which needs a traceback."""
  if isinstance(e, (UsageError, OSError, ValueError, RuntimeError, MemoryError)):
    return describe(e)
  if type(e).__module__ == "sqlite3":
    return (
      f"tinygrad cannot use its cache of kernels ({e}).\n"
      "Free some space, set CACHEDB to a file elsewhere, or set CACHELEVEL=0 to use no cache."
    )
  if type(e).__name__ == "CompileError":
    first_line = str(e).strip().split("\n")[0]
    return f"tinygrad cannot compile a kernel ({first_line}).\nSet CC to a clang, or unset CC."
  return None
