import subprocess
import sys

import pytest
from conftest import ROOT

import transformer
from tinyformer import walkthrough


@pytest.mark.slow
def test_the_lesson_shows_and_checks_each_section():
  done = subprocess.run(
    [sys.executable, "transformer.py", "-v"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("on ") and done.stdout.count("\n  ok: ") == len(
    walkthrough.SECTIONS
  )
  assert all(f"{number} {title}" in done.stdout for number, title, _ in walkthrough.SECTIONS)


def test_without_a_flag_it_is_a_line_a_section(capsys, monkeypatch):
  monkeypatch.setattr(walkthrough, "SECTIONS", walkthrough.SECTIONS[:2])
  assert walkthrough.main([]) == 0
  assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
    "on " + walkthrough.select_device(),
    "ok",
    "ok",
  ]


@pytest.mark.parametrize(
  "section, name, broken, told",
  [
    (1, "scaled_dot_product", lambda q, k: q @ k.T / 8.01, "Q K^T / sqrt(d_k) of 60 by 60 vectors"),
    (
      2,
      "causal_mask",
      lambda T, S: transformer.Tensor.full((T, S), -1e4).triu(S - T + 1),
      "causal mask",
    ),
    (7, "sinusoids", lambda T, dim: transformer.Tensor.zeros(T, dim), "sinusoids"),
  ],
)
def test_a_failing_check_is_named_and_the_status_is_1(
  capsys, monkeypatch, section, name, broken, told
):
  monkeypatch.setattr(walkthrough, "SECTIONS", walkthrough.SECTIONS[section : section + 1])
  monkeypatch.setattr(transformer, name, broken)
  assert walkthrough.main([]) == 1
  assert "failed: " in (err := capsys.readouterr().err) and told in err
