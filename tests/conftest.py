"""Shared test helpers. Tests run on the device that the commands would select."""

import json
import os
import signal
import sys
from pathlib import Path

# The tests already run in parallel, so each compiles its kernels in one process.
os.environ.setdefault("PARALLEL", "0")
# Unoptimized kernels compile in two thirds of the time. The slow tests of .ci/run use the default.
os.environ.setdefault("NOOPT", "1")
# Models of tests need no snapshots, and must not replace those of the user.
os.environ["TINYFORMER_SNAPSHOT_GB"] = "0"
# A shell ignores Ctrl-C in its background jobs, and they would pass that on to the commands.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The user's hub settings and proxies must not affect the tests.
for name in list(os.environ):
  if name.startswith("HF_") or name.lower().endswith("_proxy"):
    del os.environ[name]
sys.path.insert(0, str(Path(__file__).parent.parent))
from tinyformer.device import select_device

select_device()
import numpy as np
import pytest
from tinygrad import Tensor, nn

from layers.parts import PLAIN
from tinyformer.kernels.parts import CPU_KERNELS, FUSED

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
# Public data beside the project. Tests that need it skip if it is absent.
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def seed():
  """Seed tinygrad, whose default seed is the time of day."""
  Tensor.manual_seed(0)


PARTS = {"plain": PLAIN, "fused": FUSED, "CPU kernels": CPU_KERNELS}


# The default tests leave out FUSED, most of which CPU_KERNELS uses too. .ci/run tests all parts.
FAST_PARTS = ("plain", "CPU kernels")


def parameter(*values, fast: bool, id: str | None = None):  # noqa: A002
  """Return values for pytest.mark.parametrize; their test is a slow one unless `fast` is true."""
  return pytest.param(*values, id=id, marks=() if fast else pytest.mark.slow)


def all_parts():
  """Return a decorator that runs a test with each of the parts as its argument `parts`."""
  params = [parameter(parts, fast=name in FAST_PARTS, id=name) for name, parts in PARTS.items()]
  return pytest.mark.parametrize("parts", params)


def uninitialized(model_class, config):
  """Return a model whose parameters have shapes but no values."""
  from tinyformer.checkpoints import without_initial_values

  return model_class(config, without_initial_values(PLAIN))


def shared_data(name: str) -> Path:
  """Return the path of a file or folder of the public data, or skip the test if it is absent."""
  if not (SHARED / name).exists():
    pytest.skip(f"{name} is not in the shared data folder")
  return SHARED / name


def randomise(model, seed: int = 0, scale: float = 0.3):
  """Replace every parameter with random numbers and return the model.

  Norm weights are uniform in (0.5, 1.5), all others are normal: the ones of a new norm would hide
  parameters that are swapped.
  """
  rng = np.random.default_rng(seed)
  for name, t in nn.state.get_state_dict(model).items():
    is_norm = "norm.weight" in name
    values = rng.uniform(0.5, 1.5, t.shape) if is_norm else rng.normal(0, scale, t.shape)
    t.replace(Tensor(values.astype(np.float32)))
  return model


def close(actual: np.ndarray, expected: np.ndarray, share: float = 1e-5):
  """Assert a maximum error of 1e-4, and of `share` times the standard deviation of `expected`."""
  assert actual.shape == expected.shape
  assert np.abs(actual - expected).max() < min(1e-4, share * expected.std())


def normal(*shape: int, seed: int = 0) -> np.ndarray:
  """Return standard normal float32 numbers."""
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_head(case: str, head: str, folder: Path, **config) -> Path:
  """Write a checkpoint with a fixture's tensors and another head, and return its folder.

  head: the end of the architecture's name, such as "ForTokenClassification".  config: further keys
  of config.json.
  """
  values = json.loads((FIXTURES / case / "config.json").read_text())
  values["architectures"] = [values["architectures"][0].replace("ForMaskedLM", head)]
  (folder / "config.json").write_text(json.dumps(values | config))
  (folder / "model.safetensors").write_bytes((FIXTURES / case / "model.safetensors").read_bytes())
  return folder
