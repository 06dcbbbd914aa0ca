"""Compile a GPT-2's kernels for an NVIDIA GPU, without one, and print what test_cuda.py checks.

`python tests/cuda_kernels.py DTYPE` compiles decode, prefill and a training step. It needs the
package nvidia-cuda-nvrtc-cu12. tinygrad's device NULL compiles kernels and does not run them.
"""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"DEV": "NULL:CUDA:sm_90", "NULL_ALLOW_COPYOUT": "1", "JIT": "2", "PARALLEL": "0"}


def nvrtc_path() -> Path:
  """Return the path of NVIDIA's compiler library. Raises ImportError if it is not installed."""
  spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
  if spec is None or not spec.submodule_search_locations:
    raise ImportError("nvidia-cuda-nvrtc-cu12 is not installed")
  [folder] = spec.submodule_search_locations
  return next(Path(folder, "lib").glob("libnvrtc.so.*"))


def quantized_gpt2(layers: int, dtype: str):
  """Return a GPT-2 with the smallest GPT-2's sizes, without values, and weights of this dtype."""
  from tinygrad import Tensor, dtypes, nn

  from models.gpt2 import GPT2, GPT2Config
  from tinyformer.checkpoints import without_initial_values
  from tinyformer.kernels.parts import default_parts

  model = GPT2(GPT2Config(num_layers=layers), without_initial_values(default_parts()))
  for tensor in nn.state.get_parameters(model):
    if tensor.ndim == 2 and dtype != "float32":
      rows, columns = tensor.shape
      columns += 4 if dtype == "int8" else 0  # the scale
      tensor.uop = Tensor.empty(rows, columns, dtype=getattr(dtypes, dtype)).uop
  return model


def step_kernels(layers: int, dtype: str, num_tokens: int, bucket: int) -> list[str]:
  """Return the names of the kernels that process this number of tokens."""
  import numpy as np

  from tinyformer.generation import Engine

  engine = Engine(quantized_gpt2(layers, dtype))
  engine.step(num_tokens, bucket)(
    np.zeros((1, num_tokens), np.int32), start=3, **({"last": 5} if num_tokens > 1 else {})
  )
  [step] = engine.steps.values()
  captured = step.jit.captured
  assert captured is not None
  return [re.sub(r"\x1b\[\d+m", "", call.src[0].arg.name) for call in captured.linear.src]


def compile_training_step(precision: str) -> None:
  """Compile the gradients of a block's training step with products of this precision."""
  from tinygrad import Tensor, nn

  from models.gpt2 import GPT2, GPT2Config
  from tinyformer.checkpoints import without_initial_values
  from tinyformer.kernels import loss_function, training_parts

  config = GPT2Config(1000, 64, 96, 3, 1)
  model = GPT2(config, without_initial_values(training_parts(precision)))
  parameters = nn.state.get_parameters(model)
  ids = Tensor.zeros(2, 64, dtype="int32").contiguous()
  loss = loss_function()(model(ids), ids, 0.0)
  Tensor.realize(loss, *loss.gradient(*parameters))


def main(dtype: str) -> None:
  from tinyformer.device import select_device

  select_device()
  decode = step_kernels(12, dtype, 1, 1024)
  prefill = step_kernels(2, dtype, 64, 1024)
  if dtype != "int8":
    compile_training_step(dtype)
  print(json.dumps({"decode": decode, "prefill": prefill}))


if __name__ == "__main__":
  os.environ["NVRTC_PATH"] = str(nvrtc_path())
  main(sys.argv[1])
