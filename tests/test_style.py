"""The project's layout and style: directions of imports, identifiers, width, and help texts."""

import argparse
import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SUFFIXES = (".py", ".js", ".css", ".c", ".h")


def source_files(*suffixes: str) -> list[str]:
  """Return the project's files with these suffixes, without fixtures, relative to the project."""
  command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
  if not listed:
    pytest.skip("this is not a git checkout")
  return sorted(
    {
      name
      for name in listed
      if name.endswith(suffixes) and "fixtures" not in name and (ROOT / name).exists()
    }
  )


def read(name: str) -> str:
  return (ROOT / name).read_text(encoding="utf-8")


# imports

REFERENCE = {"transformer", "layers", "models"}
# What each of our packages may import. A package that is not listed may import everything.
ALLOWED = {
  "transformer": set(),
  "layers": {"transformer"},
  "models": {"transformer", "layers"},
  "minigrad": set(),
  "tinyformer.files": set(),
  "tinyformer.backend": {"minigrad"},
  "tinyformer.kernels": {"transformer", "layers", "minigrad", "tinyformer.backend"},
  "tinyformer.checkpoints": REFERENCE
  | {"tinyformer.kernels", "tinyformer.files", "tinyformer.backend"},
  "tinyformer.tokenization": {"tinyformer.files"},
  "tinyformer.vision": {"tinyformer.files"},
  "tinyformer.generation": REFERENCE
  | {
    "tinyformer.kernels.compiled_step",
    "tinyformer.tokenization",
    "tinyformer.files",
    "tinyformer.backend",
  },
  "tinyformer.training": REFERENCE
  | {
    "tinyformer.kernels.compiled_step",
    "tinyformer.tokenization",
    "tinyformer.checkpoints",
    "tinyformer.files",
    "tinyformer.backend",
    "minigrad",
  },
  "tinyformer.interpret": REFERENCE | {"tinyformer.kernels.compiled_step", "tinyformer.files"},
}
OURS = {*REFERENCE, "minigrad", "tinyformer", "experiments", "benchmarks"}
# transformer.py and minigrad, run as programs, hand over to their walkthroughs.
EXCEPTIONS = {
  ("transformer.py", "tinyformer.walkthrough"),
  ("minigrad/__main__.py", "tinyformer.minigrad_walkthrough"),
}
PUBLIC_TINYGRAD = {
  "tinygrad",
  "tinygrad.nn",
  "tinygrad.nn.state",
  "tinygrad.nn.optim",
  "tinygrad.dtype",
  "tinygrad.helpers",
}
# The one file that imports tinygrad's internals.
INTERNALS = "tinyformer/kernels/tinygrad_internals.py"


def package(name: str) -> str:
  """Return the package of a file or module, such as "models" or "tinyformer.kernels"."""
  parts = name.removesuffix(".py").replace("/", ".").split(".")
  return ".".join(parts[:2]) if parts[0] == "tinyformer" else parts[0]


def imported_modules(name: str) -> set[str]:
  """Return the modules that a file imports, also inside functions."""
  modules = set()
  for node in ast.walk(ast.parse(read(name))):
    if isinstance(node, ast.Import):
      modules |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      submodules = {f"{node.module}.{alias.name}" for alias in node.names}
      files = {m for m in submodules if is_module(m)}
      modules |= files
      if len(files) < len(submodules):
        modules.add(node.module)
  return modules


def is_module(name: str) -> bool:
  path = ROOT / name.replace(".", "/")
  return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def may_import(importer: str, module: str) -> bool:
  allowed = ALLOWED.get(importer)
  if allowed is None or package(module) == importer or module == "tinyformer":
    return True
  return any(module == a or module.startswith(a + ".") for a in allowed)


def test_packages_import_in_one_direction_only():
  against = {
    (name, module)
    for name in source_files(".py")
    for module in imported_modules(name)
    if module.split(".")[0] in OURS and not may_import(package(name), module)
  }
  assert against == EXCEPTIONS


