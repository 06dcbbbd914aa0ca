"""Test the tests: plant one bug at a time in a copy of the project and check that a test fails.

`python tests/planted_bugs.py` runs all bugs and prints one line per bug, with the test that
caught it.
`python tests/planted_bugs.py kernels gelu` runs only the bugs whose file name or title contains one
of these words. The exit status is 1 if a bug was not caught. The bugs are listed in tests/bugs/.
"""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
IGNORED = shutil.ignore_patterns(
  ".git", "__pycache__", ".venv", ".hypothesis", ".pytest_cache", ".mypy_cache", "weights"
)


class Bug(NamedTuple):
  """A bug to plant.

  title: what is wrong.  file: where, relative to the project.  name: the qualified name of the
  function, class or module-level variable that contains the code; "" for the whole file.
  old: the correct code, which occurs once under that name.  new: the bug.
  tests: the tests, one of which must fail, separated by blanks: whole modules ("gpt2 kv_cache") or
  single functions, which are much faster ("gpt2::test_logits_equal_hugging_face").

  White space, line breaks, kinds of quotes and trailing commas of `old` do not matter.
  """

  title: str
  file: str
  name: str
  old: str
  new: str
  tests: str


def load_bugs() -> list[Bug]:
  """Return the bugs of all modules in tests/bugs."""
  modules = sorted(path.stem for path in (ROOT / "tests" / "bugs").glob("*.py"))
  return [bug for name in modules for bug in importlib.import_module(f"bugs.{name}").BUGS]


def named_span(source: str, name: str) -> tuple[int, int]:
  """Return the start and end offsets of a definition or assignment in Python code.

  Raises ValueError if the name is not defined.
  """
  offsets = [0]
  for line in source.splitlines(keepends=True):
    offsets.append(offsets[-1] + len(line))
  body: list[ast.stmt] = ast.parse(source).body
  node: ast.stmt | None = None
  for part in name.split("."):
    node = next((n for n in definitions(body) if part in defined_names(n)), None)
    if node is None:
      raise ValueError(f"{name} is not defined")
    body = getattr(node, "body", [])
  assert node is not None and node.end_lineno is not None
  first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
  return offsets[first - 1], offsets[node.end_lineno]


def definitions(body: list[ast.stmt]) -> list[ast.stmt]:
  """Return all definitions and assignments in a body, also those inside if, for, with and try."""
  found = []
  for node in body:
    found.append(node)
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
      for field in ("body", "orelse", "finalbody"):
        found += definitions(getattr(node, field, []))
      for handler in getattr(node, "handlers", []):
        found += definitions(handler.body)
  return found


def defined_names(node: ast.stmt) -> list[str]:
  """Return the names that a statement defines."""
  if isinstance(node, ast.FunctionDef | ast.ClassDef):
    return [node.name]
  targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
  return [target.id for target in targets if isinstance(target, ast.Name)]


def pattern(code: str) -> re.Pattern[str]:
  """Return a regular expression that finds code however it is formatted."""
  tokens = re.findall(r"\w+|[^\w\s]", code)
  parts = []
  for i, token in enumerate(tokens):
    if i:
      parts.append(r"\s*,?\s*" if token in ")]}" else r"\s*")
    parts.append("['\"]" if token in "'\"" else re.escape(token))
  return re.compile("".join(parts))


def find(bug: Bug, source: str) -> tuple[int, int]:
  """Return the start and end offsets of the bug's old code.

  Raises ValueError if the code does not occur exactly once.
  """
  first, last = named_span(source, bug.name) if bug.name else (0, len(source))
  matches = list(pattern(bug.old).finditer(source, first, last))
  if len(matches) != 1:
    raise ValueError(f"{bug.file}: {bug.name} contains {bug.old!r} {len(matches)} times, not once")
  return matches[0].span()


def test_arguments(bug: Bug) -> list[str]:
  """Return the bug's tests as arguments for pytest: tests/test_gpt2.py::test_logits..."""
  names = (name.partition("::") for name in bug.tests.split())
  return [f"tests/test_{module}.py{separator}{test}" for module, separator, test in names]


def catch(bug: Bug) -> tuple[str | None, str]:
  """Return the first test that fails with the bug planted, or None, and the output of the tests."""
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / "project"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    (copy / "weights").symlink_to(ROOT / "weights")  # tests of the shipped model need it
    source = (copy / bug.file).read_text(encoding="utf-8")
    begin, end = find(bug, source)
    (copy / bug.file).write_text(source[:begin] + bug.new + source[end:], encoding="utf-8")
    # Without --assert=plain, pytest spends minutes on the difference of two long values.
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--assert=plain"]
    command = [sys.executable, "-m", "pytest", *options, *test_arguments(bug)]
    # An editable installation must not shadow the copy.
    environment = os.environ | {"PYTHONPATH": str(copy)}
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    failures = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", run.stdout, re.M)
    output = f"{run.stdout}{run.stderr}exit status {run.returncode}"
    return failures[0] if run.returncode == 1 and failures else None, output


def main(words: list[str]) -> int:
  bugs = [
    bug
    for bug in load_bugs()
    if not words or any(word in bug.file or word in bug.title for word in words)
  ]
  missed = 0
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for bug, (test, output) in zip(bugs, pool.map(catch, bugs), strict=True):
      if test is None:
        print(*output.splitlines()[-20:], sep="\n")
        test, _ = catch(bug)  # once more, in case the process was killed
      print(f"caught: {bug.title} by {test}" if test else f"MISSED: {bug.title}", flush=True)
      missed += test is None
  print(f"{len(bugs) - missed} passed, {missed} failed")
  return int(missed > 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
