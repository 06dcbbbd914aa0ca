"""What the commands share: the progress bar and the help formatter."""

import argparse
import errno
import importlib
import os
import re
import sys

import pytest
from conftest import FIXTURES

from tinyformer import cli, files, progress
from tinyformer.cli import errors


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


def test_a_value_in_an_error_message_is_printable_and_short():
  for character in "\x1b\x07\x9b\n\t\u202e":
    assert files.printable(f"a{character}é") == f"a{repr(character)[1:-1]}é"
  shown = files.printable("x" * 1000, limit=50)
  assert shown.startswith("xxxx") and len(shown) < 60


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


# errors of the system


def run_command(command: str, capsys) -> str:
  """Run a command that must fail in this process, and return its last line on standard error."""
  name, *arguments = command.split()
  module = importlib.import_module(name)
  assert cli.run(lambda: module.main(arguments)) in (1, 2)
  return capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize(
  "command",
  [
    "train {} -o out",
    "evaluate {} -m tiny",
    "ask -m vit {}",
    "attend -m vit --picture {}",
    "attend -m tiny -p Once --html {}/page.html",
    "attend -m tiny -p Once --png {}/picture.png",
    "gpt -m {} -p Once",
    "tinyformer.cli.plot_loss {}",
  ],
)
def test_commands_name_a_file_that_cannot_be_used_and_show_no_error_number(
  command, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  for file in (FIXTURES / "vit-a").iterdir():
    (tmp_path / "vit").mkdir(exist_ok=True)
    (tmp_path / "vit" / file.name).symlink_to(file)
  (tmp_path / "vit" / "preprocessor_config.json").write_text("{}")
  (tmp_path / "file").touch()
  (tmp_path / "loop").symlink_to("loop")
  for path in ("missing", "file/sub", "x" * 300, "loop"):
    message = run_command(command.format(path), capsys)
    assert message.startswith("error: ") and "Errno" not in message
    assert path[:50] in message


@pytest.mark.parametrize(
  "number, message",
  [
    (errno.ENOENT, "a.txt does not exist"),
    (errno.EACCES, "access to a.txt is denied"),
    (errno.ENOSPC, "a.txt does not fit on its disk, which is full"),
    (errno.EROFS, "a.txt is on a disk that is read-only"),
    (errno.EISDIR, "a.txt is a folder"),
    (errno.EIO, f"a.txt: {os.strerror(errno.EIO)}"),
  ],
)
def test_system_errors_are_put_into_words(number, message):
  error = OSError(number, os.strerror(number), "a.txt")
  assert errors.describe(error).startswith(message)
  # The system names no file if a write fails.
  without_name = errors.describe(OSError(number, os.strerror(number)))
  assert "Errno" not in without_name and "None" not in without_name


def test_failed_write_names_the_file_and_not_the_temporary_one(tmp_path):
  def fail():
    with files.atomic_write(tmp_path / "a.txt"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with pytest.raises(OSError) as error:
    fail()
  assert error.value.filename == str(tmp_path / "a.txt")
  with pytest.raises(FileNotFoundError) as error:
    files.write_text(tmp_path / "none" / "a.txt", "")
  assert error.value.filename == str(tmp_path / "none" / "a.txt")


def test_folder_is_not_written_to_as_a_file(tmp_path):
  with pytest.raises(IsADirectoryError), files.atomic_write(tmp_path):
    pytest.fail("the folder was accepted")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "command, option, value",
  [
    ("gpt", "-N", "100000"),
    ("gpt", "-n", "10000000000"),
    ("gpt", "-t", "inf"),
    ("gpt", "-t", "nan"),
    ("gpt", "-t", "1e400"),
    ("gpt", "-k", "9" * 5000),
    ("gpt", "--top-p", "0"),
    ("gpt", "-s", "-1"),
    ("ask", "-b", "1000"),
    ("ask", "-k", "1.5"),
    ("attend", "--last", "0"),
    ("evaluate", "--stride", "1e3"),
    ("train", "--layers", "1000000"),
    ("train", "--batch", "10000000"),
    ("train", "--clip", "inf"),
    ("bench", "--repeat", "0"),
  ],
)
def test_a_number_beyond_the_limits_is_refused_with_the_limits(command, option, value, capsys):
  module = importlib.import_module(command)
  parse = getattr(module, "parse_arguments", None) or module.main
  with pytest.raises(SystemExit) as e:
    parse([option, value])
  assert e.value.code == 2
  message = capsys.readouterr().err.splitlines()[-1]
  assert re.search(r"is not a number from [\d.,e-]+ to [\d.,]+$", message)
  assert len(message) < 200
