"""A file of results that is written row by row, so that a run that ends early can be continued.

Only complete rows are kept: an incomplete last row, which a killed process leaves, is cut off. A
second file, NAME.run.json, contains the settings of the run and a hash of its input. A file
therefore never mixes the results of two models or of two inputs.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyformer.cli import folder_lock
from tinyformer.cli.errors import UsageError, describe
from tinyformer.cli.result_formats import Format
from tinyformer.cli.row_reader import Row
from tinyformer.files import check_regular, printable, read_json, write_text

# Seconds between two updates of NAME.run.json.
UPDATE_INTERVAL = 1.0


class ResultFile:
  """A file to which results are appended. Only one process at a time can open it.

  settings: what determines the results, apart from the input.
  rows: the number of complete rows.

  Raises UsageError if another process writes to the file, or if the file has results of another
  run, and OSError if it cannot be written to.
  """

  def __init__(self, path: Path, results_format: Format, settings: dict[str, Any]):
    self.path = path
    self.run_path = path.with_name(f"{path.name}.run.json")
    self.format = results_format
    self.settings = json.loads(json.dumps(settings))
    self.hash = hashlib.sha256()
    self.hashed_rows = 0
    self.recorded_rows = 0
    self.recorded_hash = self.hash.hexdigest()
    if path.exists():
      check_regular(path)
    # Without a buffer, and not in append mode, in which a header cannot be replaced.
    self.file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    try:
      self.lock()
      self.read_run()
      self.rows = self.cut_off_incomplete_row()
      self.check_rows()
    except BaseException:
      self.file.close()
      raise
    self.last_update = time.monotonic()

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

  def read_run(self) -> None:
    """Read NAME.run.json, or write it for an empty file. Raises UsageError if settings differ."""
    if os.fstat(self.file.fileno()).st_size == 0:
      self.write_run()
      return
    if not self.run_path.exists():
      raise UsageError(
        f"{self.path} exists, but {self.run_path} does not, which says how it was made: name "
        f"another file, or delete {self.path}"
      )
    run = read_json(self.run_path)
    old, rows = run.get("settings"), run.get("rows")
    if not isinstance(old, dict) or not isinstance(rows, int):
      raise UsageError(f"{self.run_path} is damaged: delete it and {self.path}")
    self.recorded_rows = rows
    self.recorded_hash = str(run.get("hash"))
    for name in {**self.settings, **old}:
      if self.settings.get(name) != old.get(name):
        raise UsageError(
          f"{self.path} was written with {name} {printable(old.get(name))}, not "
          f"{printable(self.settings.get(name))}: use the same options, or name another file"
        )

  def write_run(self) -> None:
    run = {"settings": self.settings, "rows": self.recorded_rows, "hash": self.recorded_hash}
    write_text(self.run_path, json.dumps(run, indent=2) + "\n")

  def check_rows(self) -> None:
    if self.rows < self.recorded_rows:
      raise UsageError(
        f"{self.path} has {self.rows:,} rows, but {self.recorded_rows:,} were written: name "
        f"another file, or delete {self.path}"
      )

  def cut_off_incomplete_row(self) -> int:
    """Cut off an incomplete last row, and return the number of complete rows."""
    rows, end = self.format.complete(self.file)
    self.file.truncate(end)
    return rows

  def add_to_hash(self, row: Row) -> None:
    """Add the texts of a row to the hash of the input.

    Raises UsageError if the rows up to this one are not those whose results were recorded.
    """
    for value in row.values:
      data = value.encode()
      self.hash.update(len(data).to_bytes(8, "little"))
      self.hash.update(data)
    self.hashed_rows += 1
    is_changed = self.hash.hexdigest() != self.recorded_hash
    if self.hashed_rows == self.recorded_rows and is_changed:
      raise UsageError(
        f"row {row.number} or an earlier one has been changed since its result was written to "
        f"{self.path}: name another file, or delete {self.path}"
      )

  def append(self, rows: Sequence[Row], results: Sequence[Any]) -> None:
    """Append the results of some rows.

    Raises OSError with the number of the first row whose result could not be written.
    """
    try:
      self.write(self.format.encode([row.number for row in rows], results), results)
    except OSError as e:
      written = self.cut_off_incomplete_row() - self.rows
      self.finish(rows[:written])
      e.filename = e.filename or str(self.path)
      raise OSError(
        f"cannot write the result of row {rows[written].number}: {describe(e)}, and run the same "
        "command again"
      ) from e
    self.finish(rows)
    if time.monotonic() - self.last_update > UPDATE_INTERVAL:
      self.record()

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
    if self.recorded_rows == self.rows or self.hashed_rows != self.rows:
      return  # nothing is new, or not all rows of an earlier run have been read
    os.fsync(self.file.fileno())
    self.recorded_rows = self.rows
    self.recorded_hash = self.hash.hexdigest()
    self.write_run()
    self.last_update = time.monotonic()
