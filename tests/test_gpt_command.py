"""gpt.py as a user runs it: most tests call its main in this process, those of streams and signals start a process."""

import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import ROOT, randomise

import gpt
from models import gpt2
from tinyformer import cli
from tinyformer.checkpoints import hub
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

TEXT = "Once upon a time there was a king who had a daughter, and the daughter had a golden ball. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("model")
  tokenizer = BytePairEncoding.train([TEXT * 20], 300)
  tokenizer.save(path)
  gpt2.save(randomise(gpt2.GPT2(len(tokenizer), 40, 12, 3, 1)), path, eos_token_id=tokenizer.end)
  return str(path)


class Pipe(io.TextIOWrapper):
  """A standard stream that is no terminal, and remembers each piece that was flushed."""

  def __init__(self, data=b""):
    super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
    self.pieces = [0]

  def flush(self):
    super().flush()
    if hasattr(self, "pieces"):
      self.pieces.append(self.buffer.tell())

  def text(self):
    self.flush()
    return self.buffer.getvalue().decode()


@pytest.fixture
def run(folder):
  def call(*argv, stdin=b"", model=folder):
    out, err = Pipe(), Pipe()
    with pytest.MonkeyPatch.context() as m:
      for name, stream in (("stdin", Pipe(stdin)), ("stdout", out), ("stderr", err)):
        m.setattr(sys, name, stream)
      try:
        status = cli.run(lambda: gpt.main([*(["-m", model] if model else []), *argv]))
      except SystemExit as e:
        status = e.code
    call.pieces = out.pieces
    return status, out.text(), err.text()

  return call


def test_it_writes_on_from_the_prompt(run):
  status, out, err = run("-p", "Once upon", "-n", "12", "-s", "1")
  assert (
    status == 0
    and out.startswith("Once upon")
    and out.endswith("\n")
    and len(out) > 15
    and err == ""
  )


def test_the_same_seed_writes_the_same_text(run):
  first = run("-p", "Once", "-n", "9", "-s", "5")
  assert first == run("-p", "Once", "-n", "9", "-s", "5") != run("-p", "Once", "-n", "9", "-s", "6")


def test_text_appears_token_by_token(run):
  run("-p", "Once", "-n", "20", "-s", "1", "-t", "2")
  assert len(set(run.pieces)) > 10  # the pipe grew so many times


@pytest.fixture
def ctrl_c(monkeypatch):
  """Interrupts what is written after its tenth piece, as Python does in whatever it is at."""
  flush = Pipe.flush

  def press(pipe):
    flush(pipe)
    if hasattr(pipe, "pieces") and len(pipe.pieces) == 10:
      raise KeyboardInterrupt

  return lambda: monkeypatch.setattr(Pipe, "flush", press)


def test_ctrl_c_ends_with_130(run, ctrl_c):
  whole = run("-p", "Once", "-n", "30", "-s", "1")[1]
  ctrl_c()
  status, out, err = run("-p", "Once", "-n", "30", "-s", "1")
  assert status == 130 and err == "\n" and whole.startswith(out) and 4 < len(out) < len(whole)


def test_ctrl_c_ends_an_answer_and_not_the_loop(run, ctrl_c):
  typed = dict(stdin=b"Once\na king\n")
  whole = run("-i", "-n", "15", "-s", "1", **typed)[1].partition("\n")[0]
  ctrl_c()
  status, out, _ = run("-i", "-n", "15", "-s", "1", **typed)
  answer, _, other = out.partition("\n")
  assert (
    status == 0 and whole.startswith(answer) and 0 < len(answer) < len(whole) and len(other) > 10
  )


def test_greedy_needs_no_seed(run):
  assert run("-p", "a king", "-t", "0", "-n", "5") == run("-p", "a king", "-t", "0", "-n", "5")


def test_a_loop_with_a_long_answer_still_reads_what_is_typed(run):
  """An answer may be as long as the context: the text typed is kept all the same."""
  one, two = (
    run("-i", "-n", "100", "-t", "0", stdin=text)[1]
    for text in (b"a golden ball and a king\n", b"had a daughter and a king\n")
  )
  assert one != two


