"""Formats of files to which results are appended row by row: JSON Lines, CSV and npy."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from tinyformer.cli.errors import UsageError


class Format(Protocol):
  """How results are written."""

  def header(self, results: Sequence[Any]) -> bytes:
    """Return what a new file begins with. results: the first results."""

  def encode(self, keys: Sequence[tuple], results: Sequence[Any]) -> bytes:
    """Return the bytes of some results. keys: the key of each row (see Row)."""

  def complete(self, file: BinaryIO) -> tuple[int, int]:
    """Return the number of complete rows in a file, and the bytes up to the last one's end.

    Both are 0 if the header is not complete.
    """

  def update_header(self, file: BinaryIO, rows: int) -> None:
    """Write the number of rows to the header, if the header contains it."""


def to_json(value: Any) -> Any:
  """Return a result as JSON's types: a named tuple as an object, an array as a list."""
  if isinstance(value, np.ndarray):
    # The shortest decimal number that identifies a float32.
    return [float(str(x)) for x in value]
  if isinstance(value, tuple) and hasattr(value, "_asdict"):
    return value._asdict()
  if isinstance(value, list):
    return [to_json(item) for item in value]
  return value


def complete_records(file: BinaryIO, quoted_lines: bool) -> tuple[int, int]:
  """Return the number of complete records in a file, and the bytes up to the last one's end.

  quoted_lines: whether a record may have line breaks between quotation marks, as in CSV.
  """
  file.seek(0)
  records = 0
  position = end = 0
  in_quotes = False
  # A buffer of its own, because the file has none.
  for line in io.BufferedReader(io.FileIO(file.fileno(), closefd=False), 1 << 20):
    position += len(line)
    if quoted_lines and line.count(b'"') % 2:
      in_quotes = not in_quotes
    if line.endswith(b"\n") and not in_quotes:
      records += 1
      end = position
  return records, end


class JsonLines:
  """One JSON object per line: the key of the row, and its result under a name.

  keys: the names of the parts of a key.
  """

  def __init__(self, name: str, keys: Sequence[str] = ("row",)):
    self.name = name
    self.keys = keys

  def header(self, results: Sequence[Any]) -> bytes:
    return b""

  def encode(self, keys: Sequence[tuple], results: Sequence[Any]) -> bytes:
    objects = [
      dict(zip(self.keys, key, strict=True)) | {self.name: to_json(result)}
      for key, result in zip(keys, results, strict=True)
    ]
    lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in objects]
    return "".join(lines).encode(errors="replace")

  def complete(self, file: BinaryIO) -> tuple[int, int]:
    return complete_records(file, quoted_lines=False)

  def update_header(self, file: BinaryIO, rows: int) -> None:
    pass


class Csv:
  """One record per row, after a record with the names of the columns.

  A list of at most `width` named tuples has a column for each field of each of them, such as
  label_1, score_1, label_2. Any other list is a column with JSON, and an array has a column for
  each number.  keys: as in JsonLines.
  """

  def __init__(
    self,
    name: str,
    fields: Sequence[str] = (),
    width: int = 0,
    keys: Sequence[str] = ("row",),
  ):
    self.name = name
    self.fields = fields
    self.width = width
    self.keys = keys

  def header(self, results: Sequence[Any]) -> bytes:
    columns = [self.name]
    if self.fields:
      columns = [f"{field}_{i}" for i in range(1, self.width + 1) for field in self.fields]
    elif isinstance(results[0], np.ndarray):
      columns = [f"{self.name}_{i}" for i in range(1, len(results[0]) + 1)]
    return self.to_bytes([[*self.keys, *columns]])

  def encode(self, keys: Sequence[tuple], results: Sequence[Any]) -> bytes:
    pairs = zip(keys, results, strict=True)
    return self.to_bytes([*key, *self.cells(result)] for key, result in pairs)

  def cells(self, result: Any) -> list[Any]:
    if self.fields:
      cells = [value for item in result for value in item]
      return cells + [""] * (self.width * len(self.fields) - len(cells))
    value = to_json(result)
    if isinstance(result, np.ndarray):
      return value
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]

  def to_bytes(self, records: Iterable[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue().encode(errors="replace")

  def complete(self, file: BinaryIO) -> tuple[int, int]:
    records, end = complete_records(file, quoted_lines=True)
    return max(0, records - 1), end

  def update_header(self, file: BinaryIO, rows: int) -> None:
    pass


class Npy:
  """numpy's format: a header of fixed length with the shape (N, D), then the rows in float32."""

  # Enough for any number of rows.
  HEADER_BYTES = 128

  def make_header(self, rows: int, dim: int) -> bytes:
    start = np.lib.format.magic(1, 0)
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}".encode()
    length = self.HEADER_BYTES - len(start) - 2
    return start + length.to_bytes(2, "little") + shape.ljust(length - 1) + b"\n"

  def header(self, results: Sequence[Any]) -> bytes:
    return self.make_header(0, len(results[0]))

  def encode(self, keys: Sequence[tuple], results: Sequence[Any]) -> bytes:
    return np.stack(results).astype("<f4").tobytes()

  def dim(self, file: BinaryIO) -> int:
    """Return the number of columns, or 0 if the header is not complete.

    Raises UsageError if the file is not one that this class wrote.
    """
    file.seek(0)
    start = file.read(self.HEADER_BYTES)
    if len(start) < self.HEADER_BYTES:
      return 0
    try:
      header = io.BytesIO(start)
      np.lib.format.read_magic(header)
      (_, dim), _, dtype = np.lib.format.read_array_header_1_0(header)
    except ValueError as e:
      raise UsageError(f"{getattr(file, 'name', 'the file')} is not a valid .npy file: {e}") from e
    if dtype != np.dtype("<f4") or dim < 1 or header.tell() != self.HEADER_BYTES:
      raise UsageError("the .npy file was not written by this command: name another file")
    return dim

  def complete(self, file: BinaryIO) -> tuple[int, int]:
    dim = self.dim(file)
    if not dim:
      return 0, 0
    size = os.fstat(file.fileno()).st_size
    rows = (size - self.HEADER_BYTES) // (4 * dim)
    return rows, self.HEADER_BYTES + rows * 4 * dim

  def update_header(self, file: BinaryIO, rows: int) -> None:
    dim = self.dim(file)
    file.seek(0)
    file.write(self.make_header(rows, dim))


def format_of(
  path: Path,
  name: str,
  fields: Sequence[str] = (),
  width: int = 0,
  keys: Sequence[str] = ("row",),
) -> Format:
  """Return the format for a file's suffix. Rows of a .parquet file are JSON Lines at first.

  name: what the results are, such as "predictions".  fields, width, keys: see Csv.  Raises
  UsageError for another suffix, and for .npy unless the results are embeddings.
  """
  if path.suffix in (".jsonl", ".parquet"):
    return JsonLines(name, keys)
  if path.suffix == ".csv":
    return Csv(name, fields, width, keys)
  if path.suffix == ".npy" and name == "embedding":
    return Npy()
  if path.suffix == ".npy":
    raise UsageError(f"{path}: only embeddings are written to .npy files: use .jsonl or .csv")
  raise UsageError(f"{path} must be a .jsonl, .csv or .parquet file, or .npy for embeddings")
