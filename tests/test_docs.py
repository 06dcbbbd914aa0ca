"""The commands of README.md, and the commands and the code in docs/, are ones that this repository has."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

DOCS = {
  f.relative_to(ROOT): f.read_text()
  for f in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}


def commands(text: str) -> set[str]:
  """Those in its sh blocks, and those in its lines, without what the shell does with their input and output."""
  shown = re.findall(
    r"^(?:.*(?:&&|\|) )?(python (?:\S+\.py|-m tinyformer).*)",
    "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)),
    re.M,
  ) + re.findall(r"`(python (?:\S+\.py|-m tinyformer)[^`…]*)`", text)
  return {re.split(" [<>#] ?", c)[0].strip() for c in shown if "--help" not in c}


COMMANDS = sorted({c for text in DOCS.values() for c in commands(text)})


class Parsed(Exception):
  pass


@pytest.mark.parametrize("command", COMMANDS)
def test_its_own_parser_takes_the_arguments(command, monkeypatch, capsys):
  parse = argparse.ArgumentParser.parse_args

  def stop(self, args=None, namespace=None):
    parse(self, args, namespace)
    raise Parsed

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
  _, file, *argv = shlex.split(command)
  if file == "-m":
    module, *argv = argv
  else:
    module = (
      "tinyformer.walkthrough"
      if file == "transformer.py"
      else file.removesuffix(".py").replace("/", ".")
    )
  assert (ROOT / file).exists() or file == "-m"
  with pytest.raises(Parsed):
    importlib.import_module(module).main(argv)


def test_a_command_that_does_not_exist_would_be_noticed(monkeypatch, capsys):
  for wrong in ("python experiments/reverse.py --slow", "python transformer.py --walk"):
    with pytest.raises(SystemExit):
      test_its_own_parser_takes_the_arguments(wrong, monkeypatch, capsys)
  with pytest.raises(AssertionError):
    test_its_own_parser_takes_the_arguments("python experiments/none.py", monkeypatch, capsys)


def test_what_they_link_to_and_picture_is_there():
  for name, text in DOCS.items():
    for link in re.findall(r"\]\(([^)]+)\)", text):
      if not link.startswith("http"):
        assert (ROOT / name.parent / link).exists(), f"{name}: {link}"
  for picture in (ROOT / "docs").glob("*.png"):
    assert picture.stat().st_size < 100_000 and picture.read_bytes().startswith(b"\x89PNG"), (
      picture.name
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", range(2))
def test_the_code_of_the_questions_shows_what_they_say(n):
  code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "questions.md").read_text(), re.S)[n]
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  if n == 0:  # cosines: 1 with itself, near 0 with the others
    cosines = [
      [float(x) for x in row.split(",")] for row in re.findall(r"\[([-\d., ]+)\]", done.stdout)
    ]
    assert len(cosines) == 4 and all(
      abs(x - (i == j)) < 0.15 for i, row in enumerate(cosines) for j, x in enumerate(row)
    )
  else:
    assert "' before'" in done.stdout and "' twenty'" in done.stdout
