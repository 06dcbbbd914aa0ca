"""Find the texts of a corpus that are most similar to a query: `--nearest` and `--corpus`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.cli.arguments import MAX_COUNT, number
from tinyformer.cli.errors import UsageError
from tinyformer.cli.result_file import read_run
from tinyformer.cli.row_reader import Part, RowReader, TextHash
from tinyformer.files import check_regular
from tinyformer.tasks.nearest import nearest_vectors


def add_arguments(p: argparse.ArgumentParser) -> None:
  """Add the options that search a corpus."""
  group = p.add_argument_group("search")
  group.add_argument(
    "--nearest",
    metavar="N",
    type=number(int, 1, MAX_COUNT),
    help="print the N texts of --corpus that are most similar to each text, by cosine similarity",
  )
  group.add_argument(
    "--corpus", metavar="FILE", type=Path, help="embeddings that --output wrote to a .npy file"
  )
  group.add_argument(
    "--texts",
    metavar="FILE",
    type=Path,
    help="texts of the corpus (default: the file from which the corpus was made)",
  )


def check_arguments(args: argparse.Namespace) -> None:
  """Raise UsageError if an option lacks another one that it needs."""
  if (args.nearest is None) != (args.corpus is None):
    raise UsageError("--nearest and --corpus need each other: pass both")
  if args.texts is not None and args.corpus is None:
    raise UsageError("--texts needs --corpus")
  if args.corpus is not None and args.input is not None:
    raise UsageError("--nearest searches for texts on the command line, not in --input")


class Corpus:
  """Embeddings in a .npy file, and the texts from which they were made.

  Raises UsageError if the file has no embeddings, or those of another model.
  """

  def __init__(self, path: Path, texts: Path | None, model: str):
    check_regular(path)
    try:
      self.vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as e:
      raise UsageError(f"{path} is not a valid .npy file: make it with --output") from e
    if self.vectors.ndim != 2 or self.vectors.dtype.kind != "f" or not self.vectors.size:
      raise UsageError(
        f"{path} must have rows of floats, not the shape {self.vectors.shape} of "
        f"{self.vectors.dtype}: make it with --output"
      )
    self.path = path
    run = read_run(path)
    self.hash = run.hash if run and run.rows == len(self.vectors) else None
    self.settings: dict[str, Any] = run.settings if run else {}
    if self.settings.get("model", model) != model:
      raise UsageError(
        f"{path} has embeddings of {self.settings['model']}, not of {model}: use the same model"
      )
    self.texts = texts or (Path(run.input) if run else None)

  def find(self, query: np.ndarray, count: int) -> Iterator[tuple[float, str]]:
    """Yield the `count` largest cosine similarities with a vector (D), and their texts.

    If the corpus has no texts, yield the numbers of the rows instead.
    """
    if len(query) != self.vectors.shape[1]:
      raise UsageError(
        f"{self.path} has vectors of {self.vectors.shape[1]:,} numbers, but the model's have "
        f"{len(query):,}: use the model that made the corpus"
      )
    found = nearest_vectors(self.vectors, query, count)
    texts = self.texts_of({i for i, _ in found})
    for i, similarity in found:
      yield similarity, texts.get(i, f"row {i + 1}")

  def texts_of(self, indices: set[int]) -> dict[int, str]:
    """Return some texts of the corpus by index, or {} if the corpus has no texts.

    Raises UsageError if there is another number of texts, or if they have been changed.
    """
    if self.texts is None:
      return {}
    columns = self.settings.get("columns", ["text"])
    part = Part.parse(self.settings.get("part", "1/1"))
    total = len(self.vectors)
    result = {}
    hashed = TextHash()
    rows = RowReader(self.texts, columns, part)
    count = 0
    for count, row in enumerate(rows, 1):
      if count <= total:
        hashed.add(row)
      if count - 1 in indices:
        result[count - 1] = row.values[0]
    if count < total or (self.hash is not None and hashed.digest() != self.hash):
      raise UsageError(
        f"{self.texts} has other texts than those from which {self.path} was made: make the corpus "
        "again, or pass the file with --texts"
      )
    return result
