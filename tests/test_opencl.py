"""The commands on OpenCL, whose kernels are those for a GPU: the same results as on the CPU.

The tests need an OpenCL device, such as Debian's pocl-opencl-icd, which computes on the CPU, and an
OpenCL loader, such as ocl-icd-libopencl1.
"""

import csv
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_ask import small_berts

PROMPT = ["-m", "tiny", "-p", "He shook his"]


@functools.cache
def has_opencl() -> bool:
  """Return whether tinygrad opens an OpenCL device, in a process of its own."""
  code = "from tinygrad import Device; Device['CL']"
  command = [sys.executable, "-c", code]
  return subprocess.run(command, capture_output=True, env=environment("CL")).returncode == 0


def environment(device: str) -> dict[str, str]:
  return {**os.environ, "DEV": device, "PYTHONPATH": str(ROOT), "NOOPT": "0"}


def run(device: str, *command) -> str:
  """Run a Python program of the project on a device, and return its output."""
  if not has_opencl():
    pytest.skip("tinygrad finds no OpenCL device")
  arguments = [str(part) for part in command]
  environ = environment(device)
  process = subprocess.run(
    [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=environ
  )
  assert process.returncode == 0, process.stdout + process.stderr
  return process.stdout


@pytest.mark.slow
def test_the_walkthrough_passes_on_opencl():
  assert "on CL" in run("CL", "transformer.py")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_greedy_text_on_opencl_equals_the_cpus(dtype):
  command = ["gpt.py", *PROMPT, "-t", "0", "-n", "8", "--dtype", dtype]
  expected = run("CPU", *command)
  assert run("CL", *command) == expected
  # This run loads the steps that the last one saved.
  assert run("CL", *command) == expected


INT4_LOGITS = """
import sys
import numpy as np
from tinygrad import nn
import tinyformer
from tinyformer.generation import Engine
from tinyformer.kernels.quantization import is_quantized, to_float32

_, file, is_dequantized = sys.argv
model = tinyformer.load("tiny", dtype="int4")
for weight in nn.state.get_parameters(model.module):
  if int(is_dequantized) and is_quantized(weight):
    weight.uop = to_float32(weight).contiguous().realize().uop
engine = Engine(model.module)
ids = model.tokenizer.encode("He shook his head and")
np.save(file, [engine(np.array([[token]]))[0] for token in ids])
"""


@pytest.mark.slow
def test_int4_logits_on_opencl_equal_those_of_the_weights_in_float32(tmp_path):
  """The CPU also rounds activations to int8, which changes its logits a little."""
  script = tmp_path / "int4_logits.py"
  script.write_text(INT4_LOGITS)

  def logits(device: str, is_dequantized: bool) -> np.ndarray:
    file = tmp_path / f"{device}{is_dequantized}.npy"
    run(device, script, file, int(is_dequantized))
    return np.load(file)

  expected = logits("CPU", True)
  std = expected.std(1, keepdims=True)
  on_opencl, on_cpu = logits("CL", False), logits("CPU", False)
  assert (np.abs(on_opencl - expected) < 1e-4 * std).all()
  assert (np.abs(on_opencl - on_cpu) < 0.1 * std).all()
  np.testing.assert_array_equal(on_opencl.argmax(1), expected.argmax(1))


@pytest.mark.slow
def test_the_predictions_of_a_mask_on_opencl_equal_the_cpus(tmp_path_factory):
  folder = small_berts(tmp_path_factory)("ForMaskedLM")
  command = ["ask.py", "-m", folder, "the capital of france is [MASK]."]
  assert run("CL", *command) == run("CPU", *command)


@pytest.mark.slow
def test_the_attention_page_is_written_on_opencl(tmp_path):
  run("CL", "attend.py", *PROMPT, "--html", tmp_path / "page.html", "-q")
  assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.slow
def test_training_losses_on_opencl_equal_the_cpus(tmp_path):
  """Both devices round differently: the relative error is below 1e-3 after six steps."""
  text = tmp_path / "text.txt"
  text.write_text("The cat sat on the mat. The dog ate the cat's food. " * 100)
  sizes = ["--vocab", 280, "--dim", 32, "--heads", 2, "--layers", 2, "--context", 16, "--batch", 4]
  sizes += ["--steps", 6, "--eval-interval", 2, "--sample", 0, "--warmup", 2]
  losses = {}
  for device in ("CL", "CPU"):
    run(device, "train.py", text, "-o", tmp_path / device, *sizes)
    with open(tmp_path / device / "log.csv", newline="") as f:
      rows = list(csv.DictReader(f))
    losses[device] = [float(value) for row in rows for key, value in row.items() if "loss" in key]
  assert len(losses["CPU"]) >= 6
  np.testing.assert_allclose(losses["CL"], losses["CPU"], rtol=1e-3)


@pytest.mark.slow
def test_a_part_of_the_tests_passes_on_opencl():
  """The kernels for workgroups, the engine, sampling, and the KV cache of beams."""
  files = ("workgroup", "kv_cache", "generate_simple", "exact_top_k")
  tests = [f"tests/test_{name}.py" for name in files]
  names = "workgroup or reordered or bucket or fixed_shapes or samples_the_same_tokens"
  names += " or (padded and (gpt2 or llama or qwen2))"
  output = run("CL", "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests, "-k", names)
  assert "failed" not in output
