"""The commands in README.md and docs/ are valid, their links resolve, and their code runs."""

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
  """Return the Python commands in sh blocks and inline code, without shell redirections."""
  blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
  in_blocks = re.findall(r"^(?:.*(?:&&|\|) )?(python (?:\S+\.py|-m tinyformer).*)", blocks, re.M)
  inline = re.findall(r"`(python (?:\S+\.py|-m tinyformer)[^`…]*)`", text)
  return {re.split(" [<>#] ?", c)[0].strip() for c in in_blocks + inline if "--help" not in c}


COMMANDS = sorted({c for text in DOCS.values() for c in commands(text)})


class Parsed(Exception):  # noqa: N818
  """Raised after the arguments are parsed, so that the command itself does not run."""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_parser_of_a_documented_command_accepts_its_arguments(command, monkeypatch, capsys):
  parse = argparse.ArgumentParser.parse_args

  def parse_and_stop(self, args=None, namespace=None):
    parse(self, args, namespace)
    raise Parsed

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
  _, file, *argv = shlex.split(command)
  if file == "-m":
    module, *argv = argv
  elif file == "transformer.py":
    module = "tinyformer.walkthrough"
  else:
    module = file.removesuffix(".py").replace("/", ".")
  assert (ROOT / file).exists() or file == "-m"
  with pytest.raises(Parsed):
    importlib.import_module(module).main(argv)


def test_invalid_flags_and_missing_files_in_commands_are_detected(monkeypatch, capsys):
  check = test_the_parser_of_a_documented_command_accepts_its_arguments
  for wrong in ("python experiments/reverse.py --slow", "python transformer.py --walk"):
    with pytest.raises(SystemExit):
      check(wrong, monkeypatch, capsys)
  with pytest.raises(AssertionError):
    check("python experiments/none.py", monkeypatch, capsys)


def test_links_resolve_and_figures_are_small_png_files():
  for name, text in DOCS.items():
    for link in re.findall(r"\]\(([^)]+)\)", text):
      if not link.startswith("http"):
        assert (ROOT / name.parent / link).exists(), f"{name}: {link}"
  for figure in (ROOT / "docs").glob("*.png"):
    assert figure.stat().st_size < 100_000, figure.name
    assert figure.read_bytes().startswith(b"\x89PNG"), figure.name


@pytest.mark.slow
@pytest.mark.parametrize("n", range(2))
def test_the_code_in_questions_md_prints_what_the_text_says(n):
  code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "questions.md").read_text(), re.S)[n]
  process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  if n == 0:
    # The cosine of a matrix with itself is 1; with another layer's matrix it is near 0.
    rows = re.findall(r"\[([-\d., ]+)\]", process.stdout)
    cosines = [[float(x) for x in row.split(",")] for row in rows]
    assert len(cosines) == 4
    assert all(abs(x - (i == j)) < 0.15 for i, row in enumerate(cosines) for j, x in enumerate(row))
  else:
    assert "' before'" in process.stdout
    assert "' twenty'" in process.stdout


def test_the_glossary_names_existing_identifiers():
  glossary = (ROOT / "docs" / "glossary.md").read_text()
  folders = ("layers", "models", "tinyformer", "experiments", "tests")
  sources = [*ROOT.glob("*.py"), *(f for name in folders for f in (ROOT / name).rglob("*.py"))]
  words = set(re.findall(r"\w+", " ".join(f.read_text(encoding="utf-8") for f in sources)))
  for code in re.findall(r"`([^`]+)`", glossary):
    missing = set(re.findall(r"[A-Za-z_]\w{2,}", code)) - words
    assert not missing, f"{code}: {missing}"
