"""The list of planted bugs matches the code. .ci/run plants them."""

import planted_bugs
import pytest
from planted_bugs import ROOT, Bug

BUGS = planted_bugs.load_bugs()


@pytest.mark.parametrize("bug", BUGS, ids=[bug.title for bug in BUGS])
def test_old_code_occurs_once(bug):
  planted_bugs.find(bug, (ROOT / bug.file).read_text(encoding="utf-8"))


def test_every_bug_names_existing_tests():
  for bug in BUGS:
    for test in planted_bugs.test_arguments(bug):
      file, _, function = test.partition("::")
      source = (ROOT / file).read_text(encoding="utf-8")
      assert not function or f"\ndef {function}(" in source, bug.title


def test_formatting_does_not_matter():
  bug = Bug("", "f.py", "f", "g(a,b='x')", "", "")
  begin, end = planted_bugs.find(bug, 'def f():\n  return g(\n    a,\n    b="x",\n  )\n')
  assert begin == len("def f():\n  return ") and end > begin
  with pytest.raises(ValueError, match="0 times"):
    planted_bugs.find(bug, "def f():\n  return g(a)\n")
