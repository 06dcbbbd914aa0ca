"""attend.py as a user runs it."""
import numpy as np
import pytest
from conftest import FIXTURES, ROOT
import attend, console

TINY = str(ROOT / "weights" / "tiny")

def run(capsys, *argv):
  """(exit status, standard output, standard error)"""
  try: status = console.run(lambda: attend.main([*argv]))
  except SystemExit as e: status = e.code
  said = capsys.readouterr()
  return status, said.out, said.err

def test_shades_are_of_the_rows_largest():
  assert attend.shaded(np.array([0.5, 0.25, 0.25, 0.0])) == "█▒▒ " and attend.shaded(np.array([0.01, 0.04])) == "░█" and attend.shaded(np.zeros(2)) == "  "

def test_every_layer_and_head_is_shown(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  status, out, err = run(capsys, "-p", "the man and the woman")
  heads = [line for line in out.splitlines() if line.startswith("layer")]
  assert status == 0 and not err and heads[0] == "layer 0, heads 0, 1, 2, 3" and len(heads) == 4
  assert len(out.splitlines()) == 4 * (1 + 5 + 1) and max(map(attend.wide, out.splitlines())) <= 60
  assert run(capsys, "-p", "the man and the woman", "--layer", "2", "--head", "1")[1].count("\n") == 7

def test_what_a_terminal_could_not_show_is_a_dot(capsys):
  out = run(capsys, "-p", "a\x1b[31m\tשלום </script> 😀中", "--layer", "0")[1]
  assert all(c.isprintable() or c == "\n" for c in out) and "ש" not in out and "sc ▏" in out

@pytest.mark.parametrize("argv, message", [
  (["-p", "word " * 300], "--last 256 shows its end"), (["-p", "a", "--layer", "4"], "layers 0 to 3"), (["-p", "a", "--head", "9"], "heads 0 to 3"),
  (["-p", ""], "the prompt is empty"), (["-p", "a", "-m", str(FIXTURES / "t5-a")], "neither a decoder nor an encoder")])
def test_bad_input_is_a_line_and_exit_status_2(capsys, argv, message):
  status, out, err = run(capsys, *argv)
  assert (status, out) == (2, "") and message in err and err.count("\n") == 1

def test_the_last_tokens_of_a_long_text_can_be_seen(capsys):
  status, out, _ = run(capsys, "-p", "word " * 300, "--last", "6", "--layer", "1", "--head", "0")
  assert status == 0 and out.count("\n") == 8
