"""Picture files of a folder, as inputs of a command and as rows of `--input`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyformer.cli.errors import UsageError
from tinyformer.cli.row_reader import Part, Row, RowReader

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def pictures_in(folder: Path) -> list[Path]:
  """Return the picture files of a folder, sorted by name. Raises UsageError if there is none."""
  files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()]
  if not files:
    raise UsageError(f"{folder} has no picture files: their names end in {', '.join(SUFFIXES)}")
  return sorted(files)


def expand_folders(names: Sequence[str]) -> list[str]:
  """Return names of files, with the pictures of a folder in the place of its name."""
  return [
    str(file)
    for name in names
    for file in (pictures_in(Path(name)) if Path(name).is_dir() else [name])
  ]


class FolderReader(RowReader):
  """The picture files of a folder as rows with one column: the name of the file.

  `size` and `end` are numbers of files, not of bytes. Raises UsageError if there are no pictures.
  """

  def __init__(self, path: Path, part: Part | None = None):
    self.path = path
    self.part = part or Part()
    self.names = [file.name for file in pictures_in(path)]
    self.size = len(self.names)
    self.end = 0
    self.has_grown = False

  def __iter__(self) -> Iterator[Row]:
    for number, name in enumerate(self.names, 1):
      self.end = number
      if self.part.contains(number):
        yield Row(number, 0, (name,), number, name)
