"""Read texts from a file with one row per text, in one pass and with bounded memory."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tinyformer.cli.errors import UsageError
from tinyformer.files import check_regular, open_regular, printable
from tinyformer.tasks import InputError

# The longest line, in bytes.
MAX_LINE_BYTES = 16_000_000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Part(NamedTuple):
  """One of `total` parts of a file: every total-th row, starting with row `first`."""

  first: int = 1
  total: int = 1

  @classmethod
  def parse(cls, text: str) -> "Part":
    """Return the part that is written as "2/8". Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    part = cls(*map(int, match.groups())) if match else None
    if part is None or not 1 <= part.first <= part.total:
      raise ValueError(f"{printable(text, 40)!r} is not a part such as 2/8")
    return part

  def contains(self, row: int) -> bool:
    """Return whether a row belongs to this part. The first row has the number 1."""
    return row % self.total == self.first % self.total


class Row(NamedTuple):
  """A row of a file.

  number: its number; the first row is 1.  line: the number of its last line in the file.
  values: its texts, one for each requested column.
  end: the number of bytes of the file up to the end of the row.
  file: the name of the file that is the row, if the rows are the files of a folder.
  """

  number: int
  line: int
  values: tuple[str, ...]
  end: int
  file: str | None = None

  @property
  def key(self) -> tuple[int] | tuple[int, str]:
    """Return what identifies the row in the output."""
    return (self.number,) if self.file is None else (self.number, self.file)


class TextHash:
  """A hash of the texts of some rows."""

  def __init__(self):
    self.sha256 = hashlib.sha256()

  def add(self, row: Row) -> None:
    for value in row.values:
      data = value.encode()
      self.sha256.update(len(data).to_bytes(8, "little"))
      self.sha256.update(data)

  def digest(self) -> str:
    return self.sha256.hexdigest()


