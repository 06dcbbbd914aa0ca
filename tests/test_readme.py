"""The commands and the code of README.md do what it says."""
import os, re, subprocess, sys
from conftest import ROOT
import ask, curve, evaluate, gpt, train

README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
COMMANDS = [line.split("#")[0].strip() for line in SHELL.splitlines()]

def run(*argv, **env): return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)

def test_the_first_command_answers_without_a_network():
  [argv] = re.findall(r'&& python (gpt.py -p "[^"]+")', SHELL)
  assert argv == 'gpt.py -p "How can entropy be reversed?"'
  done = run(sys.executable, "gpt.py", "-p", "How can entropy be reversed?", HF_HUB_OFFLINE="1", HF_HUB_CACHE="/nowhere")
  if not (ROOT / "weights" / "gpt2").exists(): assert "small model" in done.stderr
  assert done.returncode == 0 and done.stdout.startswith("How can entropy be reversed?") and len(done.stdout) > 100

def test_every_flag_that_it_shows_exists():
  """The commands that need a download or a terminal: their arguments."""
  shown = [re.sub(r"^.*\| ", "", c).split(" > ")[0] for c in COMMANDS if "gpt.py" in c and "pip" not in c]
  assert len(shown) == 4
  import shlex
  for command in shown: gpt.parse(shlex.split(command)[2:])
  for command in [c for c in COMMANDS if c.startswith("python train.py")]: train.parse(shlex.split(command)[2:])
  for command in [c for c in COMMANDS if c.startswith("python ask.py")]: ask.parse(shlex.split(command.split(" < ")[0])[2:])
  [command] = [c for c in COMMANDS if c.startswith("python curve.py")]
  curve.parse(shlex.split(command)[2:])
  [command] = [c for c in COMMANDS if c.startswith("python evaluate.py")]
  evaluate.parse(shlex.split(command)[2:])

def test_its_picture_of_attention_is_what_the_command_draws():
  [argv, picture] = re.findall(r"`python (attend.py [^`]*)`.*?```\n(.*?)```", README, re.S)[0]
  import shlex
  done = run(sys.executable, *shlex.split(argv), "--layer", "2", COLUMNS="44")
  assert [line.rstrip() for line in done.stdout.splitlines()][:len(picture.splitlines())] == picture.splitlines(), done.stderr

def test_its_python_runs(monkeypatch):
  [code] = re.findall(r"```python\n(.*?)```", README, re.S)
  monkeypatch.delenv("CC", raising=False)
  done = run(sys.executable, "-c", code + "\nprint(logits.shape)")
  assert re.fullmatch(r"\(1, \d+, 2048\)\n", done.stdout), done.stderr

def test_the_files_that_it_names_are_there():
  [tree] = re.findall(r"```\n(transformer.py .*?)```", README, re.S)
  for name in re.findall(r"\b[\w/]+\.py\b", tree): assert (ROOT / name).exists() or any((ROOT / d / name).exists() for d in ("parts", "models", "text", "tests")), name
