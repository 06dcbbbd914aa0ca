"""A lock on an output folder, because two runs that write to one folder lose each other's results.

The lock is the system's lock on a file in the folder. The system releases it when the process ends,
even if it is killed, so a file that was left behind locks nothing.
"""

import contextlib
import errno
import os
import weakref
from pathlib import Path

from tinyformer.cli.errors import UsageError
from tinyformer.progress import note

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None  # type: ignore[assignment]

# The file in the folder. It contains the ID of the process that holds the lock.
LOCK = ".lock"
# Errors of a file that another process has locked, and of file systems without locks.
LOCKED = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Windows locks bytes, which others cannot read then. This one is far behind the process ID.
WINDOWS_BYTE = 1 << 30


class FolderLock:
  """Create a folder if necessary, and lock it until the end of a `with` block.

  Without such a block, the lock is released when this object is deleted. A folder that was created
  here is then deleted too if it is empty. Raises UsageError if another run has locked the folder,
  or if it cannot be written to.
  """

  def __init__(self, folder: Path):
    created = not folder.exists()
    try:
      folder.mkdir(parents=True, exist_ok=True)
      file = open_locked(folder / LOCK)
    except OSError as e:
      raise UsageError(
        f"cannot write to the folder {folder}: {e.strerror}; name another folder with -o"
      ) from e
    self.release = weakref.finalize(self, release, folder, file, created)

  def __enter__(self) -> "FolderLock":
    return self

  def __exit__(self, *_) -> None:
    self.release()


def release(folder: Path, file: int, created: bool) -> None:
  """Delete the lock's file and close it. Delete the folder too if it was created and is empty."""
  with contextlib.suppress(OSError):  # Windows does not delete an open file.
    (folder / LOCK).unlink()
  os.close(file)
  if created:
    with contextlib.suppress(OSError):  # The folder is not empty.
      folder.rmdir()


def open_locked(path: Path) -> int:
  """Open and lock a file, write the process ID to it, and return its descriptor."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      lock(file)
    except OSError as e:
      owner = os.read(file, 20).decode(errors="replace").strip()
      os.close(file)
      if e.errno not in LOCKED:
        raise
      process = f" (process {owner})" if owner.isdecimal() else ""
      raise UsageError(
        f"another run{process} is writing to {path.parent}: wait for its end, or name another "
        "folder with -o"
      ) from e
    # The previous owner may have deleted the file after it was opened here.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file), os.stat(path)):
        break
    os.close(file)
  os.truncate(file, 0)
  os.write(file, f"{os.getpid()}\n".encode())
  return file


def lock(file: int) -> None:
  """Lock an open file. Raises OSError if another process has locked it.

  On a file system without locks, print a note instead.
  """
  if fcntl is None:
    import msvcrt

    os.lseek(file, WINDOWS_BYTE, os.SEEK_SET)
    try:
      msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    finally:
      os.lseek(file, 0, os.SEEK_SET)
    return
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    if e.errno not in UNSUPPORTED:
      raise
    note("this file system has no locks: make sure that no other run writes to the output folder")