def test_minigrad_imports_only_numpy_and_the_standard_library():
  names = {name for name in source_files(".py") if name.startswith("minigrad/")}
  names.remove("minigrad/__main__.py")
  imported = {module.split(".")[0] for name in names for module in imported_modules(name)}
  assert imported - sys.stdlib_module_names == {"minigrad", "numpy"}


def code_lines(source: str) -> int:
  """Return the number of lines that are neither blank nor a comment nor part of a docstring."""
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
  docstrings: set[int] = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, documented) and ast.get_docstring(node):
      docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
  return sum(
    number not in docstrings and line.strip() != "" and not line.strip().startswith("#")
    for number, line in enumerate(source.splitlines(), 1)
  )


def test_minigrad_has_at_most_600_lines_of_code():
  names = [name for name in source_files(".py") if name.startswith("minigrad/")]
  assert sum(code_lines(read(name)) for name in names) <= 600


def test_one_file_imports_tinygrads_internals():
  importers = {
    name
    for name in source_files(".py")
    for module in imported_modules(name)
    if module.split(".")[0] == "tinygrad" and module not in PUBLIC_TINYGRAD
    if not name.startswith("tests/")
  }
  assert importers == {INTERNALS}


# identifiers

# Identifiers that were replaced by the field's terms (docs/glossary.md).
OLD_IDENTIFIERS = set((ROOT / "tests" / "old_identifiers.txt").read_text().split())


def identifiers(tree: ast.AST) -> set[str]:
  names = set()
  for node in ast.walk(tree):
    for field in ("name", "attr", "id", "arg"):
      value = getattr(node, field, None)
      if isinstance(value, str):
        names.add(value)
  return names


@pytest.mark.parametrize("name", source_files(".py"))
def test_no_old_identifier_is_used(name):
  old = identifiers(ast.parse(read(name))) & OLD_IDENTIFIERS
  # attend.py is a command, and its module is imported by the tests.
  imports_attend = "attend" in imported_modules(name)
  assert old - ({"attend"} if imports_attend else set()) == set()


# width


@pytest.mark.parametrize("name", source_files(*SUFFIXES))
def test_lines_have_at_most_100_columns(name):
  wide = [
    number
    for number, line in enumerate(read(name).splitlines(), 1)
    if len(line) > 100 and not re.search(r"https?://", line)
  ]
  assert not wide, f"{name}: lines {wide}"


# help texts

COMMANDS = ["gpt", "ask", "attend", "train", "evaluate", "convert", "bench"]
COMMANDS += ["tinyformer.walkthrough", "tinyformer.minigrad_walkthrough"]
COMMANDS += ["tinyformer.cli.plot_loss", "benchmarks.build_llama_cpp"]
COMMANDS += sorted(
  f"experiments.{path.stem}"
  for path in Path(ROOT / "experiments").glob("*.py")
  if "__main__" in path.read_text(encoding="utf-8")
)


class Parsed(Exception):  # noqa: N818
  """The arguments were parsed; nothing must run."""


@pytest.fixture
def parser_of(monkeypatch):
  """Return a function that returns the argument parser of a command's module."""

  def parser_of(module: str) -> argparse.ArgumentParser:
    captured = []

    def parse_args(self, args=None, namespace=None):
      captured.append(self)
      raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
      importlib.import_module(module).main([])
    return captured[0]

  return parser_of


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_has_help_and_shows_its_default_once(module, parser_of):
  parser = parser_of(module)
  assert parser.description and parser.description[0].isupper()
  formatter = parser._get_formatter()
  for action in parser._actions:
    name = "/".join(action.option_strings) or action.dest
    assert action.help and action.help != argparse.SUPPRESS, f"{name} has no help"
    assert action.help.replace("%(default)s", "").count("default") <= 1, f"{name}: {action.help}"
    text = formatter._expand_help(action)
    assert not re.search(r"default: (None|False|\[\])", text), f"{name}: {text}"
