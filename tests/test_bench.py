"""bench.py's table, and what it does about a peer that fails. Its figures take half an hour: no test measures them."""

import pytest

import bench

OURS, THEIRS = "tinyformer float32", "torch float32"


@pytest.mark.parametrize(
  "figure, ours, theirs, times",
  [
    ("decode after 8", [30, 40, 50], [20, 25, 90], "1.60"),
    ("peak memory, MB", [500], [1000], "2.00"),
    ("training step, ms", [50, 60, 70], [30, 30, 90], "0.50"),
    ("first token, warm, s", [], [1.0], "–"),
  ],
)
def test_the_ratio_is_of_medians_and_above_one_where_ours_is_better(figure, ours, theirs, times):
  results = {OURS: {figure: ours} if ours else {}, THEIRS: {figure: theirs}}
  assert bench.ratio(figure, results, [OURS], [THEIRS]) == times


def test_the_table_tells_medians_spreads_and_shares():
  machine = {"all cores read, GB/s": 20.0, "matrix product, GFLOP/s": 250.0}
  table = bench.table(
    {
      OURS: {"decode after 8": [20, 10, 30], "installed, MB": 123.0},
      THEIRS: {"installed, MB": 1120.0},
    },
    machine,
  )
  assert "| decode after 8 | 20.0 (10.0–30.0) 50% | – | – |" in table  # a step reads 0.498 GB
  assert "| installed, MB | 123 | 1,120 | 9.11 |" in table


def test_a_peer_that_fails_is_told_and_the_others_go_on(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(bench.PEERS, "nosuch float32", ("nosuch", [], [1]))
  turns = []
  monkeypatch.setattr(
    bench.Process,
    "take_turn",
    lambda run, figure, take=bench.Process.take_turn: (
      turns.append(run.name) or (take(run, figure) if "nosuch" in run.name else [float(len(turns))])
    ),
  )
  found = bench.rounds("speeds", ["nosuch float32", OURS], tmp_path, ["decode after 8"], 3, warm=1)
  assert turns == ["nosuch float32", *[OURS] * 4] and found == {
    "nosuch float32": {},
    OURS: {"decode after 8": [3.0, 4.0, 5.0]},
  }
  assert "nosuch float32: KeyError: 'nosuch'\n" in capsys.readouterr().err
