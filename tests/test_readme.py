"""What README.md shows, its commands give: tests/test_docs.py has the other commands."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
COMMANDS = [line.split("#")[0].strip() for line in SHELL.splitlines()]


def run(*argv, **env):
  return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


def test_the_first_command_answers_without_a_network():
  [argv] = re.findall(r'&& python (gpt.py -p "[^"]+")', SHELL)
  assert argv == 'gpt.py -p "How can entropy be reversed?"'
  done = run(
    sys.executable,
    "gpt.py",
    "-p",
    "How can entropy be reversed?",
    "-s",
    "1",
    HF_HUB_OFFLINE="1",
    HF_HUB_CACHE="/nowhere",
  )
  if not (ROOT / "weights" / "gpt2").exists():
    assert "small model" in done.stderr
  assert (
    done.returncode == 0
    and done.stdout.startswith("How can entropy be reversed?")
    and len(done.stdout) > 100
  )


def test_its_picture_of_attention_is_what_the_command_draws():
  [argv, picture] = re.findall(r"`python (attend.py [^`]*)`.*?```\n(.*?)```", README, re.S)[0]
  done = run(sys.executable, *shlex.split(argv), "--layer", "3", COLUMNS="70")
  assert [line.rstrip() for line in done.stdout.splitlines()][
    : len(picture.splitlines())
  ] == picture.splitlines(), done.stderr


def test_its_pictures_are_there_and_small():
  shown = re.findall(r'<img src="([^"]+)" alt="[^"]+', README)
  assert shown == ["docs/attention.png", "docs/page.png"]
  for name, most in zip(shown, (100_000, 150_000)):
    assert (ROOT / name).read_bytes()[:4] == b"\x89PNG" and (ROOT / name).stat().st_size < most


@pytest.mark.slow
def test_its_command_still_makes_such_a_picture_and_a_page(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  from PIL import Image

  command = next(c for c in COMMANDS if c.startswith("python attend.py"))
  done = run(
    sys.executable,
    *[
      str(tmp_path / word) if word.startswith("hat.") else word for word in shlex.split(command)[1:]
    ],
  )
  assert done.returncode == 0 and (tmp_path / "hat.html").stat().st_size < 1_000_000, done.stderr
  made, shown = Image.open(tmp_path / "hat.png"), Image.open(ROOT / "docs" / "attention.png")
  assert abs(made.width / made.height - shown.width / shown.height) < 0.05


def test_its_python_runs(monkeypatch):
  [code] = re.findall(r"```python\n(.*?)```", README, re.S)
  monkeypatch.delenv("CC", raising=False)
  done = run(sys.executable, "-c", code + "\nprint(logits.shape)")
  assert re.fullmatch(r"\(1, \d+, 8192\)\n", done.stdout), done.stderr


def test_the_files_that_it_names_are_there():
  [tree] = re.findall(r"```\n(transformer.py .*?)```", README, re.S)
  for name in re.findall(r"\b[\w/]+\.py\b", tree):
    assert (ROOT / name).exists() or any(
      (ROOT / d / name).exists() for d in ("tests", "tinyformer")
    ), name
