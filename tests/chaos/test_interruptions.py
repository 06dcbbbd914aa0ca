"""Signals, kills, closed streams and unusual environments, for each command as a process."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from chaos import kill_training, processes
from conftest import ROOT, with_head
from gguf_files import bpe_metadata, folder_to_gguf

from tinyformer import cli, device
from tinyformer.cli import streams

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has other signals")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GENERATE = ["gpt.py", "-m", "tiny", "-p", "Once", "-s", "1"]
PLOT = ["-m", "tinyformer.cli.plot_loss", "LOG"]
WRITE = """
import sys, time
from pathlib import Path
from tinyformer import cli, files

def main():
  with files.atomic_write(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("ready", flush=True)
    time.sleep(60)

sys.exit(cli.run(main))
"""
OPEN = """
import sys
from tinyformer import cli

def main():
  with open(sys.argv[1], "w") as file:
    cli.note(str(file.fileno() > 2))

sys.exit(cli.run(main))
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_without_a_traceback_or_a_partial_file(number, tmp_path):
  (tmp_path / "file").write_text("old")
  process = processes.start(["-c", WRITE, str(tmp_path / "file")])
  assert process.stdout.readline() == b"ready\n"
  process.send_signal(number)
  assert processes.finish(process) == (-number, b"", b"")
  assert [file.name for file in tmp_path.iterdir()] == ["file"]
  assert (tmp_path / "file").read_text() == "old"


def test_an_ignored_signal_remains_ignored():
  """`nohup` ignores SIGHUP."""
  previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    assert cli.run(lambda: signal.raise_signal(signal.SIGHUP)) == 0
    with cli.deferred_interrupt() as interrupted:
      signal.raise_signal(signal.SIGHUP)
      assert not interrupted()
  finally:
    signal.signal(signal.SIGHUP, previous)


def test_the_first_signal_is_deferred_and_handlers_are_restored():
  handlers = [signal.getsignal(number) for number in SIGNALS]
  with cli.deferred_interrupt() as interrupted:
    assert interrupted() == 0
    signal.raise_signal(signal.SIGTERM)
    assert interrupted() == signal.SIGTERM
    # A second signal has its usual effect.
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
  assert [signal.getsignal(number) for number in SIGNALS] == handlers


def shell(command: str, *arguments: str) -> subprocess.CompletedProcess:
  """Run Python with arguments and redirections in a shell."""
  return subprocess.run(
    ["sh", "-c", f'exec "$@" {command}', "sh", sys.executable, *arguments],
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )


@pytest.mark.parametrize(
  "redirections, arguments, status, message",
  [
    ("<&-", ["gpt.py", "-m", "tiny"], 2, "error: the prompt is empty\n"),
    (">&-", PLOT, 1, "error: standard output is closed\n"),
    (
      ">/dev/full",
      PLOT,
      1,
      "error: *a file does not fit on its disk, which is full: free some space*\n",
    ),
    ("<&- >&- 2>&-", PLOT, 1, ""),
  ],
)
def test_closed_streams_and_a_full_disk_are_reported(
  redirections, arguments, status, message, tmp_path
):
  (tmp_path / "log.csv").write_text("step,tokens,train_loss,val_loss\n1,1,2.0,3.0\n2,2,1.0,2.0\n")
  arguments = [str(tmp_path / "log.csv") if part == "LOG" else part for part in arguments]
  result = shell(redirections, *arguments)
  assert (result.returncode, result.stdout) == (status, "")
  start, _, end = message.partition(
    "*a file does not fit on its disk, which is full: free some space*"
  )
  assert result.stderr.startswith(start)
  assert result.stderr.endswith(end)
  assert result.stderr.count("\n") == message.count("\n")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
  result = shell("<&- >&-", "-c", OPEN, str(tmp_path / "file"))
  assert (result.returncode, result.stderr) == (0, "True\n")


def test_a_note_that_cannot_be_printed_does_not_end_a_command(monkeypatch):
  class Broken(streams.ClosedOutput):
    def isatty(self):
      return False

  monkeypatch.setattr(sys, "stderr", Broken())
  cli.note("a note")


def test_a_database_of_another_user_is_not_used(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert device.can_cache_kernels()
  (tmp_path / "tinygrad" / "cache.db").write_text("")
  assert device.can_cache_kernels()
  monkeypatch.setattr(os, "access", lambda path, _: path.name != "cache.db")
  assert not device.can_cache_kernels()


def test_a_user_without_a_home_has_no_caches(monkeypatch):
  def home():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(Path, "home", home)
  assert not device.can_cache_kernels()
  assert device.cpu_marker(sys.executable) is None


# slow tests


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
  """Return a command line of each command by name, with an output folder."""
  folder = tmp_path_factory.mktemp("commands")
  text = folder / "text.txt"
  kill_training.write_text(text)
  model = with_head("bert-a", "ForMaskedLM", tmp_path_factory.mktemp("model"))
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *map(str, range(55))]
  (model / "vocab.txt").write_text("\n".join(words) + "\n")
  out = folder / "out"
  out.mkdir()
  train = ["-o", str(out / "train"), *processes.TRAIN, "--steps", "100", "--eval-interval", "20"]
  return out, {
    "gpt": [*GENERATE, "-n", "200"],
    "ask": ["ask.py", "-m", str(model), *["the [MASK]"] * 20],
    "attend": ["attend.py", "-p", "Once upon a time", "--html", str(out / "page.html")],
    "evaluate": ["evaluate.py", str(text), "--max-tokens-per-document", "20"],
    "train": ["train.py", str(text), *train],
    "transformer": ["transformer.py"],
    "experiment": ["experiments/reverse.py", "--quick", "-o", str(out / "experiment")],
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["gpt", "ask", "attend", "evaluate", "train", "transformer", "experiment"]
)
def test_signals_at_random_moments_end_each_command_cleanly(name, commands):
  out, lines = commands
  rng = random.Random(name)
  for number in SIGNALS * 2:
    command = lines[name]
    if name == "train" and (out / "train" / "training.safetensors").exists():
      command = [*command[:4], "--resume"]
    outcome = processes.end_after(processes.start_and_wait(command), rng.uniform(0, 6), number)
    check_end(outcome, number)
    assert not list(out.rglob(".*.part"))
  if name == "train":
    assert processes.finish(processes.start(command)).status == 0


def check_end(outcome: processes.Outcome, number: int) -> None:
  """Check that a command has finished, or ended with a signal, without a traceback."""
  assert outcome.status in (0, -number, 128 + number), outcome
  assert b"Traceback" not in outcome.err, outcome.err.decode()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_conversion_without_a_partial_file(number, tmp_path):
  file = tmp_path / "model.gguf"
  folder_to_gguf(ROOT / "weights" / "tiny", file, **bpe_metadata(ROOT / "weights" / "tiny"))
  command = ["convert.py", str(file), str(tmp_path / "out")]
  process = processes.start_and_wait(command)
  while process.poll() is None and not list(tmp_path.glob(".*.part")):
    time.sleep(0.001)
  check_end(processes.end_after(process, 0.01, number), number)
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left in (["model.gguf"], ["model.gguf", "out"])
  if "out" not in left:
    assert processes.finish(processes.start(command)).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_benchmark_without_leaving_weights_behind(number, tmp_path):
  """Python prints SystemExit in a callback as ignored; the process then exits ten seconds later."""
  temporary = tmp_path / "temporary"
  temporary.mkdir()
  command = ["bench.py", "--repeat", "1", "--peers", "minigrad float32"]
  command += ["--json", str(tmp_path / "bench.json")]
  process = processes.start_and_wait(command, TMPDIR=str(temporary))
  outcome = processes.end_after(process, random.Random(number).uniform(2, 6), number)
  if b"Exception ignored" not in outcome.err:
    check_end(outcome, number)
  assert outcome.status == 128 + number
  assert not list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_an_interactive_session_or_its_continuation(number, tmp_path):
  lines = tmp_path / "lines"
  lines.write_text("Once upon a time\n" * 20)
  process = processes.start_and_wait(["gpt.py", "-m", "tiny", "-i", "-s", "1"], lines)
  outcome = processes.end_after(process, random.Random(number).uniform(0, 6), number)
  check_end(outcome, number)


EXPERIMENTS = {
  "baselines": ["TEXT"],
  "classify": [],
  "digits": [],
  "grokking": [],
  "norms": [],
  "positions": [],
  "similarities": [],
  "translate": [],
}
DATA = {"classify": "trec", "digits": "mnist", "translate": "multi30k"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_signal_ends_each_experiment_cleanly(name, tmp_path):
  if not (ROOT / "../shared/data" / DATA.get(name, "")).exists() and name in DATA:
    pytest.skip("needs ../shared/data")
  text = tmp_path / "text.txt"
  kill_training.write_text(text)
  arguments = [str(text) if part == "TEXT" else part for part in EXPERIMENTS[name]]
  if name != "baselines":
    arguments.append("--quick")
  out = tmp_path / "out"
  rng = random.Random(name)
  number = rng.choice(SIGNALS)
  command = [f"experiments/{name}.py", *arguments, "-o", str(out)]
  outcome = processes.end_after(processes.start_and_wait(command), rng.uniform(0, 5), number)
  check_end(outcome, number)
  assert not list(tmp_path.rglob(".*.part"))


@pytest.mark.slow
def test_signals_end_the_comparison_of_shapes_cleanly_and_each_training_is_resumed(tmp_path):
  text = tmp_path / "text.txt"
  kill_training.write_text(text)
  command = ["experiments/shapes.py", str(text), "--context", "16", "--batch", "4"]
  command += ["--flops", "4e8", "--max-chars-per-document", "200"]
  command += ["--shape", "300:1:2:16:1e-2", "--shape", "300:2:2:16:1e-2"]
  expected = processes.finish(processes.start([*command, "-o", str(tmp_path / "expected")]))
  assert expected.status == 0, expected.err.decode()
  out = tmp_path / "out"
  rng = random.Random(0)
  for number in SIGNALS * 2:
    process = processes.start_and_wait([*command, "-o", str(out)])
    check_end(processes.end_after(process, rng.uniform(0, 8), number), number)
    assert not list(tmp_path.rglob(".*.part"))
  outcome = processes.finish(processes.start([*command, "-o", str(out)]))
  assert outcome.status == 0, outcome.err.decode()
  assert without_times(outcome.out) == without_times(expected.out)
  for folder in ("300-1x16", "300-2x16"):
    a, b = out / folder, tmp_path / "expected" / folder
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert kill_training.log_rows(a) == kill_training.log_rows(b)


@pytest.mark.slow
def test_a_killed_training_run_ends_equal_to_an_uninterrupted_one():
  outcomes = kill_training.kill_training(kills=6, steps=60)
  assert outcomes["kills"] == 6
  assert outcomes["bytes that differ"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
  "env",
  [{"LC_ALL": "C"}, {"TERM": "dumb"}, {"HOME": "/nonexistent"}, {"HOME": "/proc"}],
  ids=str,
)
def test_the_text_does_not_depend_on_the_environment(env, monkeypatch):
  """A user may have no home directory, or one that is read-only."""
  expected = processes.finish(processes.start([*GENERATE, "-n", "5"]))
  if "HOME" in env:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("CC", raising=False)
  outcome = processes.finish(processes.start([*GENERATE, "-n", "5"], **env))
  assert outcome == expected
  assert outcome.status == 0


@pytest.fixture(scope="module")
def small_runs(commands):
  """Return a short command line of each command but gpt.py by name, without its output folder.

  All users may read its input, and write to the folder.
  """
  _, lines = commands
  folder = Path(tempfile.mkdtemp(prefix="all-users"))
  (folder / "out").mkdir()
  for path in (folder, folder / "out"):
    path.chmod(0o777)
  kill_training.write_text(folder / "text.txt")
  shutil.copytree(lines["ask"][2], folder / "bert")
  (folder / "bert").chmod(0o755)
  tiny = ROOT / "weights" / "tiny"
  folder_to_gguf(tiny, folder / "model.gguf", **bpe_metadata(tiny))
  text, out = str(folder / "text.txt"), str(folder / "out")
  yield (
    folder / "out",
    {
      "ask": ["ask.py", "-m", str(folder / "bert"), "the [MASK]"],
      "attend": ["attend.py", "-p", "Once upon", "--html", f"{out}/page.html"],
      "evaluate": ["evaluate.py", text, "--max-tokens-per-document", "5"],
      "train": ["train.py", text, "-o", f"{out}/train", *processes.TRAIN, "--steps", "2"],
      "convert": ["convert.py", str(folder / "model.gguf"), f"{out}/converted"],
      "bench": ["bench.py", "--help"],
      "transformer": ["transformer.py"],
    },
  )
  shutil.rmtree(folder)


NAMES = ("ask", "attend", "evaluate", "train", "convert", "bench", "transformer")


def clear_folder(folder: Path) -> None:
  for path in folder.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def without_times(text: bytes) -> str:
  """Return an output without durations and defaults, which differ between two runs."""
  without = re.sub(r"[\d.:]+(?= s\b|\n|$)|\(default\s*:?\s[^)]*\)", "", text.decode())
  return " ".join(without.split())  # the lines of a help text depend on the defaults


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_command_depends_on_the_locale_the_terminal_and_a_writable_home(
  name, small_runs, monkeypatch
):
  out, lines = small_runs
  outcomes = []
  for env in ({}, {"LC_ALL": "C", "TERM": "dumb", "HOME": "/proc"}):
    clear_folder(out)
    if env:
      monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
      monkeypatch.delenv("CC", raising=False)
    outcomes.append(processes.finish(processes.start(lines[name], **env)))
  assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
  assert without_times(outcomes[0].out) == without_times(outcomes[1].out)


def other_user() -> list[str]:
  """Return a command that runs Python as another user, or skip the test."""
  setpriv = shutil.which("setpriv")
  if not setpriv or os.getuid():
    pytest.skip("only root can become another user")
  user = [setpriv, "--reuid", "54321", "--regid", "54321", "--clear-groups", sys.executable]
  if subprocess.run([*user, "-c", "import tinygrad"], capture_output=True).returncode:
    pytest.skip("another user cannot run this Python")
  return user


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", *NAMES])
def test_another_user_without_a_home_can_run_each_command(name, small_runs):
  out, lines = small_runs
  clear_folder(out)
  command = [*GENERATE, "-n", "5"] if name == "gpt" else lines[name]
  environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "CC")}
  environment |= {"LC_ALL": "C", "TERM": "dumb"}
  result = subprocess.run([*other_user(), *command], cwd=ROOT, capture_output=True, env=environment)
  assert result.returncode == 0, result.stderr.decode()
  assert not (ROOT / "~").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["200k", "66m"])
