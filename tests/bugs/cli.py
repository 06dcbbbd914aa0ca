"""Bugs planted in tinyformer/cli; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "time left as if it had begun at nothing",
    "tinyformer/cli/__init__.py",
    "Bar.__call__",
    "/ (done - begun) * (total - done)",
    "/ max(1, done) * (total - done)",
    "cli",
  ),
]
