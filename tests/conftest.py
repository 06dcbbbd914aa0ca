"""Every test runs on the device that the commands would choose; CI's, where there is no clang, is the CPU with ziglang's."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("PARALLEL", "0")  # tests run side by side already: each compiles for itself
os.environ.setdefault(
  "NOOPT", "1"
)  # tinygrad makes plainer kernels in two thirds of the time; the slow tests of .ci/run take its usual ones
for name in list(os.environ):  # a user's hub and proxies are not the tests'
  if name.startswith("HF_") or name.lower().endswith("_proxy"):
    del os.environ[name]
sys.path.insert(0, str(Path(__file__).parent.parent))
from tinyformer.device import select_device

select_device()
import numpy as np
import pytest
from tinygrad import Tensor, nn

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
SHARED = (
  ROOT.parent / "shared" / "data"
)  # public data beside the project; what needs it skips where it is absent


@pytest.fixture(autouse=True)
def seed():
  """tinygrad's is the time of day, or what the test before left."""
  Tensor.manual_seed(0)


def shared_data(name: str) -> Path:
  if not (SHARED / name).exists():
    pytest.skip(f"{name} of the public data is not here")
  return SHARED / name


def randomise(model, seed: int = 0, scale: float = 0.3):
  """Gives every parameter random numbers: norm weights from 0.5 to 1.5, all others normal. A fresh model's norms hide swapped names."""
  draw = np.random.default_rng(seed)
  for name, t in nn.state.get_state_dict(model).items():
    values = (
      draw.uniform(0.5, 1.5, t.shape) if "norm.weight" in name else draw.normal(0, scale, t.shape)
    )
    t.replace(Tensor(values.astype(np.float32)))
  return model


def close(got: np.ndarray, want: np.ndarray, share: float = 1e-5):
  """Within 1e-4, and within a share of the spread of what is wanted."""
  assert got.shape == want.shape
  assert np.abs(got - want).max() < min(1e-4, share * want.std())


def normal(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_head(case: str, head: str, folder: Path, **config) -> Path:
  """A folder with the fixture's tensors whose config.json names the architecture that ends in `head`; config: other keys of it."""
  values = json.loads((FIXTURES / case / "config.json").read_text())
  values["architectures"] = [values["architectures"][0].replace("ForMaskedLM", head)]
  (folder / "config.json").write_text(json.dumps(values | config))
  (folder / "model.safetensors").write_bytes((FIXTURES / case / "model.safetensors").read_bytes())
  return folder
