"""Regular files only, JSON files, and files that are replaced atomically."""

import contextlib
import errno
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# The largest JSON file, unless a caller allows more. Published ones have up to 10 MB. A parsed file
# can take 30 times as much memory.
MAX_JSON_BYTES = 16_000_000
# The largest vocabulary. Published ones have up to 40 MB.
MAX_VOCABULARY_BYTES = 100_000_000
# The kinds of files that are not regular files.
KINDS = {
  stat.S_IFIFO: "a pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFDIR: "a folder",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}


def printable(text: Any, limit: int = 100) -> str:
  """Return text from a file for an error message: on one line, without control characters."""
  beginning = str(text)[: limit + 1]
  escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in beginning)
  return escaped if len(escaped) <= limit else f"{escaped[:limit]}..."


def check_regular(path: Path) -> None:
  """Raise OSError if a path is no regular file: a pipe may never have data, a device never end."""
  kind = stat.S_IFMT(os.stat(path).st_mode)
  if kind != stat.S_IFREG:
    error = IsADirectoryError if kind == stat.S_IFDIR else OSError
    raise error(f"{path} is {KINDS[kind]}, but must be a regular file")


def open_regular(path: Path) -> BinaryIO:
  """Open a regular file to read its bytes. Raises OSError for anything else."""
  check_regular(path)
  return open(path, "rb")


def read_bytes(path: Path, max_bytes: int) -> bytes:
  """Return the content of a regular file.

  Raises OSError if the file cannot be read, and ValueError if it is larger.
  """
  with open_regular(path) as f:
    data = f.read(max_bytes + 1)
  if len(data) > max_bytes:
    raise ValueError(f"it has more than {max_bytes:,} bytes, the maximum for such a file")
  return data


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
  """Return the text of a regular file in UTF-8, with lines that end in a line feed only.

  Raises OSError if the file cannot be read, and ValueError if it is larger or not UTF-8.
  """
  text = io.TextIOWrapper(io.BytesIO(read_bytes(path, max_bytes)), encoding="utf-8")
  return text.read()


def read_json_value(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
  """Return the value in a JSON file, of any type.

  Raises OSError if the file cannot be read, and ValueError if it is not JSON.
  """
  try:
    return json.loads(read_text(path, max_bytes))
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{path} is not JSON: {e}") from e


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
  """Return the object in a JSON file.

  Raises OSError if the file cannot be read, and ValueError if it does not contain a JSON object.
  """
  value = read_json_value(path, max_bytes)
  if not isinstance(value, dict):
    raise ValueError(f"{path} must contain a JSON object, not {type(value).__name__}")
  return value


# Temporary files and folders, such as those of atomic_write.
unfinished_files: set[Path] = set()


def delete_unfinished_files() -> None:
  """Delete temporary files and folders, because a signal ends the process."""
  for part in list(unfinished_files):
    shutil.rmtree(part, ignore_errors=True)  # if it is a folder
    with contextlib.suppress(OSError):
      part.unlink()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
  """Yield a temporary path to write to, and rename the temporary file to `path` on exit.

  The file is flushed to disk before it is renamed, so `path` never holds a partial file.
  If an exception is raised, the temporary file is deleted and `path` is unchanged.
  A device or a pipe is not replaced: `path` itself is yielded.
  An OSError names `path`: the system does not say which file did not fit on a disk.
  """
  if path.is_dir():
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
  is_special = path.exists() and not path.is_file()
  part = path if is_special else path.with_name(f".{path.name}.{os.getpid()}.part")
  if not is_special:
    unfinished_files.add(part)
  try:
    yield part
    if not is_special:
      with open(part, "rb+") as f:
        os.fsync(f.fileno())
      os.replace(part, path)
  except OSError as e:
    if e.errno is None or e.filename not in (None, part, str(part)):
      raise
    raise OSError(e.errno, e.strerror, str(path)) from e
  finally:
    if not is_special:
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
      unfinished_files.discard(part)


def write_json(path: Path, value: Any) -> None:
  """Write a value to a JSON file, atomically."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
  """Write text to a file as UTF-8, atomically."""
  with atomic_write(path) as part:
    part.write_text(text, encoding="utf-8")
