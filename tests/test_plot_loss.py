"""The log of a training run: reading it, and plotting it as a PNG file and in the terminal."""

import sys
from pathlib import Path

import pytest

from tinyformer import cli
from tinyformer.cli import plot_loss as command
from tinyformer.training import plot_loss
from tinyformer.training.log import TrainingLog, parse_losses, read_log

LOG = [
  "step,tokens,train_loss,val_loss,bits_per_byte,seconds",
  "10,640,4.0,4.1,1,1",
  "20,1280,2.0,2.5,1,1",
  "30,1920,1.0,2.1,1,1",
]


def test_a_log_is_read_up_to_a_step(tmp_path):
  (tmp_path / "log.csv").write_text("\n".join(LOG) + "\n")
  assert read_log(tmp_path / "log.csv", 20) == LOG[:3]
  assert read_log(tmp_path / "none.csv", 0) == LOG[:1]
  assert parse_losses(LOG) == ([10, 20, 30], [4.0, 2.0, 1.0], [4.1, 2.5, 2.1])


def test_the_log_of_a_resumed_run_continues_after_the_saved_step(tmp_path):
  """The line of step 30 was written by a run that was killed before it saved."""
  file = tmp_path / "log.csv"
  file.write_text("\n".join(LOG) + "\n")
  log = TrainingLog(file, 20)
  assert log.contains(20)
  log.add(25, 1600, (1.5, 2.25, 3.0), 7.4)
  assert log.contains(25)
  assert not log.contains(2)
  log.write()
  assert file.read_text().splitlines() == [*LOG[:3], "25,1600,1.5000,2.2500,3.0000,7"]


def test_the_terminal_plot_spans_the_range_of_the_values():
  lines = plot_loss.terminal_plot([10, 20, 30], [4.0, 2.0, 0.0], width=5, height=3).split("\n")
  assert lines == [
    "  4.000 █▂   ",
    "        ██▅  ",
    "  0.000 ███▇▁",
    "   step 10 30",
  ]


def test_the_terminal_plot_of_one_value_is_a_horizontal_line():
  assert "▁▁▁" in plot_loss.terminal_plot([10], [3.0])


def test_the_plot_is_a_png_file(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  other_runs = [("another", [10, 20], [4, 3]), ("one", [30], [2])]
  assert plot_loss.plot(LOG, tmp_path / "loss.png", other_runs)
  assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
  assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_without_matplotlib(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  assert not plot_loss.plot(LOG, tmp_path / "loss.png")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "invalid", ["no points", "a=1", "a=1:2,3", "a=x:2", "a=1:2:3", "a=1:2,3:4:5"]
)
def test_points_of_another_run_must_be_steps_and_losses(invalid, capsys):
  name, steps, losses = command.parse_points("nanoGPT's README=2000:1.88")
  assert (name, steps, losses) == ("nanoGPT's README", [2000], [1.88])
  assert command.parse_points("b=1:2,3:4.5")[1:] == ([1, 3], [2, 4.5])
  with pytest.raises(SystemExit) as e:
    command.main(["log.csv", "--points", invalid])
  assert e.value.code == 2
  assert "is not NAME=STEP:LOSS" in capsys.readouterr().err


@pytest.fixture
def log_file(tmp_path):
  """Return the path of a file with the lines of LOG."""
  file = tmp_path / "log.csv"
  file.write_text("\n".join(LOG) + "\n")
  return file


def test_the_command_plots_the_validation_loss_in_the_terminal(log_file, capsys):
  assert command.main([str(log_file)]) == 0
  expected = plot_loss.terminal_plot([10, 20, 30], [4.1, 2.5, 2.1])
  assert capsys.readouterr().out == expected + "\n"


def test_the_command_plots_a_png_file_with_the_points_of_other_runs(log_file, monkeypatch):
  calls = []
  monkeypatch.setattr(plot_loss, "plot", lambda *args: calls.append(args) or len(calls) == 1)
  options = ["-o", "a.png", "--points", "b=1:2", "--points", "c=3:4,5:6"]
  assert command.main([str(log_file), *options]) == 0
  assert calls[0] == (LOG, Path("a.png"), [("b", [1], [2]), ("c", [3, 5], [4, 6])])
  # The second call returns False, as without matplotlib.
  with pytest.raises(cli.UsageError, match="plot"):
    command.main([str(log_file), "-o", "a.png"])


@pytest.mark.parametrize(
  "content, message",
  [
    ("step\n", "has no losses"),
    ("step\n1,2\n", "is not a log"),
    ("step\na,b,c,d\n", "is not a log"),
    (None, "cannot read"),
  ],
)
def test_an_invalid_log_is_a_usage_error(tmp_path, content, message):
  file = tmp_path / "log.csv"
  if content is not None:
    file.write_text(content)
  with pytest.raises(cli.UsageError, match=message):
    command.main([str(file)])
