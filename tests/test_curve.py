import pytest
import curve

LOG = ["step,tokens,learned,held_out,bits_per_byte,seconds", "10,640,4.0,4.1,1,1", "20,1280,2.0,2.5,1,1", "30,1920,1.0,2.1,1,1"]

def test_a_log_is_read_up_to_a_step(tmp_path):
  (tmp_path / "log.csv").write_text("\n".join(LOG) + "\n")
  assert curve.rows(tmp_path / "log.csv", 20) == LOG[:3] and curve.rows(tmp_path / "none.csv", 0) == LOG[:1]
  assert curve.losses(LOG) == ([10, 20, 30], [4.0, 2.0, 1.0], [4.1, 2.5, 2.1])

def test_a_curve_in_blocks_falls_as_its_values_do():
  top, middle, foot, axis = curve.blocks([10, 20, 30], [4.0, 2.0, 0.0], width=5, height=3).split("\n")
  assert top == "  4.000 █▂   " and middle == "        ██▅  " and foot == "  0.000 ███▇▁" and axis == "   step 10 30"
  assert "▁▁▁" in curve.blocks([10], [3.0])   # one value is a line

def test_the_picture_is_a_png(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  assert curve.picture(LOG, tmp_path / "loss.png")
  assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1

def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
  assert not curve.picture(LOG, tmp_path / "loss.png") and not list(tmp_path.iterdir())
