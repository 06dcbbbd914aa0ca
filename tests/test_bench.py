"""Test bench.py's table and its handling of a peer that fails.

A full benchmark takes half an hour, so no test runs one.
"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

import bench

OURS = "tinyformer float32"
PEER = "torch float32"


@pytest.mark.parametrize(
  "figure, ours, peer, expected",
  [
    ("decode after 8 tokens", [30, 40, 50], [20, 25, 90], "1.60"),
    ("peak memory, MB", [500], [1000], "2.00"),
    ("training step, ms", [50, 60, 70], [30, 30, 90], "0.50"),
    ("first token, warm cache, s", [], [1.0], "–"),
  ],
)
def test_ratio_compares_medians_and_exceeds_one_if_ours_is_better(figure, ours, peer, expected):
  results = {OURS: {figure: ours} if ours else {}, PEER: {figure: peer}}
  assert bench.ratio(figure, results, [OURS], [PEER]) == expected


def test_table_shows_medians_ranges_and_percentages_of_the_limit():
  machine = {"all cores read, GB/s": 20.0, "matrix product, GFLOP/s": 250.0}
  table = bench.table(
    {
      OURS: {"decode after 8 tokens": [20, 10, 30], "installed, MB": 123.0},
      PEER: {"installed, MB": 1120.0},
    },
    machine,
  )
  # Each decoding step reads 0.498 GB of weights.
  assert "| decode after 8 tokens | 20.0 (10.0–30.0) 50% | – | – |" in table
  assert "| installed, MB | 123 | 1,120 | 9.11 |" in table


def test_minigrad_runs_every_measurement_on_numpy(tmp_path):
  """Run the real measurements in processes of their own, with a small model."""
  name, folder = "minigrad float32", ROOT / "weights" / "tiny"
  code = f"""
import bench, pathlib
bench.NEW_TOKENS, bench.random_ids = 2, lambda b, n: bench.np.zeros((b, n), int)
measure = bench.speeds({name!r}, pathlib.Path({str(folder)!r}), 1)
print(measure("decode, batch 8"), measure("prefill 9"))
import tinygrad, minigrad
assert tinygrad is minigrad
"""
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  first_token = bench.first_token_code("minigrad", "float32", folder)
  result = subprocess.run([sys.executable, "-c", first_token], cwd=ROOT, capture_output=True)
  assert (result.returncode, result.stderr) == (0, b"")


def test_a_training_step_on_minigrad_takes_milliseconds():
  code = (
    "import bench\nprint(bench.training('minigrad float32', bench.Path(), 1)('training step, ms'))"
  )
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert len(json.loads(result.stdout)) == 4, result.stderr


def test_failing_peer_is_reported_and_other_peers_are_still_measured(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(bench.PEERS, "nosuch float32", ("nosuch", [], [1]))
  measure = bench.Process.measure
  calls = []

  def measure_or_count(process, figure):
    calls.append(process.name)
    return measure(process, figure) if "nosuch" in process.name else [float(len(calls))]

  monkeypatch.setattr(bench.Process, "measure", measure_or_count)
  names = ["nosuch float32", OURS]
  figures = ["decode after 8 tokens"]
  schedule = bench.Schedule(repeat=3, warmup=1)
  results = bench.measure_in_rounds("speeds", names, tmp_path, figures, schedule)
  assert calls == ["nosuch float32", *[OURS] * 4]
  assert results == {
    "nosuch float32": {},
    OURS: {"decode after 8 tokens": [3.0, 4.0, 5.0]},
  }
  assert "nosuch float32: KeyError: 'nosuch'\n" in capsys.readouterr().err
