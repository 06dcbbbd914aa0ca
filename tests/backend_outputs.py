"""Write the outputs and gradients of the models in tests/fixtures to a file, on one backend.

`python tests/backend_outputs.py NUMPY FILE.npz` runs minigrad; the names of fixtures may follow.
Two backends cannot be in one process, because both have the name tinygrad.
"""

import sys
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir() if (path / "expected.npz").exists())
# The inputs of the models, by the names in expected.npz.
INPUTS = [("pixels",), ("source", "target", "keep"), ("ids", "keep", "segments"), ("ids",)]


def output_and_gradients(case: str, parts=None) -> dict[str, np.ndarray]:
  """Return a model's output, and each parameter's gradient of a weighted sum of the output."""
  from tinygrad import Tensor, nn

  from layers.parts import PLAIN
  from tinyformer import checkpoints

  model = checkpoints.load_module(FIXTURES / case, parts=parts or PLAIN)
  arrays = np.load(FIXTURES / case / "expected.npz")
  names = next(names for names in INPUTS if set(names) <= set(arrays))
  output = model(*(Tensor(arrays[name]) for name in names))
  weights = np.cos(np.arange(output.numel())).reshape(output.shape).astype(np.float32)
  parameters = nn.state.get_state_dict(model)
  gradients = (output * Tensor(weights)).sum().gradient(*parameters.values())
  Tensor.realize(output, *gradients)
  results = {f"{case} gradient {n}": g.numpy() for n, g in zip(parameters, gradients, strict=True)}
  return {f"{case} output": output.numpy(), **results}


def output_without_gradients(case: str) -> np.ndarray:
  """Return the output of a model that is built from the fastest parts, for inference."""
  from tinygrad import Context, Tensor

  from tinyformer import checkpoints

  model = checkpoints.load_module(FIXTURES / case)
  arrays = np.load(FIXTURES / case / "expected.npz")
  names = next(names for names in INPUTS if set(names) <= set(arrays))
  with Context(RECORD=0):
    return model(*(Tensor(arrays[name]) for name in names)).numpy()


def main(device: str, file: str, *cases: str) -> None:
  from tinyformer.device import select_device

  select_device(device)
  results: dict[str, np.ndarray] = {}
  for case in cases or CASES:
    results |= output_and_gradients(case)
    if device == "NUMPY":
      results[f"{case} fast output"] = output_without_gradients(case)
  np.savez(file, **results)  # type: ignore[arg-type]


if __name__ == "__main__":
  sys.path.insert(0, str(FIXTURES.parent.parent))
  main(*sys.argv[1:])
