"""Results in a Parquet file, which is complete when the run is.

A Parquet file ends with its metadata, so rows cannot be appended to it. Results are first appended
to NAME.part, in JSON Lines. When all rows are finished, both files are joined in a new Parquet
file, which replaces the old one atomically. A kill at any time loses and repeats no row.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyformer.cli.errors import UsageError, describe
from tinyformer.cli.result_file import ResultFile
from tinyformer.cli.result_formats import Format, JsonLines
from tinyformer.files import atomic_write, printable

# The largest row group, in rows and in bytes of JSON. One row group at a time is in memory.
GROUP_ROWS = 8192
GROUP_BYTES = 16_000_000


def import_pyarrow(path: Path) -> tuple[Any, Any]:
  """Return the modules pyarrow and pyarrow.parquet. Raises UsageError if they do not exist."""
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as e:
    raise UsageError(f"{path} needs pyarrow: pip install -e '.[parquet]'") from e
  return pyarrow, parquet


def result_type(pyarrow: Any, name: str) -> Any:
  """Return the type of a column with results, or None if a column contains JSON.

  name: what a result is called.
  """
  text, integer, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
  prediction = pyarrow.struct({"label": text, "score": number})
  span = {"text": text, "start": integer, "end": integer, "score": number}
  types = {
    "text": text,
    "score": number,
    "embedding": pyarrow.list_(pyarrow.float32()),
    "predictions": pyarrow.list_(prediction),
    "masks": pyarrow.list_(pyarrow.list_(prediction)),
    "answers": pyarrow.list_(pyarrow.struct(span)),
    "entities": pyarrow.list_(pyarrow.struct({"label": text, **span})),
  }
  return types.get(name)


class ParquetResultFile(ResultFile):
  """A Parquet file, and a file NAME.part to which results are appended; see ResultFile.

  Raises UsageError if pyarrow is not installed, or if the file is damaged.
  """

  def __init__(self, path: Path, results_format: Format, *args):
    assert isinstance(results_format, JsonLines)
    self.pyarrow, self.parquet = import_pyarrow(path)
    self.name = results_format.name
    self.keys = results_format.keys
    super().__init__(path, results_format, *args)

  @property
  def appended_path(self) -> Path:
    return self.path.with_name(f"{self.path.name}.part")

  def count_joined_rows(self) -> int:
    """Return the number of rows of the Parquet file.

    Delete what an earlier run left behind: a file that it did not finish, and rows that it joined.
    """
    for unfinished in self.path.parent.glob(f".{self.path.name}.*.part"):
      unfinished.unlink()
    if not self.path.exists():
      return 0
    rows, last_row = self.read_joined_rows()
    first_line = next(self.lines(), None)
    if first_line is not None and json.loads(first_line)["row"] <= last_row:
      self.file.truncate(0)
    return rows

  def read_joined_rows(self) -> tuple[int, int]:
    """Return the number of rows of the Parquet file, and the number of its last row in the input.

    Both are 0 if it has no rows.
    """
    try:
      with self.parquet.ParquetFile(self.path) as file:
        rows = file.metadata.num_rows
        if not rows:
          return 0, 0
        last_group = file.read_row_group(file.num_row_groups - 1, columns=["row"])
        return rows, last_group["row"][-1].as_py()
    except (ValueError, OSError, KeyError) as e:
      raise UsageError(
        f"{self.path} is not a Parquet file that this command wrote ({printable(e)}): delete it, "
        "or name another file"
      ) from e

  def lines(self) -> Iterator[bytes]:
    """Yield the complete lines of NAME.part."""
    with open(self.appended_path, "rb") as file:
      for line in file:
        if line.endswith(b"\n"):
          yield line

  def join(self) -> None:
    """Add the rows of NAME.part to the Parquet file, and delete NAME.part.

    Raises OSError if the file cannot be written. NAME.part is kept then.
    """
    if self.rows == self.joined_rows and self.path.exists():
      return
    self.record()
    try:
      with atomic_write(self.path) as new_path:
        self.write_parquet(new_path)
    except OSError as e:
      e.filename = e.filename or str(self.path)
      raise OSError(
        f"cannot write the Parquet file: {describe(e)}, and run the same command again"
      ) from e
    self.joined_rows = self.rows

  def write_parquet(self, path: Path) -> None:
    """Write all rows to a new Parquet file."""
    kind = result_type(self.pyarrow, self.name)
    key_types = {"row": self.pyarrow.int64(), "file": self.pyarrow.string()}
    columns = [(key, key_types[key]) for key in self.keys]
    columns.append((self.name, kind or self.pyarrow.string()))
    schema = self.pyarrow.schema(columns)
    with self.parquet.ParquetWriter(path, schema) as writer:
      if self.joined_rows:
        with self.parquet.ParquetFile(self.path) as old:
          for batch in old.iter_batches(GROUP_ROWS):
            writer.write_batch(batch)
      for rows in self.groups():
        if kind is None:
          rows = [row | {self.name: json.dumps(row[self.name])} for row in rows]
        writer.write_table(self.pyarrow.Table.from_pylist(rows, schema))

  def groups(self) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of NAME.part, as many at a time as a row group has."""
    rows: list[dict[str, Any]] = []
    size = 0
    for line in self.lines():
      rows.append(json.loads(line))
      size += len(line)
      if len(rows) == GROUP_ROWS or size > GROUP_BYTES:
        yield rows
        rows = []
        size = 0
    if rows:
      yield rows

  def __exit__(self, *args) -> None:
    if self.rows == self.joined_rows:
      # While the file is locked: the next run could open it otherwise. Windows does not delete it.
      with contextlib.suppress(OSError):
        self.appended_path.unlink()
    super().__exit__(*args)
