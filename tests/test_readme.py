"""The README shows what its commands print. tests/test_docs.py checks the other commands."""

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
  [command] = re.findall(r'&& python (gpt.py -p "[^"]+")', SHELL)
  prompt = "How can entropy be reversed?"
  assert command == f'gpt.py -p "{prompt}"'
  command = [sys.executable, "gpt.py", "-p", prompt, "-s", "1"]
  result = run(*command, HF_HUB_OFFLINE="1", HF_HUB_CACHE="/nowhere")
  if not (ROOT / "weights" / "gpt2").exists():
    assert "small model" in result.stderr
  assert result.returncode == 0
  assert result.stdout.startswith(prompt)
  assert len(result.stdout) > 100


def test_the_attention_picture_is_what_the_command_prints():
  pattern = r"`python (attend.py [^`]*)`.*?```\n(.*?)```"
  [argv, picture] = re.findall(pattern, README, re.S)[0]
  result = run(sys.executable, *shlex.split(argv), "--layer", "3", COLUMNS="70")
  printed = [line.rstrip() for line in result.stdout.splitlines()]
  expected = picture.splitlines()
  assert printed[: len(expected)] == expected, result.stderr


def test_the_pictures_exist_and_are_small():
  pictures = re.findall(r'<img src="([^"]+)" alt="[^"]+', README)
  assert pictures == ["docs/attention.png", "docs/page.png"]
  for name, max_bytes in zip(pictures, (100_000, 150_000), strict=True):
    data = (ROOT / name).read_bytes()
    assert data[:4] == b"\x89PNG"
    assert len(data) < max_bytes


@pytest.mark.slow
def test_the_command_draws_such_a_picture_and_a_page(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  from PIL import Image

  command = next(c for c in COMMANDS if c.startswith("python attend.py"))
  words = shlex.split(command)[1:]
  argv = [str(tmp_path / word) if word.startswith("hat.") else word for word in words]
  result = run(sys.executable, *argv)
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "hat.html").stat().st_size < 1_000_000
  actual, shown = Image.open(tmp_path / "hat.png"), Image.open(ROOT / "docs" / "attention.png")
  assert abs(actual.width / actual.height - shown.width / shown.height) < 0.05


def test_the_python_example_runs(monkeypatch):
  [code] = re.findall(r"```python\n(.*?)```", README, re.S)
  monkeypatch.delenv("CC", raising=False)
  result = run(sys.executable, "-c", code + "\nprint(logits.shape)")
  assert re.fullmatch(r"\(1, \d+, 8192\)\n", result.stdout), result.stderr


def test_the_listed_files_exist():
  [tree] = re.findall(r"```\n(transformer.py .*?)```", README, re.S)
  folders = (ROOT, ROOT / "tests", ROOT / "tinyformer")
  for name in re.findall(r"\b[\w/]+\.py\b", tree):
    assert any((folder / name).exists() for folder in folders), name
