"""Bugs planted in tinyformer/cli; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "the remaining time ignores that a run was resumed",
    "tinyformer/cli/progress.py",
    "Bar.__call__",
    "/ (done - self.initial) * (total - done)",
    "/ max(1, done) * (total - done)",
    "cli",
  ),
]
