"""JSON files, and files that are replaced atomically."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
  """Return the object in a JSON file.

  Raises FileNotFoundError, or ValueError if the file does not contain a JSON object.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{path} is not JSON: {e}") from e
  if not isinstance(value, dict):
    raise ValueError(f"{path} must contain a JSON object, not {type(value).__name__}")
  return value


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
  """Yield a temporary path to write to, and rename the temporary file to `path` on exit.

  The file is flushed to disk before it is renamed, so `path` never holds a partial file.
  If an exception is raised, the temporary file is deleted and `path` is unchanged.
  A device or a pipe is not replaced: `path` itself is yielded.
  """
  if path.exists() and not path.is_file() and not path.is_dir():
    yield path
    return
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    yield part
    with open(part, "rb+") as f:
      os.fsync(f.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """Write text to a file as UTF-8, atomically."""
  with atomic_write(path) as part:
    part.write_text(text, encoding="utf-8")
