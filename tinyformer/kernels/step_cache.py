"""Cache compiled steps on disk, readable by their owner only.

A file consists of the SHA-256 digest of the rest, and of what `to_bytes` returns for a recording or
jit_cache.to_bytes for other devices. Whoever can write such a file can run code as the user, so
files of other owners, or that others may write, are ignored.
"""

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from tinyformer.kernels.step_runner import Recording

DIGEST_BYTES = 32
LENGTH_BYTES = 8
OPEN_FLAGS = 0
for name in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
  OPEN_FLAGS |= getattr(os, name, 0)


def to_bytes(recording: Recording) -> bytes:
  """Return a recording as bytes.

  They are the length of a JSON text in 8 bytes, the text, and the machine code of the kernels.
  """
  codes = [code for _, code in recording.programs]
  description = {
    "programs": [[name, len(code)] for name, code in recording.programs],
    "commands": recording.commands,
    "workspace": recording.workspace,
    "result": recording.result,
  }
  text = json.dumps(description, separators=(",", ":")).encode()
  return len(text).to_bytes(LENGTH_BYTES, "little") + text + b"".join(codes)


def from_bytes(data: bytes) -> Recording:
  """Return the recording that to_bytes stored. Raises ValueError if it is damaged."""
  end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
  try:
    description = json.loads(data[LENGTH_BYTES:end])
    programs = []
    for name, length in description["programs"]:
      programs.append((str(name), data[end : end + length]))
      end += length
    commands = [
      (program, tasks, [(str(kind), which, offset) for kind, which, offset in arguments])
      for program, tasks, arguments in description["commands"]
    ]
    index, offset, shape, dtype = description["result"]
    result = (index, offset, tuple(shape), str(dtype))
    return Recording(programs, commands, description["workspace"], result)
  except (TypeError, KeyError, RecursionError) as e:
    raise ValueError(f"the description is damaged: {e}") from e


def is_private(status: os.stat_result) -> bool:
  """Return whether a file or folder belongs to this user, and nobody else may write to it."""
  if not hasattr(os, "getuid"):
    return True  # Windows protects the user's profile by other means.
  return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def save(file: Path, data: bytes, max_files: int) -> None:
  """Write a step atomically, and delete the oldest files if there are more than max_files.

  An OSError is ignored, because the step also runs if it cannot be cached.
  """
  with contextlib.suppress(OSError):
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Older versions made a folder that others may read. Only the owner can change this.
    folder.chmod(0o700)
    temporary = file.with_suffix(f".{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS
    temporary.unlink(missing_ok=True)
    try:
      with open(os.open(temporary, flags, 0o600), "wb") as f:
        f.write(hashlib.sha256(data).digest() + data)
      os.replace(temporary, file)
    finally:
      temporary.unlink(missing_ok=True)
    files = sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime)
    for old in files[:-max_files]:
      old.unlink()


def open_private(file: Path) -> BinaryIO:
  """Open a regular file that only this user can have written.

  Raises OSError if there is no such file, or if others could have written it.
  """
  if not is_private(file.parent.lstat()):
    raise PermissionError(f"others can write to {file.parent}")
  # O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
  descriptor = os.open(file, os.O_RDONLY | OPEN_FLAGS)
  status = os.fstat(descriptor)
  if not stat.S_ISREG(status.st_mode) or not is_private(status):
    os.close(descriptor)
    raise PermissionError(f"{file} is not a regular file, or others can write to it")
  return open(descriptor, "rb")


def load(file: Path) -> bytes | None:
  """Return the step that an earlier process saved.

  The result is None if the file is missing or damaged, or if others could have written it.
  """
  try:
    with open_private(file) as f:
      digest = f.read(DIGEST_BYTES)
      data = f.read()
  except OSError:
    return None
  return data if hashlib.sha256(data).digest() == digest else None
