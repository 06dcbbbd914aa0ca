"""Files whose rows are distributed over a Ray cluster: each row has the result of a single run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_ask import WORDS, small_berts
from test_file_runs import run_ask

import ask
from tinyformer import cli
from tinyformer.cli import file_run, ray_cluster, ray_run

# A command like ask.py, one of whose workers is killed when it reads a certain text.
KILLED = """
import os, signal
import ask

def load_task(args):
  task = ask.load_task(args)

  def function(rows):
    if ("kill",) in rows and not args.marker.exists():
      args.marker.touch()
      os.kill(os.getpid(), signal.SIGKILL)
    return task.function(rows)

  return task._replace(function=function)
"""


@pytest.mark.slow
def test_without_an_address_a_cluster_on_this_machine_generates_the_same_texts(tmp_path):
  pytest.importorskip("ray")  # The first test, because it would join the cluster of the next.
  prompts = [f"The man number {n} went" for n in range(9)]
  (tmp_path / "in.txt").write_text("\n".join(prompts))
  command = [sys.executable, str(ROOT / "gpt.py"), "-m", "tiny", "-n", "5", "-s", "1", "-q"]
  command += ["--input", "in.txt", "--output"]
  for more in (["ray.jsonl", "--ray"], ["alone.jsonl"]):
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
  assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
  assert (tmp_path / "ray.jsonl").read_text().count("\n") == 9


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  """The address of a cluster of two machines with one core each, which are processes here."""
  cluster_utils = pytest.importorskip("ray.cluster_utils")
  modules = tmp_path_factory.mktemp("modules")
  (modules / "killed.py").write_text(KILLED)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(modules)]))
    yield from running_cluster(cluster_utils)


def running_cluster(cluster_utils):
  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
  try:
    cluster.add_node(num_cpus=1)
    yield cluster.address
  finally:
    cluster.shutdown()


@pytest.fixture(autouse=True)
def time_limit():
  """End a test after five minutes, in case its cluster hangs."""
  if not hasattr(signal, "SIGALRM"):
    yield
    return

  def stop(*_):
    raise TimeoutError("the test takes more than five minutes")

  previous = signal.signal(signal.SIGALRM, stop)
  signal.alarm(300)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, previous)


@pytest.mark.slow
def test_without_an_address_the_cluster_on_this_machine_is_joined_even_if_a_token_exists(
  cluster, tmp_path
):
  """The cluster requires no token. Its two machines have one address."""
  (tmp_path / "in.txt").write_text("The man\nShe\nIt was\n")
  command = [sys.executable, str(ROOT / "gpt.py"), "-m", "tiny", "-n", "3", "-s", "1"]
  command += ["--input", "in.txt", "--output"]
  environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
  environment["RAY_AUTH_TOKEN"] = "a" * 64
  for more in (["ray.jsonl", "--ray"], ["alone.jsonl"]):
    done = subprocess.run(
      [*command, *more], cwd=tmp_path, env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (b"Ray: 2 x 1 CPU cores" in done.stderr) == ("--ray" in more)
  assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return small_berts(tmp_path_factory)


@pytest.mark.slow
def test_each_row_has_one_result_although_a_worker_is_killed(cluster, folder, tmp_path, capfd):
  texts = [" ".join(WORDS[5 : 5 + n % 12]) for n in range(1, 60)]
  texts[30] = "kill"
  (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  argv = ["-m", str(folder("Model")), "-q", "--input", str(tmp_path / "in.jsonl"), "--output"]
  args = ask.parse_arguments([*argv, str(tmp_path / "ray.jsonl"), "--ray", cluster])
  args.marker = tmp_path / "killed"
  ray_run.run(args, "killed")
  assert args.marker.exists()
  assert capfd.readouterr().err == ""
  args = ask.parse_arguments([*argv, str(tmp_path / "alone.jsonl")])
  file_run.run(args, ask.load_task(args))
  rows = [json.loads(line) for line in (tmp_path / "ray.jsonl").open()]
  alone = [json.loads(line) for line in (tmp_path / "alone.jsonl").open()]
  assert [row["row"] for row in rows] == list(range(1, 60))
  for row, expected in zip(rows, alone, strict=True):
    np.testing.assert_allclose(row["embedding"], expected["embedding"], atol=1e-5)
  settings = [json.loads((tmp_path / f"{n}.jsonl.run.json").read_text()) for n in ("ray", "alone")]
  assert settings[0] == settings[1]


@pytest.mark.slow
def test_a_row_that_is_invalid_in_a_worker_is_named_and_the_rows_before_it_are_kept(
  cluster, folder, tmp_path, capsys
):
  texts = ["the " * n for n in (1, 2, 3, 40, 5)]
  rows, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
  rows.write_text("\n".join(texts))
  argv = ("-m", folder("ForSequenceClassification"), "--input", rows, "--output", output)
  status, _, err = run_ask(capsys, *argv, "-q", "--ray", cluster)
  assert (status, err.count("\n")) == (2, 1)
  assert f"{rows}, row 4: the text has" in err
  assert output.read_text().count("\n") == 3
  rows.write_text("\n".join([*texts[:3], "the", texts[4]]))
  status, _, err = run_ask(capsys, *argv, "--ray", cluster)
  assert status == 0, err
  assert "Ray: 2 x 1 CPU cores" in err
  assert "has 3 rows: continuing" in err
  assert [json.loads(line)["row"] for line in output.open()] == [1, 2, 3, 4, 5]
  status, _, err = run_ask(capsys, *argv[:2], "-q", *argv[2:], "--ray", cluster, "--ray-cpus", 2)
  assert status == 2
  assert "no machine of the Ray cluster has 2 CPU cores; the largest has 1" in err


@pytest.mark.slow
def test_a_server_that_is_no_ray_cluster_is_refused_in_a_short_time(monkeypatch):
  pytest.importorskip("ray")
  monkeypatch.setattr(ray_cluster, "ANSWER_TIMEOUT", 3)
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(cli.UsageError, match=f"no Ray cluster answers at {address}: check"):
      ray_cluster.check_address(address)


def test_a_cluster_that_requires_a_token_is_refused_with_the_remedy(monkeypatch):
  errors = b"ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token"
  done = subprocess.CompletedProcess([], 1, b"", errors)
  monkeypatch.setattr(ray_cluster.subprocess, "run", lambda *_, **__: done)
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(cli.UsageError, match=f"{address} requires its token: set RAY_AUTH_MODE=to"):
      ray_cluster.check_address(address)
    done.stderr = b"other"
    with pytest.raises(cli.UsageError, match=f"no Ray cluster answers at {address}: check"):
      ray_cluster.check_address(address)
    done.returncode = 0
    ray_cluster.check_address(address)


def test_an_address_that_cannot_be_reached_is_refused():
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  with pytest.raises(cli.UsageError, match=rf"cannot reach the Ray cluster 127.0.0.1:{port}: "):
    ray_cluster.check_address(f"127.0.0.1:{port}")
  for address in ("127.0.0.1", "ray://127.0.0.1:10001", ":6379", "host:port", "host:99999", "x:y"):
    with pytest.raises(cli.UsageError, match="is not an address of a Ray cluster, HOST:PORT"):
      ray_cluster.check_address(address)


def machine(cpus, is_alive=True):
  return {"Alive": is_alive, "Resources": {"CPU": cpus, "memory": 1e9}}


@pytest.mark.parametrize(
  "sizes, cpus, expected",
  [
    ([2], None, (2, 1)),
    ([2], 1, (1, 2)),
    ([8, 4, 16], None, (4, 7)),
    ([8, 4], 3, (3, 3)),
    ([0, 4], None, (4, 1)),  # a head without cores of its own
  ],
)
def test_the_cores_of_each_machine_are_divided_among_actors(sizes, cpus, expected):
  nodes = [*map(machine, sizes), machine(1, is_alive=False)]
  assert ray_cluster.divide(nodes, cpus) == expected
  assert sum(size // expected[0] for size in sizes) == expected[1]


def test_more_cores_than_a_machine_has_are_refused():
  with pytest.raises(cli.UsageError, match=r"has 5 CPU cores; the largest has 4: use a smaller"):
    ray_cluster.divide([machine(4), machine(2)], 5)
  with pytest.raises(cli.UsageError, match="the largest has 0"):
    ray_cluster.divide([], None)


@pytest.mark.parametrize(
  "options, message",
  [
    (["--ray", "--device", "CUDA"], "--ray uses CPUs, not CUDA: start a process for each GPU"),
    (["--ray"], r"--ray needs Ray (.*): pip install -e '.\[ray\]'"),
    (["--ray-cpus", "2"], "--ray-cpus needs --ray"),
  ],
)
def test_options_that_do_not_fit_ray_are_refused(capsys, tmp_path, monkeypatch, options, message):
  monkeypatch.setitem(sys.modules, "ray", None)
  (tmp_path / "in.txt").write_text("a")
  files = ["--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl"]
  status, _, err = run_ask(capsys, "-m", "none", *files, *options)
  assert (status, err.count("\n")) == (2, 1)
  assert re.search(message, err)


def test_ray_needs_a_file(capsys):
  assert "--ray needs a file" in run_ask(capsys, "-m", "none", "text", "--ray")[2]