def test_several_samples_come_one_after_the_other(run):
  status, out, _ = run("-p", "Once", "-N", "3", "-n", "8", "-s", "3")
  texts = out.removesuffix("\n").split("\n---\n")
  assert len(texts) == 3 == len(set(texts)) and all(t.startswith("Once") for t in texts)
  assert run("-p", "Once", "-n", "8", "-s", "3")[1].removesuffix("\n") == texts[0]


def test_a_stop_text_ends_the_text_before_it(run):
  whole = run("-p", "Once", "-n", "20", "-s", "1")[1].removeprefix("Once").removesuffix("\n")
  stop = whole[8:11]
  assert (
    run("-p", "Once", "-n", "20", "-s", "1", "--stop", stop)[1]
    == "Once" + whole[: whole.find(stop)] + "\n"
  )


@pytest.mark.parametrize("argv", [(), ("-p", "-")])
def test_the_prompt_may_come_through_a_pipe(run, argv):
  assert run(*argv, "-n", "5", "-s", "1", stdin=b"a golden ball\n") == run(
    "-p", "a golden ball", "-n", "5", "-s", "1"
  )


def test_at_the_end_of_the_context_it_says_so(run):
  status, out, err = run("-p", "Once upon a time", "-n", "100", "-s", "1")
  assert status == 0 and "the context of 40 tokens is full" in err


def test_verbose_tells_what_runs_where_on_standard_error(run):
  status, out, err = run("-p", "Once", "-n", "4", "-s", "1", "-v")
  assert "float32 on" in err and "tokens/s" in err and "tokens/s" not in out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_weights_write_too(run, dtype):
  status, out, err = run("-p", "Once", "-n", "4", "-s", "1", "--dtype", dtype)
  assert (status, err) == (0, "") and out.startswith("Once")


