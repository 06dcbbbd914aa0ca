"""The kernels for an NVIDIA GPU compile, and decode needs few of them. No GPU is needed."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_token_takes_at_most_120_kernels_and_no_step_copies_weights_or_stores_scores(
  dtype, tmp_path, monkeypatch
):
  pytest.importorskip("nvidia.cuda_nvrtc", reason="nvidia-cuda-nvrtc-cu12 is not installed")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  command = [sys.executable, ROOT / "tests" / "cuda_kernels.py", dtype]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  steps = json.loads(run.stdout)
  for step in steps.values():
    assert step["loaded_from_cache"]
    # tinygrad puts sizes into names. A kernel that reduces over a symbolic size is not parallel.
    for name in step["kernels"]:
      assert "start" not in name
    # The values and indices of 64 candidates for the top 40 leave the device, not all logits.
    assert step["result"] == 2 * 64
  for family in ("gpt2", "llama"):
    assert len(steps[family]["kernels"]) <= 120
    assert sum("attention" in name for name in steps[family]["kernels"]) == 12
  prefill = steps["prefill"]
  # No buffer has a score for each of 12 heads, 512 queries and 1,024 keys.
  assert sum("attention" in name for name in prefill["kernels"]) == 3
  assert max(prefill["sizes"]) < 12 * 512 * 1024 // 2
  if dtype in ("float16", "bfloat16"):
    # All products of the first block, and the keys and values of the last one.
    assert prefill["tensor_cores"] == 6 + 2
    weights = {768 * 768, 768 * 3072, 50257 * 768}
    for name in ("gpt2", "prefill"):
      assert not weights & set(steps[name]["float32_sizes"])
