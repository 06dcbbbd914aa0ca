"""What the commands share: the progress bar and the help formatter."""

import argparse
import re
import sys

import pytest

from tinyformer import cli
from tinyformer.cli import progress


def test_remaining_time_is_estimated_from_the_progress_since_the_first_call(monkeypatch, capsys):
  """A run is resumed at step 500 of 1,000, at 1 s per step; then the bar shows a second task."""
  now = iter([100.0, 101.0, 200.0, 599.0, 600.0, 700.0, 710.0])
  monkeypatch.setattr(progress, "fancy", lambda _: True)
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
  bar = cli.Bar("train")
  for done, total in (
    (500, 1000),
    (501, 1000),
    (600, 1000),
    (999, 1000),
    (1000, 1000),
    (0, 50),
    (10, 50),
  ):
    bar(done, total)
  assert re.findall(r"(\S+)  (\S+) left", capsys.readouterr().err) == [
    ("50%", "?"),
    ("50%", "8:19"),
    ("60%", "6:40"),
    ("100%", "0:01"),
    ("100%", "0:00"),
    ("0%", "?"),
    ("20%", "0:40"),
  ]


def test_control_characters_are_escaped_only_for_a_terminal(monkeypatch, capsys):
  text = "a\x1b[31mb\x07\x9bc\r\tété\n"
  cli.write(text)
  assert capsys.readouterr().out == text
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  cli.write(text)
  cli.note(text)
  captured = capsys.readouterr()
  assert captured.out == "a\\x1b[31mb\\x07\\x9bc\\x0d\tété\n"
  assert captured.err == captured.out + "\n"


@pytest.mark.parametrize(
  "options, expected",
  [
    ({"default": 7, "help": "size"}, "size (default: 7)"),
    ({"default": 0, "help": "size"}, "size (default: 0)"),
    ({"default": 7, "help": "size (default: %(default)s)"}, "size (default: 7)"),
    ({"default": None, "help": "size (default: the model's)"}, "size (default: the model's)"),
    ({"default": None, "help": "size"}, "size"),
    ({"default": [], "action": "append", "help": "size"}, "size"),
    ({"action": "store_true", "help": "size"}, "size"),
  ],
)
def test_help_shows_a_default_once_and_neither_none_nor_false(options, expected):
  parser = argparse.ArgumentParser(formatter_class=cli.HelpFormatter)
  parser.add_argument("-x", **options)
  line = parser.format_help().splitlines()[-1]
  assert re.fullmatch(r" +-x( X)? +(.*)", line)[2] == expected
