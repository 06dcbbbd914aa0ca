"""experiments/shapes.py: shapes, their FLOPs and, in the slow suite, the command."""

import argparse
import csv
import importlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT

from experiments import shapes
from tinyformer import cli


def test_a_shape_is_parsed_and_its_flops_are_counted():
  shape = shapes.parse_shape("300:2:3:12:1e-2")
  assert shape == (300, 2, 3, 12, 0.01)
  assert str(shape) == "300-2x12"
  # A dot product of K numbers is 2 K FLOPs. Attention is over 16 tokens, half of them masked.
  matmuls = 2 * (2 * (4 * 12 * 12 + 2 * 12 * 48) + 300 * 12)
  attention = 2 * 2 * (2 * 12 * 16) / 2
  # The backward pass of a matmul is two more matmuls.
  assert shape.flops_per_token(16) == 3 * (matmuls + attention)
  for wrong in ("300:2:3:12", "300:2:3:twelve:1e-2", "300:0:3:12:1e-2"):
    with pytest.raises(argparse.ArgumentTypeError):
      shapes.parse_shape(wrong)


def write_tales(path):
  """Write 60 documents of random words."""
  rng = random.Random(0)
  words = ["the", "king", "queen", "had", "saw", "a", "golden", "ball", "horse", "and", "in"]
  words.append("wood")
  documents = [" ".join(rng.choice(words) for _ in range(60)) for _ in range(60)]
  path.write_text("<|endoftext|>".join(documents))


OPTIONS = ["--context", "16", "--batch", "4", "--max-chars-per-document", "200"]
OPTIONS += ["--shape", "300:1:2:16:1e-2", "--shape", "300:2:2:16:1e-2"]


