"""Damaged files are read, and equally to Hugging Face, or refused with one clear error."""

import os
import random
import subprocess
import sys

import pytest
from conftest import ROOT
from fuzz import mutate, runner, targets

NAMES = list(targets.TARGETS)


def report(cases):
  return "\n".join(f"{c.target} {c.number}: {c.outcome}: {c.details}" for c in cases)


def test_damaged_files_are_read_or_refused_with_one_clear_error():
  pytest.importorskip("PIL")
  cases = []
  for number in range(100):
    target = targets.TARGETS[NAMES[number % len(NAMES)]]
    cases.append(runner.run_case(number, 0, target, compare=False))
  assert not runner.failures(cases), report(runner.failures(cases))
  assert {c.outcome for c in cases} == {runner.READ, runner.REFUSED}


@pytest.mark.parametrize("name", NAMES)
def test_the_undamaged_files_of_each_target_are_read(name, tmp_path):
  if name.startswith(("picture", "preprocessor")):
    pytest.importorskip("PIL")
  target = targets.TARGETS[name]
  for file, data in target.files().items():
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(data)
  target.read(tmp_path)


def test_a_case_is_reproducible(tmp_path):
  target = targets.TARGETS["config gpt2-a"]
  contents = []
  for folder, number in (("a", 7), ("b", 7), ("c", 8)):
    (tmp_path / folder).mkdir()
    name = runner.write_case(tmp_path / folder, 1, target, number)
    contents.append((tmp_path / folder / name).read_bytes())
  assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("mutator", [mutate.damage_json, mutate.damage_lines, mutate.damage_bytes])
def test_damage_changes_most_files(mutator):
  data = b'{"a": [1, 2.5, null], "b": {"c": "text"}}\n'
  assert sum(mutator(data, random.Random(i)) != data for i in range(100)) > 80


def broken_target(read):
  return targets.Target("broken", lambda: {"x": b"x"}, {"x": mutate.damage_bytes}, read)


def raises(error):
  def read(folder):
    raise error

  return read


@pytest.mark.parametrize(
  "read, outcome",
  [
    (raises(ValueError("x is damaged")), runner.REFUSED),
    (raises(OSError("x is a pipe")), runner.REFUSED),
    (raises(KeyError("x")), "other exception"),
    (raises(ValueError("two\nlines")), "unclear message"),
    (raises(ValueError("")), "unclear message"),
    (raises(ValueError("\x1b[31m")), "unclear message"),
    (raises(MemoryError()), "too much memory"),
    (lambda folder: 1, runner.READ),
  ],
)
def test_outcomes_are_classified(read, outcome):
  assert runner.run_case(0, 0, broken_target(read), compare=True).outcome == outcome


def test_a_reading_that_differs_from_the_reference_is_a_failure():
  target = broken_target(lambda folder: {"a": 1, "b": 2})
  target.reference = lambda folder, value: {"a": 1, "b": 3}
  case = runner.run_case(0, 0, target, compare=True)
  assert case.outcome == "differs from Hugging Face"
  assert "{'b': 2} != {'b': 3}" in case.details


def allocate(folder):
  return bytearray(2 * runner.MEMORY_BYTES).count(0)


def loop(folder):
  while True:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("read, outcome", [(allocate, "too much memory"), (loop, "too much time")])
def test_a_case_that_exceeds_a_limit_is_a_failure(monkeypatch, read, outcome):
  monkeypatch.setitem(targets.TARGETS, "broken", broken_target(read))
  monkeypatch.setattr(runner, "CPU_SECONDS", 1)
  assert [c.outcome for c in runner.run([0], 0, ["broken"], 1)] == [outcome]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if targets.TARGETS[name].reference])
def test_undamaged_files_are_read_equally_to_hugging_face(name, tmp_path):
  if not targets.import_references():
    pytest.skip("needs the extra `reference`")
  target = targets.TARGETS[name]
  for file, data in target.files().items():
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(data)
  value = target.read(tmp_path)
  assert target.reference(tmp_path, value) == value


@pytest.mark.slow
def test_2000_damaged_files_are_read_equally_to_hugging_face_or_refused():
  if not targets.import_references():
    pytest.skip("needs the extra `reference`")
  cases = list(runner.run(list(range(2000)), 1, NAMES))
  print("\n".join(runner.table(cases)))
  assert len(cases) == 2000
  assert not runner.failures(cases), report(runner.failures(cases))


@pytest.mark.slow
def test_the_command_needs_no_compiler_but_that_of_the_extra_cpu(tmp_path):
  """The tests' own process has found a compiler already, and the cache may have its programs."""
  env = {name: value for name, value in os.environ.items() if name not in ("CC", "DEV")}
  env["XDG_CACHE_HOME"] = str(tmp_path)
  command = [sys.executable, "-m", "tests.fuzz", "--target", "config gpt2-b", "--cases", "5"]
  result = subprocess.run(
    [*command, "--no-reference"], cwd=ROOT, env=env, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert runner.READ in result.stdout
  assert "5 cases, 0 failures" in result.stdout