def test_a_full_disk_for_the_cache_does_not_matter(size, tmp_path):
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
  if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("only root can mount a small disk")
  try:
    outcome = processes.finish(
      processes.start([*GENERATE, "-n", "5"], XDG_CACHE_HOME=str(tmp_path))
    )
    assert outcome.status == 0, outcome.err.decode()
  finally:
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_during_training_is_reported_and_the_run_resumed(tmp_path):
  mount = ["mount", "-t", "tmpfs", "-o", "size=560k", "tmpfs", str(tmp_path)]
  if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("only root can mount a small disk")
  try:
    out = tmp_path / "out"
    text = Path(str(tmp_path) + ".txt")
    kill_training.write_text(text)
    settings = [*processes.TRAIN, "--steps", "40", "--eval-interval", "10"]
    command = ["train.py", str(text), "-o", str(out)]
    ballast = tmp_path / "ballast"
    for kilobytes in (490, 460, 410, 360, 310, 260, 160, 0):
      ballast.write_bytes(bytes(1000 * kilobytes))
      resume = (out / "last" / "model.safetensors").exists()
      outcome = processes.finish(
        processes.start([*command, *(["--resume"] if resume else settings)])
      )
      assert outcome.status in (0, 1, 2), outcome
      assert b"Traceback" not in outcome.err, outcome.err.decode()
      assert outcome.status == 0 or b"full: free some space" in outcome.err, outcome.err.decode()
      assert not list(out.rglob(".*.part"))
    assert outcome.status == 0
    expected = tmp_path.with_name("expected")
    result = processes.finish(
      processes.start(["train.py", str(text), "-o", str(expected), *settings])
    )
    assert result.status == 0
    assert kill_training.different_bytes(out, expected) == 0
  finally:
    subprocess.run(["umount", str(tmp_path)], check=True)
