from pathlib import Path

import pytest

from tinyformer import cli
from tinyformer.training import plot_loss

LOG = [
  "step,tokens,learned,held_out,bits_per_byte,seconds",
  "10,640,4.0,4.1,1,1",
  "20,1280,2.0,2.5,1,1",
  "30,1920,1.0,2.1,1,1",
]


def test_a_log_is_read_up_to_a_step(tmp_path):
  (tmp_path / "log.csv").write_text("\n".join(LOG) + "\n")
  assert (
    plot_loss.rows(tmp_path / "log.csv", 20) == LOG[:3]
    and plot_loss.rows(tmp_path / "none.csv", 0) == LOG[:1]
  )
  assert plot_loss.losses(LOG) == ([10, 20, 30], [4.0, 2.0, 1.0], [4.1, 2.5, 2.1])


def test_a_curve_in_blocks_falls_as_its_values_do():
  top, middle, foot, axis = plot_loss.blocks(
    [10, 20, 30], [4.0, 2.0, 0.0], width=5, height=3
  ).split("\n")
  assert (
    top == "  4.000 █▂   "
    and middle == "        ██▅  "
    and foot == "  0.000 ███▇▁"
    and axis == "   step 10 30"
  )
  assert "▁▁▁" in plot_loss.blocks([10], [3.0])  # one value is a line


def test_the_picture_is_a_png(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  assert plot_loss.picture(
    LOG, tmp_path / "loss.png", [("another", [10, 20], [4, 3]), ("one", [30], [2])]
  )
  assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and len(
    list(tmp_path.iterdir())
  ) == 1


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
  assert not plot_loss.picture(LOG, tmp_path / "loss.png") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["no points", "a=1", "a=1:2,3", "a=x:2", "a=1:2:3"])
def test_points_of_another_run_are_steps_and_losses(wrong, capsys):
  assert plot_loss.points("nanoGPT's README=2000:1.88") == (
    "nanoGPT's README",
    [2000],
    [1.88],
  ) and plot_loss.points("b=1:2,3:4.5")[1:] == ([1, 3], [2, 4.5])
  with pytest.raises(SystemExit) as e:
    plot_loss.main(["log.csv", "--points", wrong])
  assert e.value.code == 2 and "is not NAME=STEP:LOSS" in capsys.readouterr().err


def test_the_command_draws_a_log(tmp_path, capsys, monkeypatch):
  (tmp_path / "log.csv").write_text("\n".join(LOG) + "\n")
  main = lambda *more: plot_loss.main([str(tmp_path / "log.csv"), *more])
  assert (
    main() == 0
    and capsys.readouterr().out == plot_loss.blocks([10, 20, 30], [4.1, 2.5, 2.1]) + "\n"
  )
  drawn = []
  monkeypatch.setattr(plot_loss, "picture", lambda *what: drawn.append(what) or len(drawn) == 1)
  assert main("-o", "a.png", "--points", "b=1:2", "--points", "c=3:4,5:6") == 0
  assert drawn[0] == (LOG, Path("a.png"), [("b", [1], [2]), ("c", [3, 5], [4, 6])])
  with pytest.raises(cli.UsageError, match="plot"):
    main("-o", "a.png")  # no matplotlib
  for wrong, said in (
    ("step\n", "has no losses"),
    ("step\n1,2\n", "is no log"),
    ("step\na,b,c,d\n", "is no log"),
  ):
    (tmp_path / "log.csv").write_text(wrong)
    with pytest.raises(cli.UsageError, match=said):
      main()
  (tmp_path / "log.csv").unlink()
  with pytest.raises(cli.UsageError, match="cannot be read"):
    main()