@pytest.mark.slow
def test_each_shape_is_trained_once_with_equal_compute(tmp_path, capsys):
  data, out = tmp_path / "tales.txt", tmp_path / "x"
  write_tales(data)
  options = [*OPTIONS, "-o", str(out)]

  def run(*more):
    status = shapes.main([str(data), *options, *more])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 3")]
    return status, [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

  status, rows = run("--flops", "2e8")
  assert status == 0
  assert sorted(row[1] for row in rows) == ["1", "2"]
  assert rows[0][-1] <= rows[1][-1]
  bits_per_byte = {row[1]: float(row[-1]) for row in rows}
  one_layer, two_layers = bits_per_byte["1"], bits_per_byte["2"]
  # One of twelve words, which have 43 letters in total, and a space.
  entropy = math.log2(12) / (43 / 12 + 1)
  assert entropy < one_layer < 2 * entropy
  assert entropy < two_layers < 2 * entropy
  assert one_layer != two_layers
  vocabularies = [(out / name / "vocab.json").read_bytes() for name in ("300-1x16", "300-2x16")]
  assert vocabularies[0] == vocabularies[1]
  assert run("--flops", "2e8") == (0, rows)  # reads the finished runs
  with pytest.raises(cli.UsageError, match="choose another folder"):
    run("--flops", "4e8")


# Over Ray

# A worker that is killed once, after it has written a checkpoint in the middle of its training.
KILLED_WORKER = """
import os
import signal
from experiments import shapes
from tinyformer.cli import training_run


def train_in_worker(args, shape, folder, cpus):
  save = training_run.TextRun.save

  def save_and_die(run):
    save(run)
    if shape.num_layers == 2 and 0 < run.step < run.steps and not args.marker.exists():
      args.marker.write_text(str(run.step))
      os.kill(os.getpid(), signal.SIGKILL)

  training_run.TextRun.save = save_and_die
  return shapes.train_in_worker(args, shape, folder, cpus)
"""


def losses(folder):
  """Return the log of each shape in a folder of results, without the durations."""
  logs = {}
  for path in sorted(folder.glob("*/log.csv")):
    rows = list(csv.DictReader(path.open()))
    logs[path.parent.name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
  return logs


def run_shapes(cwd, *argv, signal_after=None):
  """Run the command in a process of its own, and return its status, its table and its messages.

  Without Ray, it uses one core. signal_after: send Ctrl-C when this file exists.
  """
  command = [sys.executable, str(ROOT / "experiments" / "shapes.py"), "tales.txt", *OPTIONS, *argv]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "NUM_CPU_THREADS": "1"}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  with subprocess.Popen(command, cwd=cwd, env=environment, **pipes) as process:
    deadline = time.monotonic() + 300
    while signal_after and not signal_after.exists() and time.monotonic() < deadline:
      assert process.poll() is None, process.communicate()
      time.sleep(0.05)
    if signal_after:
      process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
  table = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| 3")]
  # The minutes differ.
  return process.returncode, [row[:-2] + row[-1:] for row in table], err


@pytest.mark.slow
def test_over_ray_each_shape_is_trained_once_although_a_worker_is_killed(
  tmp_path, monkeypatch, capsys
):
  cluster_utils = pytest.importorskip("ray.cluster_utils")
  write_tales(tmp_path / "tales.txt")
  status, table, err = run_shapes(tmp_path, "--flops", "2e8", "-o", "alone")
  assert status == 0 and len(table) == 2, err
  (tmp_path / "killed_worker.py").write_text(KILLED_WORKER)
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(
    shapes, "train_in_worker", importlib.import_module("killed_worker").train_in_worker
  )
  parse = shapes.parse

  def parse_with_marker(argv):
    return argparse.Namespace(**vars(parse(argv)), marker=tmp_path / "killed")

  monkeypatch.setattr(shapes, "parse", parse_with_marker)
  argv = [str(tmp_path / "tales.txt"), *OPTIONS, "--flops", "2e8", "-o", str(tmp_path / "ray")]
  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
  try:
    cluster.add_node(num_cpus=1)
    assert shapes.main([*argv, "--ray", cluster.address]) == 0
  finally:
    cluster.shutdown()
  steps = int(losses(tmp_path / "ray")["300-2x16"][-1]["step"])
  assert 0 < int((tmp_path / "killed").read_text()) < steps
  assert losses(tmp_path / "ray") == losses(tmp_path / "alone")
  captured = capsys.readouterr()
  assert "Ray: 2 x 1 CPU cores" in captured.err
  assert captured.err.count("trained on") == 2
  printed = [line.split("|")[1:-1] for line in captured.out.splitlines() if line.startswith("| 3")]
  assert [row[:-2] + row[-1:] for row in printed] == table
  for name in ("300-1x16", "300-2x16"):
    weights = [
      (tmp_path / run / name / "model.safetensors").read_bytes() for run in ("ray", "alone")
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_same_command_continues(tmp_path):
  pytest.importorskip("ray")
  write_tales(tmp_path / "tales.txt")
  argv = ["--flops", "2e9", "-o", "x", "--ray", "local", "--ray-cpus", "1"]
  log = tmp_path / "x" / "300-2x16" / "log.csv"
  status, table, err = run_shapes(tmp_path, *argv, signal_after=log)
  assert (status, table) == (130, [])
  assert "Traceback" not in err
  assert err.endswith("stopped: the same command continues the training\n")
  before = losses(tmp_path / "x")["300-2x16"]
  status, table, err = run_shapes(tmp_path, *argv)
  assert (status, len(table)) == (0, 2), err
  after = losses(tmp_path / "x")["300-2x16"]
  assert after[: len(before)] == before
  assert len(after) > len(before)
  assert [row["step"] for row in after] == sorted({row["step"] for row in after}, key=int)


@pytest.mark.parametrize(
  "options, message",
  [
    (["--ray", "127.0.0.1:1"], "cannot reach the Ray cluster 127.0.0.1:1: "),
    (["--ray", "nowhere"], "'nowhere' is not an address of a Ray cluster, HOST:PORT"),
    (["--ray", "--device", "CUDA"], "--ray uses CPUs, not CUDA"),
    (["--ray-cpus", "2"], "--ray-cpus needs --ray"),
  ],
)
def test_options_that_do_not_fit_ray_are_refused_in_one_line(
  tmp_path, capsys, monkeypatch, options, message
):
  write_tales(tmp_path / "tales.txt")
  if options[1] != "2":
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=None))
    monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace())
  argv = [str(tmp_path / "tales.txt"), *OPTIONS, "-o", str(tmp_path / "x"), *options]
  assert cli.run(lambda: shapes.main(argv)) == 2
  err = capsys.readouterr().err
  assert message in err.splitlines()[-1]
  assert "Traceback" not in err
