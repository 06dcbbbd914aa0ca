"""Bugs planted in what reads rows from files and writes results; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "an incomplete last row is kept",
    "tinyformer/cli/result_file.py",
    "ResultFile.cut_off_incomplete_row",
    "self.file.truncate(end)",
    "",
    "file_runs",
  ),
  Bug(
    "results of another model are appended",
    "tinyformer/cli/result_file.py",
    "ResultFile.read_run",
    "if self.run.settings.get(name) != old.settings.get(name):",
    "if False:",
    "file_runs",
  ),
  Bug(
    "results of another text are kept",
    "tinyformer/cli/result_file.py",
    "ResultFile.add_to_hash",
    "is_changed = self.hash.digest() != self.run.hash",
    "is_changed = False",
    "file_runs",
  ),
  Bug(
    "a line break between quotation marks ends a CSV record",
    "tinyformer/cli/result_formats.py",
    "complete_records",
    "if quoted_lines and line.count",
    "if False and line.count",
    "file_runs",
  ),
  Bug(
    "parts overlap",
    "tinyformer/cli/row_reader.py",
    "Part.contains",
    "row % self.total == self.first % self.total",
    "row % self.total <= self.first % self.total",
    "file_runs",
  ),
  Bug(
    "an incomplete last line of a growing file is processed",
    "tinyformer/cli/row_reader.py",
    "RowReader.lines",
    "self.has_grown = True\n        return",
    "self.has_grown = True",
    "file_runs",
  ),
  Bug(
    "the rows before an invalid row are lost",
    "tinyformer/cli/file_run.py",
    "chunks",
    "if chunk:\n      yield chunk\n    raise",
    "raise",
    "file_runs",
  ),
  Bug(
    "predictions of a batch are in the order of the texts' lengths",
    "tinyformer/tasks/text_classification.py",
    "classify_texts",
    "for i in range(len(texts))",
    "for i in outputs",
    "file_runs",
  ),
]
