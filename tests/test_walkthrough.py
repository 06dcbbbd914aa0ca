"""`python transformer.py`: its sections, its checks and its exit status."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

import transformer
from tinyformer import walkthrough


def section_index(title: str) -> int:
  return [section[1] for section in walkthrough.SECTIONS].index(title)


@pytest.mark.slow
def test_verbose_output_shows_and_checks_every_section():
  command = [sys.executable, "transformer.py", "-v"]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert run.stdout.startswith("Device: ")
  assert run.stdout.count("\n  ok: ") == len(walkthrough.SECTIONS)
  for number, title, _ in walkthrough.SECTIONS:
    assert f"{number} {title}".strip() in run.stdout
  assert "1 checks" not in run.stdout
  counts = [int(n) for n in re.findall(r"ok: .*: (\d+) checks?,", run.stdout)]
  last = run.stdout.splitlines()[-1]
  summary = re.fullmatch(r"(\d+) checks passed, largest error \de-\d\d, on \w+, \d+ s", last)
  assert summary and int(summary[1]) == sum(counts) == run.stdout.count("✓")


def test_without_verbose_each_section_is_one_line(capsys, monkeypatch):
  monkeypatch.setattr(walkthrough, "SECTIONS", walkthrough.SECTIONS[:2])
  assert walkthrough.main([]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "Device: " + walkthrough.select_device()
  assert [line.split(":")[0] for line in lines[1:-1]] == ["ok", "ok"]
  assert lines[-1].startswith("8 checks passed, ")


def test_one_check_is_singular():
  assert walkthrough.count_checks(1) == "1 check"
  assert walkthrough.count_checks(2) == "2 checks"


@pytest.mark.parametrize(
  "title, name, broken, message",
  [
    (
      "Why the scores are scaled",
      "scaled_dot_product",
      lambda q, k: q @ k.T / 8.01,
      "Q K^T / sqrt(d_k), (60, 60)",
    ),
    (
      "Masks",
      "causal_mask",
      lambda T, S: transformer.Tensor.full((T, S), -1e4).triu(S - T + 1),
      "causal mask",
    ),
    (
      "Positional encoding",
      "sinusoids",
      lambda T, dim: transformer.Tensor.zeros(T, dim),
      "sinusoids",
    ),
  ],
)
def test_a_failing_check_is_named_and_the_status_is_1(
  capsys, monkeypatch, title, name, broken, message
):
  index = section_index(title)
  monkeypatch.setattr(walkthrough, "SECTIONS", walkthrough.SECTIONS[index : index + 1])
  monkeypatch.setattr(transformer, name, broken)
  assert walkthrough.main([]) == 1
  error = capsys.readouterr().err
  assert "failed: " in error and message in error
