"""Run a model on each row of a file: `--input`, `--output`, `--column` and `--part`."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyformer.cli import ray_cluster
from tinyformer.cli.errors import UsageError, describe
from tinyformer.cli.parquet_file import ParquetResultFile
from tinyformer.cli.pictures import FolderReader
from tinyformer.cli.result_file import ResultFile
from tinyformer.cli.result_formats import format_of
from tinyformer.cli.row_reader import Part, Row, RowReader
from tinyformer.progress import Bar, note
from tinyformer.tasks import InputError

# The largest number of rows and of characters that are read before their results are written.
CHUNK_ROWS = 1024
CHUNK_CHARACTERS = 4_000_000


class InvalidRowError(Exception):
  """A row has no result. problem: the reason."""

  def __init__(self, row: Row, problem: str):
    super().__init__(row, problem)
    self.row = row
    self.problem = problem


class RowTask(NamedTuple):
  """What to compute for each row of a file.

  function: the columns' values of some rows -> the result of each.
  name: what a result is called in the output.
  settings: the options that determine the results.
  columns: the columns of the input.
  fields, width: the fields of a result's named tuples, and their maximum number; see Csv.
  is_batched: whether many rows are faster than one at a time.
  reads_files: whether the input may be a folder, whose picture files are the rows.
  """

  function: Callable[[Sequence[tuple[str, ...]]], Sequence[Any]]
  name: str
  settings: dict[str, Any]
  columns: tuple[str, ...] = ("text",)
  fields: tuple[str, ...] = ()
  width: int = 0
  is_batched: bool = False
  reads_files: bool = False


# Yields some rows and their results, in order. Raises InvalidRowError for a row without a result.
ComputeRows = Callable[[Iterable[Row], RowTask], Iterator[tuple[Sequence[Row], Sequence[Any]]]]


def each(function: Callable[..., Any]) -> Callable[[Sequence[tuple[str, ...]]], list[Any]]:
  """Return a function of several rows that calls `function` for each row."""
  return lambda rows: [function(*values) for values in rows]


def model_name(name: str | None, folder: Path) -> str:
  """Return what identifies a model on any machine, if possible: its short name or its repository.

  A local folder is identified by its path.  name: the argument of -m.
  """
  if name is None or Path(name).exists():
    return str(folder.resolve())
  return name


def add_arguments(p: argparse.ArgumentParser, formats: str, columns: str) -> None:
  """Add the options that read rows from a file. formats, columns: for the help texts."""
  group = p.add_argument_group("files")
  group.add_argument(
    "--input",
    metavar="FILE",
    type=Path,
    help="read a text from each row of a .txt, .csv, .jsonl or .parquet file instead, or the "
    "pictures of a folder, and write to --output",
  )
  group.add_argument(
    "--output",
    metavar="FILE",
    type=Path,
    help=f"write a result for each row to a {formats} file; the same command continues a run that "
    "ended early",
  )
  group.add_argument("--column", metavar="NAME", default="text", help=columns)
  group.add_argument(
    "--part",
    metavar="I/N",
    type=part_argument,
    default=Part(),
    help="process every N-th row only, starting with row I, such as 2/8 (default: all rows)",
  )
  ray_cluster.add_arguments(group, "rows")


def part_argument(text: str) -> Part:
  try:
    return Part.parse(text)
  except ValueError as e:
    raise argparse.ArgumentTypeError(str(e)) from e


def check_arguments(args: argparse.Namespace, other_input: bool) -> None:
  """Raise UsageError if --input and --output do not fit together, or with another input."""
  if (args.input is None) != (args.output is None):
    raise UsageError("--input and --output need each other: pass both")
  if args.input is None:
    if args.part != Part():
      raise UsageError("--part needs a file: pass --input and --output")
    if args.ray is not None:
      raise UsageError("--ray needs a file: pass --input and --output")
    return
  ray_cluster.check_arguments(args)
  if other_input:
    raise UsageError("--input replaces texts from elsewhere: leave one of them out")
  if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
    raise UsageError(f"--output {args.output} would replace the input: name another file")


def run(args: argparse.Namespace, task: RowTask, compute_rows: ComputeRows | None = None) -> None:
  """Write the result of each row of --input to --output, and continue an earlier run.

  compute_rows: computes the results; None computes them in this process.
  """
  is_folder = task.reads_files and args.input.is_dir()
  keys = ("row", "file") if is_folder else ("row",)
  results_format = format_of(args.output, task.name, task.fields, task.width, keys)
  if is_folder:
    reader: RowReader = FolderReader(args.input, args.part)
  else:
    reader = RowReader(args.input, task.columns, args.part)
  settings = {
    **task.settings,
    "columns": task.columns,
    "part": f"{args.part.first}/{args.part.total}",
  }
  kind = ParquetResultFile if args.output.suffix == ".parquet" else ResultFile
  with kind(args.output, results_format, settings, args.input) as output:
    if output.rows and not args.quiet:
      note(f"{args.output} has {count_rows(output.rows)}: continuing after the last one")
    start = time.monotonic()
    first_row = output.rows
    bar = Bar(str(args.input), args.quiet)
    try:
      for end in write_results(reader, output, task, compute_rows or compute_chunks):
        rate = (output.rows - first_row) / max(time.monotonic() - start, 1e-9)
        bar(end, reader.size, f"{count_rows(output.rows)}, {rate:,.1f} rows/s")
      output.join()
    finally:
      bar.clear()
    new_rows = output.rows - first_row
    if not args.quiet and not new_rows:
      note(f"{args.input} has no new rows")
    elif not args.quiet:
      seconds = time.monotonic() - start
      note(
        f"{count_rows(new_rows)} in {seconds:,.1f} s: {new_rows / max(seconds, 1e-9):,.1f} rows/s"
      )
    if reader.has_grown and not args.quiet:
      note(f"{args.input} has grown: run the same command again for its new rows")


def count_rows(count: int) -> str:
  return f"{count:,} row" if count == 1 else f"{count:,} rows"


def write_results(
  reader: RowReader, output: ResultFile, task: RowTask, compute_rows: ComputeRows
) -> Iterator[int]:
  """Append the results of the rows after the existing ones.

  Yield the end of the last finished row in the input, in bytes, at the start and after each chunk.
  Raises InputError with the number of the first row that has no result.
  """
  rows = iter(reader)
  for _ in range(output.rows):
    row = next(rows, None)
    if row is None:
      raise UsageError(
        f"{reader.path} has fewer rows than {output.path}: the input has been changed. Name "
        "another output file"
      )
    output.add_to_hash(row)
  yield reader.end
  try:
    for part, results in compute_rows(rows, task):
      if part:
        output.append(part, results)
        yield part[-1].end
  except InvalidRowError as e:
    raise reader.row_error(e.row.number, e.row.line, e.problem) from e


def compute_chunks(
  rows: Iterable[Row], task: RowTask
) -> Iterator[tuple[Sequence[Row], Sequence[Any]]]:
  """Yield some rows and their results, in order.

  Raises InvalidRowError for a row without a result.
  """
  for chunk in chunks(rows, CHUNK_ROWS if task.is_batched else 1):
    yield from compute(chunk, task.function)


def chunks(
  rows: Iterable[Row], size: int, max_characters: int | None = None
) -> Iterator[list[Row]]:
  """Yield lists of at most `size` rows. The rows before an invalid row are yielded first.

  max_characters: a list has at most one row more than as many characters; None is CHUNK_CHARACTERS.
  """
  max_characters = max_characters or CHUNK_CHARACTERS
  chunk: list[Row] = []
  characters = 0
  try:
    for row in rows:
      chunk.append(row)
      characters += sum(map(len, row.values))
      if len(chunk) == size or characters > max_characters:
        yield chunk
        chunk = []
        characters = 0
  except (InputError, OSError):
    if chunk:
      yield chunk
    raise
  if chunk:
    yield chunk


def compute(
  rows: list[Row], function: Callable[[Sequence[tuple[str, ...]]], Sequence[Any]]
) -> Iterator[tuple[list[Row], Sequence[Any]]]:
  """Yield some rows and their results, in order.

  A row may be invalid, such as too long. Halve the rows then until it is found: the rows before it
  are yielded first. Raises InvalidRowError then.
  """
  try:
    results = function([row.values for row in rows])
  except (ValueError, OSError) as e:
    if len(rows) == 1:
      raise InvalidRowError(rows[0], describe(e)) from e
  else:
    yield rows, results
    return
  middle = len(rows) // 2
  yield from compute(rows[:middle], function)
  yield from compute(rows[middle:], function)
