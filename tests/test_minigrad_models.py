"""Every architecture on minigrad: outputs and gradients against transformers and tinygrad."""

import subprocess
import sys

import numpy as np
import pytest
from backend_outputs import CASES, FIXTURES, output_and_gradients
from conftest import ROOT, close

# The array of expected.npz that has the model's output.
OUTPUTS = ("logits", "ForMaskedLM")
# The attention of gpt1-a is almost one-hot. float32 rounds the gradients of its queries by 1e-4 on
# both backends, compared with minigrad in float64.
GRADIENT_TOLERANCES = {"gpt1-a": 5e-4}


@pytest.fixture(scope="module")
def minigrad_results(tmp_path_factory):
  """Return the outputs and gradients of all fixtures on minigrad."""
  file = tmp_path_factory.mktemp("minigrad") / "results.npz"
  command = [sys.executable, "tests/backend_outputs.py", "NUMPY", str(file)]
  subprocess.run(command, cwd=ROOT, check=True)
  return np.load(file)


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_hugging_faces(case, minigrad_results):
  expected = np.load(FIXTURES / case / "expected.npz")
  name = next(name for name in OUTPUTS if name in expected)
  is_per_token = "keep" in expected and expected["keep"].shape == expected[name].shape[:2]
  rows = expected["keep"] == 1 if is_per_token and "ids" in expected else np.s_[:]
  for kind in ("output", "fast output"):
    close(minigrad_results[f"{case} {kind}"][rows], expected[name][rows], 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_tinygrads(case, minigrad_results):
  expected = output_and_gradients(case)
  names = [name for name in minigrad_results if name.startswith(f"{case} ") and "fast" not in name]
  assert set(expected) == set(names)
  for name, b in expected.items():
    a = minigrad_results[name]
    # The softmax cancels the bias of the keys, so its gradient is 0, apart from rounding.
    reference = expected[name.replace("k.bias", "k.weight")]
    error = np.abs(a - b).max() / np.abs(reference).max()
    assert error < (1e-5 if name.endswith("output") else GRADIENT_TOLERANCES.get(case, 1e-4)), name
