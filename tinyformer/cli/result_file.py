"""A file of results that is written row by row, so that a run that ends early can be continued.

Only complete rows are kept: an incomplete last row, which a killed process leaves, is cut off. A
second file, NAME.run.json, contains the settings of the run, and the name and a hash of its input.
A file therefore never mixes the results of two models or of two inputs.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyformer.cli import folder_lock
from tinyformer.cli.errors import UsageError, describe
from tinyformer.cli.result_formats import Format
from tinyformer.cli.row_reader import Row, TextHash
from tinyformer.files import check_regular, printable, read_json, write_text

# Seconds between two updates of NAME.run.json.
UPDATE_INTERVAL = 1.0


class Run(NamedTuple):
  """The contents of NAME.run.json.

  settings: what determined the results.  input: the path of the input.  rows, hash: the number of
  rows when this file was written, and the hash of their texts.
  """

  settings: dict[str, Any]
  input: str
  rows: int
  hash: str


def run_path(path: Path) -> Path:
  return path.with_name(f"{path.name}.run.json")


def read_run(path: Path) -> Run | None:
  """Return the run that wrote an output file, or None if its NAME.run.json does not exist."""
  run_file = run_path(path)
  if not run_file.exists():
    return None
  values = read_json(run_file)
  run = Run(*(values.get(name) for name in Run._fields))  # type: ignore[arg-type]
  types = (dict, str, int, str)
  if not all(isinstance(value, kind) for value, kind in zip(run, types, strict=True)):
    raise UsageError(f"{run_file} is damaged: delete it and {path}")
  return run


class ResultFile:
  """A file to which results are appended. Only one process at a time can open it.

  settings: what determines the results, apart from the input.  input_path: the input.
  rows: the number of complete rows.

  Raises UsageError if another process writes to the file, or if the file has results of another
  run, and OSError if it cannot be written to.
  """

  def __init__(
    self, path: Path, results_format: Format, settings: dict[str, Any], input_path: Path
  ):
    self.path = path
    self.format = results_format
    self.hash = TextHash()
    self.hashed_rows = 0
    settings = json.loads(json.dumps(settings))
    self.run = Run(settings, str(input_path.resolve()), 0, self.hash.digest())
    if path.exists():
      check_regular(path)
    # Without a buffer, and not in append mode, in which a header cannot be replaced.
    flags = os.O_RDWR | os.O_CREAT
    self.file = os.fdopen(os.open(self.appended_path, flags, 0o666), "r+b", buffering=0)
    try:
      self.lock()
      self.joined_rows = self.count_joined_rows()
      self.read_run()
      self.rows = self.cut_off_incomplete_row()
      self.check_rows()
      if self.rows:
        self.format.update_header(self.file, self.rows)
    except BaseException:
      self.file.close()
      raise
    self.last_update = time.monotonic()

  @property
  def appended_path(self) -> Path:
    """The file to which results are appended."""
    return self.path

  def count_joined_rows(self) -> int:
    """Return the number of rows that are in another file than the one that is appended to."""
    return 0

  def join(self) -> None:
    """Complete the file, because all rows have results."""

  def __enter__(self) -> "ResultFile":
    return self

  def __exit__(self, *_) -> None:
    # The rows are in the file. The next run finds those that were not recorded.
    with contextlib.suppress(OSError):
      self.record()
    self.file.close()

  def lock(self) -> None:
    try:
      folder_lock.lock(self.file.fileno())
    except OSError as e:
      if e.errno not in folder_lock.LOCKED:
        raise
      raise UsageError(
        f"another run is writing to {self.path}: wait for its end, or name another file"
      ) from e
    # The previous run may have deleted the file after it was opened here.
    opened = os.fstat(self.file.fileno())
    if not self.appended_path.exists() or not os.path.samestat(opened, self.appended_path.stat()):
      raise UsageError(f"another run has just written to {self.path}: run the same command again")

  def read_run(self) -> None:
    """Read NAME.run.json, or write it for an empty file. Raises UsageError if settings differ."""
    if os.fstat(self.file.fileno()).st_size == 0 and not self.joined_rows:
      self.write_run()
      return
    old = read_run(self.path)
    if old is None:
      raise UsageError(
        f"{self.path} exists, but {run_path(self.path)} does not, which says how it was made: name "
        f"another file, or delete {self.path}"
      )
    for name in {**self.run.settings, **old.settings}:
      if self.run.settings.get(name) != old.settings.get(name):
        raise UsageError(
          f"{self.path} was written with {name} {printable(old.settings.get(name))}, not "
          f"{printable(self.run.settings.get(name))}: use the same options, or name another file"
        )
    self.run = self.run._replace(rows=old.rows, hash=old.hash)

  def write_run(self) -> None:
    write_text(run_path(self.path), json.dumps(self.run._asdict(), indent=2) + "\n")

  def check_rows(self) -> None:
    if self.rows < self.run.rows:
      raise UsageError(
        f"{self.path} has {self.rows:,} rows, but {self.run.rows:,} were written: name another "
        f"file, or delete {self.path}"
      )

  def cut_off_incomplete_row(self) -> int:
    """Cut off an incomplete last row, and return the number of complete rows."""
    rows, end = self.format.complete(self.file)
    self.file.truncate(end)
    return self.joined_rows + rows

  def add_to_hash(self, row: Row) -> None:
    """Add the texts of a row to the hash of the input.

    Raises UsageError if the rows up to this one are not those whose results were recorded.
    """
    self.hash.add(row)
    self.hashed_rows += 1
    is_changed = self.hash.digest() != self.run.hash
    if self.hashed_rows == self.run.rows and is_changed:
      raise UsageError(
        f"row {row.number} or an earlier one has been changed since its result was written to "
        f"{self.path}: name another file, or delete {self.path}"
      )

  def append(self, rows: Sequence[Row], results: Sequence[Any]) -> None:
    """Append the results of some rows.

    Raises OSError with the number of the first row whose result could not be written.
    """
    try:
      self.write(self.format.encode([row.key for row in rows], results), results)
    except OSError as e:
      written = self.cut_off_incomplete_row() - self.rows
      with contextlib.suppress(OSError):  # The next run updates the header.
        self.finish(rows[:written])
      e.filename = e.filename or str(self.path)
      raise OSError(
        f"cannot write the result of row {rows[written].number}: {describe(e)}, and run the same "
        "command again"
      ) from e
    self.finish(rows)
    if time.monotonic() - self.last_update > UPDATE_INTERVAL:
      try:
        self.record()
      except OSError as e:
        raise OSError(
          f"cannot continue after row {rows[-1].number}: {describe(e)}, and run the same command "
          "again"
        ) from e

  def write(self, data: bytes, results: Sequence[Any]) -> None:
    """Write to the end of the file."""
    if self.file.seek(0, os.SEEK_END) == 0:
      data = self.format.header(results) + data
    view = memoryview(data)
    while view:
      view = view[self.file.write(view) :]

  def finish(self, rows: Sequence[Row]) -> None:
    """Count rows that have been written."""
    for row in rows:
      self.add_to_hash(row)
    self.rows += len(rows)
    if rows:
      self.format.update_header(self.file, self.rows)

  def record(self) -> None:
    """Write the number of rows and the hash of their texts to NAME.run.json."""
    if self.run.rows == self.rows or self.hashed_rows != self.rows:
      return  # nothing is new, or not all rows of an earlier run have been read
    os.fsync(self.file.fileno())
    self.run = self.run._replace(rows=self.rows, hash=self.hash.digest())
    self.write_run()
    self.last_update = time.monotonic()
