"""Results that must not change: those of commit 1097acd, saved in frozen.json."""

import json

import frozen
import numpy as np
import pytest
from conftest import parameter
from frozen import DECODERS, ENCODER_DECODERS, FAMILIES

SAVED = json.loads(frozen.FROZEN.read_text(encoding="utf-8"))
FAST = ["gpt2-a"]  # .ci/run compares the gradients and the generated ids of the other families.


def compare(actual, saved):
  actual, saved = np.array(actual), np.array(saved)
  assert actual.shape == saved.shape
  np.testing.assert_allclose(actual, saved, rtol=1e-4, atol=1e-5 * np.abs(saved).max())


@pytest.mark.parametrize("case", FAMILIES)
def test_logits_are_unchanged(case):
  compare(frozen.logits(case), SAVED["logits"][case])


@pytest.mark.parametrize("case", [parameter(case, fast=case in FAST) for case in FAMILIES])
def test_gradients_are_unchanged(case):
  compare(frozen.gradients(case), SAVED["gradients"][case])


@pytest.mark.parametrize(
  "case", [parameter(case, fast=case in FAST) for case in [*DECODERS, *ENCODER_DECODERS]]
)
def test_greedy_ids_are_unchanged(case):
  assert frozen.greedy(case) == SAVED["greedy"][case]


def test_outputs_of_the_commands_are_unchanged(tmp_path, monkeypatch):
  monkeypatch.setenv("COLUMNS", "100")
  outputs = frozen.commands(tmp_path)
  for name, saved in SAVED["commands"].items():
    if isinstance(saved, str):
      assert outputs[name] == saved, name
    else:
      compare(outputs[name], saved)