class RowReader:
  """The rows of a text, CSV or JSON Lines file in UTF-8, or of a Parquet file.

  columns: the columns to read. In a text file, each line is a row with one column.
  part: the rows to read.

  Raises UsageError for another kind of file, and OSError if the file cannot be read. Iteration
  raises InputError, with the number of the row, if a row is invalid.
  """

  def __init__(self, path: Path, columns: Sequence[str], part: Part | None = None):
    readers = {
      ".txt": self.text_rows,
      ".csv": self.csv_rows,
      ".jsonl": self.json_rows,
      ".parquet": self.parquet_rows,
    }
    if path.suffix not in readers:
      raise UsageError(
        f"{path} is not a .txt, .csv, .jsonl or .parquet file: rename or convert the file"
      )
    if path.suffix == ".txt" and len(columns) > 1:
      raise UsageError(
        f"{path} has one text per line, but the columns {' and '.join(columns)} are needed: use a "
        ".csv, .jsonl or .parquet file"
      )
    check_regular(path)
    self.path = path
    self.read = readers[path.suffix]
    self.columns = tuple(columns)
    self.part = part or Part()
    self.row = 1  # the number of the row that is being read; 0 for the header of a CSV file
    self.line = 0  # the number of the line that was read last
    self.end = 0  # the number of bytes that were read
    self.size = os.stat(path).st_size  # the number of bytes when reading began
    self.has_grown = False

  def __iter__(self) -> Iterator[Row]:
    with open_regular(self.path) as file:
      self.size = os.fstat(file.fileno()).st_size
      for values in self.read(file):
        if self.part.contains(self.row):
          yield Row(self.row, self.line, values, self.end)
      self.has_grown = os.fstat(file.fileno()).st_size > self.end

  def error(self, problem: str) -> InputError:
    """Return an error about the row that is being read."""
    return self.row_error(self.row, self.line, problem)

  def row_error(self, row: int, line: int, problem: str) -> InputError:
    """Return an error about a row. The row 0 is the header of a CSV file."""
    name = f"row {row}" if row else "header"
    # A record of a CSV file may have several lines, and a JSON Lines file may have empty lines.
    if line not in (0, row):
      name += f" (line {line})"
    return InputError(f"{self.path}, {name}: {problem}")

  def lines(self, file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines that the file had when reading began, without a byte order mark.

    An incomplete last line of a file that is growing is left out.
    """
    while self.end < self.size:
      self.line += 1
      line = file.readline(MAX_LINE_BYTES + 1)
      if len(line) > MAX_LINE_BYTES:
        raise self.error(f"the line has more than {MAX_LINE_BYTES:,} bytes, the maximum")
      if not line:
        raise self.error("the file was shortened while it was read")
      if not line.endswith(b"\n") and os.fstat(file.fileno()).st_size > self.size:
        self.has_grown = True
        return
      self.end += len(line)
      yield line.removeprefix(BYTE_ORDER_MARK) if self.line == 1 else line

  def encoding_error(self, e: UnicodeDecodeError, part: str, whole: str) -> InputError:
    """Return the error for a part of the input that is not UTF-8. whole: what to convert."""
    return self.error(
      f"byte {e.start + 1:,} of {part} is not UTF-8 ({e.reason}): convert {whole} to UTF-8"
    )

  def decode(self, line: bytes) -> str:
    try:
      text = line.decode()
    except UnicodeDecodeError as e:
      raise self.encoding_error(e, "the line", "the file") from e
    if "\0" in text:  # every second byte of English text in UTF-16
      raise self.error(
        f"byte {line.index(0) + 1:,} of the line is zero: convert the file to UTF-8 if it is in "
        "UTF-16"
      )
    return text

  def text_rows(self, file: BinaryIO) -> Iterator[tuple[str, ...]]:
    """Yield the lines. An empty line is a row with an empty text."""
    for line in self.lines(file):
      if self.part.contains(self.row):
        yield (self.decode(line).removesuffix("\n").removesuffix("\r"),)
      self.row += 1

  def json_rows(self, file: BinaryIO) -> Iterator[tuple[str, ...]]:
    """Yield the values of the columns in each line's object. Empty lines are skipped."""
    for line in self.lines(file):
      if not line.strip():
        continue
      if self.part.contains(self.row):
        yield self.json_values(self.decode(line))
      self.row += 1

  def json_values(self, line: str) -> tuple[str, ...]:
    try:
      values = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise self.error(f"the line is not JSON: {e}") from e
    if not isinstance(values, dict):
      raise self.error(f"the line must be a JSON object, not {type(values).__name__}")
    for column in self.columns:
      if column not in values:
        raise self.missing(column, list(values))
      if not isinstance(values[column], str):
        raise self.error(f"{column} must be a string, not {printable(json.dumps(values[column]))}")
      if re.search("[\ud800-\udfff]", values[column]):
        raise self.error(f"{column} contains half of a surrogate pair, which is not a character")
    return tuple(values[column] for column in self.columns)

  def missing(self, column: str, columns: list[str]) -> InputError:
    names = printable(", ".join(columns)) or "none"
    return self.error(
      f"there is no column {column}; the columns are: {names}. Choose one with --column"
    )

  def csv_rows(self, file: BinaryIO) -> Iterator[tuple[str, ...]]:
    """Yield the values of the columns in each record after the header."""
    self.row = 0
    csv.field_size_limit(MAX_LINE_BYTES)
    records = csv.reader(map(self.decode, self.lines(file)), strict=True)
    header = self.next_record(records)
    if header is None:
      return
    for column in self.columns:
      if column not in header:
        raise self.missing(column, header)
    indices = [header.index(column) for column in self.columns]
    self.row = 1
    while (record := self.next_record(records)) is not None:
      if len(record) != len(header):
        raise self.error(f"the header has {len(header)} columns, but this row has {len(record)}")
      yield tuple(record[i] for i in indices)
      self.row += 1

  def next_record(self, records) -> list[str] | None:
    """Return the next record that is not an empty line, or None at the end."""
    first_line = self.line + 1
    try:
      return next(filter(None, records), None)
    except csv.Error as e:
      if self.has_grown:  # The last record is not complete yet.
        return None
      hint = ""
      if self.line > first_line:
        hint = f"; the row begins at line {first_line}: check its quotation marks"
      raise self.error(f"the row is not CSV: {e}{hint}") from e

  def parquet_rows(self, file: BinaryIO) -> Iterator[tuple[str, ...]]:
    """Yield the values of the columns. One row group of these columns is in memory at a time."""
    try:
      from pyarrow import parquet
    except ImportError as e:
      raise UsageError(f"{self.path} needs pyarrow: pip install -e '.[parquet]'") from e
    try:
      table = parquet.ParquetFile(file)
      names = table.schema_arrow.names
      for column in self.columns:
        if column not in names:
          self.row = 0
          raise self.missing(column, names)
      for batch in table.iter_batches(1024, columns=list(self.columns)):
        # A column is not decoded at once, because an error would not name the row.
        columns = [batch.column(column) for column in self.columns]
        for cells in zip(*columns, strict=True):
          self.end = self.size * self.row // table.metadata.num_rows
          yield self.parquet_values(cells)
          self.row += 1
    except InputError:
      raise
    except (ValueError, OSError) as e:
      raise self.error(f"the file is damaged: {printable(e)}") from e
    self.end = self.size

  def parquet_values(self, cells: tuple) -> tuple[str, ...]:
    return tuple(map(self.parquet_value, self.columns, cells))

  def parquet_value(self, column: str, cell) -> str:
    try:
      value = cell.as_py()
    except UnicodeDecodeError as e:
      raise self.encoding_error(e, column, "the column") from e
    if not isinstance(value, str):
      raise self.error(f"{column} must be a string, not {printable(value)}")
    return value