def test_list_models_and_version(run):
  status, out, _ = run("--list-models", model=None)
  assert status == 0 and {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"} <= set(out.split())
  assert run("--version") == (0, f"tinyformer {cli.VERSION}\n", "")


# without a network


def test_without_a_network_the_small_model_runs_and_says_why(run, monkeypatch, folder, tmp_path):
  monkeypatch.setattr(hub, "WEIGHTS", tmp_path)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  (tmp_path / "tiny").symlink_to(folder)
  status, out, err = run("-p", "Once", "-n", "3", "-q", model=None)
  assert (
    status == 0
    and out.startswith("Once")
    and err.count("\n") == 1
    and "small model" in err
    and "127.0.0.1:9" in err
  )
  status, out, err = run("-p", "Once", "-n", "3", model="gpt2")
  assert (status, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1


def test_offline_asks_no_hub(run):
  status, out, err = run("-p", "Once", "--offline", model="someone/else")
  assert (status, out) == (1, "") and "offline" in err


# what cannot be used


@pytest.mark.parametrize(
  "argv, stdin, words",
  [
    (("-p", ""), b"", "the prompt is empty"),
    ((), b"", "the prompt is empty"),
    ((), b"\n", "the prompt is empty"),
    ((), b"caf\xe9", "not UTF-8"),
    (("-p", "\udcff"), b"", "not UTF-8"),
    ((), b"once upon a time " * 600_000, "tokens, this model reads 40"),
    (("-i", "-p", "-"), b"", "-i reads from the terminal"),
    (("-i", "-N", "2"), b"", "-N needs a prompt"),
  ],
)
def test_a_prompt_that_cannot_be_used_is_told_in_a_line(run, argv, stdin, words):
  status, out, err = run(*argv, stdin=stdin)
  assert (
    (status, out) == (2, "") and words in err and err.count("\n") == 1 and err.startswith("error: ")
  )


@pytest.mark.parametrize(
  "argv",
  [
    ("-n", "0"),
    ("-t", "-1"),
    ("-t", "warm"),
    ("-t", "nan"),
    ("-k", "-1"),
    ("--top-p", "0"),
    ("--top-p", "1.1"),
    ("-N", "0"),
    ("--dtype", "int3"),
    ("-v", "-q"),
    ("--what",),
  ],
)
def test_a_flag_that_cannot_be_used_is_a_usage_error(run, argv):
  status, out, err = run("-p", "Once", *argv)
  assert (status, out) == (2, "") and "Traceback" not in err and "error: " in err


@pytest.mark.parametrize(
  "file, data",
  [
    ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}"),
    ("model.safetensors", b""),
    ("config.json", b"{"),
    ("config.json", b'{"model_type": "bird"}'),
    ("vocab.json", b"[]"),
    ("merges.txt", b"a b c"),
    ("vocab.json", None),
    ("model.safetensors", None),
  ],
)
def test_a_damaged_folder_is_told_in_a_line(run, folder, tmp_path, file, data):
  for name in os.listdir(folder):
    (tmp_path / name).write_bytes(
      open(os.path.join(folder, name), "rb").read() if name != file else data or b""
    )
  if data is None:
    (tmp_path / file).unlink()
  status, out, err = run("-p", "Once", model=str(tmp_path))
  assert (status, out) == (1, "") and err.count("\n") == 1 and file in err


def test_a_name_of_no_model_is_told_in_a_line(run):
  status, out, err = run("-p", "Once", model="nonsense")
  assert (status, out) == (1, "") and "nonsense" in err and err.count("\n") == 1


# streams and signals, in a process of their own


def heed_ctrl_c() -> None:
  """A shell has what it runs in the background ignore Ctrl-C, and so all that those run."""
  signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_closed_pipe_is_quiet(folder):
  p = subprocess.Popen(
    [sys.executable, "gpt.py", "-m", folder, "-p", "Once", "-n", "30"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  p.stdout.read(1)
  p.stdout.close()
  assert p.stderr.read() == b"" and p.wait(60) == 0


class Terminal:
  """gpt.py at a terminal of its own."""

  def __init__(self, folder, *argv):
    self.fd, side = pty.openpty()

    def own_terminal() -> None:
      heed_ctrl_c()
      fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    self.process = subprocess.Popen(
      [sys.executable, "gpt.py", "-m", folder, *argv],
      cwd=ROOT,
      stdin=side,
      stdout=side,
      stderr=side,
      start_new_session=True,
      preexec_fn=own_terminal,
      env=os.environ | {"TERM": "dumb", "INPUTRC": os.devnull},
    )
    os.close(side)
    self.seen = self.all = ""

  def stop_at(self, text, seconds=600):
    """Reads until the text has appeared; gives what came before it."""
    end = time.monotonic() + seconds
    while text not in self.seen:
      assert time.monotonic() < end, f"{text!r} did not appear in {self.seen!r}"
      if select.select([self.fd], [], [], 0.1)[0]:
        new = os.read(self.fd, 4096).decode(errors="replace")
        self.seen, self.all = self.seen + new, self.all + new
    before, _, self.seen = self.seen.partition(text)
    return before

  def type(self, text):
    time.sleep(0.3)  # readline misses a Ctrl-C that comes between its prompt and its wait for a key
    state = Path(f"/proc/{self.process.pid}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "S":
      time.sleep(0.01)
    os.write(self.fd, text.encode())


def test_the_loop_handles_ctrl_c_and_ctrl_d(folder):
  t = Terminal(folder, "-n", "25", "-s", "1")
  t.stop_at("> ")
  t.type("Once upon\n")
  assert len(t.stop_at("\n> ").split("\n")[-1]) > 5  # an answer, and the next turn
  t.type("abandoned\x03")
  t.stop_at("> ")  # Ctrl-C at the prompt gives a new one
  for _ in range(3):  # more than a context's worth: the oldest text is dropped
    t.type("a golden ball and a king\n")
    t.stop_at("\n> ")
  t.type("\x04")
  assert t.process.wait(600) == 0 and "Traceback" not in t.all
