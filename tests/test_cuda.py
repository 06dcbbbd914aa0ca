"""The kernels for an NVIDIA GPU compile, and decode needs few of them. No GPU is needed."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_token_of_gpt2_takes_at_most_120_kernels_of_fixed_shapes(dtype):
  pytest.importorskip("nvidia.cuda_nvrtc", reason="nvidia-cuda-nvrtc-cu12 is not installed")
  command = [sys.executable, ROOT / "tests" / "cuda_kernels.py", dtype]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  kernels = json.loads(run.stdout)
  assert len(kernels["decode"]) <= 120
  # tinygrad puts sizes into names. A kernel that reduces over a symbolic size is not parallel.
  for name in kernels["decode"] + kernels["prefill"]:
    assert "start" not in name
  assert sum("attention" in name for name in kernels["decode"]) == 12
