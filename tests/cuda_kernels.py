"""Compile kernels for an NVIDIA GPU, without one, and print what test_cuda.py checks.

`python tests/cuda_kernels.py DTYPE` compiles decode of a GPT-2 and a LLaMA, and prefill and a
training step of a GPT-2. It needs the package nvidia-cuda-nvrtc-cu12. tinygrad's device NULL
compiles kernels and does not run them.
"""

import importlib.util
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"DEV": "NULL:CUDA:sm_90", "NULL_ALLOW_COPYOUT": "1", "JIT": "2", "PARALLEL": "0"}


def nvrtc_path() -> Path:
  """Return the path of NVIDIA's compiler library. Raises ImportError if it is not installed."""
  spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
  if spec is None or not spec.submodule_search_locations:
    raise ImportError("nvidia-cuda-nvrtc-cu12 is not installed")
  [folder] = spec.submodule_search_locations
  return next(Path(folder, "lib").glob("libnvrtc.so.*"))


def quantized_model(family: str, layers: int, dtype: str):
  """Return a gpt2 or llama of the smallest GPT-2's width, without values, with this dtype."""
  from tinygrad import Tensor, dtypes, nn

  from models.gpt2 import GPT2, GPT2Config
  from models.llama import Llama, LlamaConfig
  from tinyformer.checkpoints import without_initial_values
  from tinyformer.kernels.parts import default_parts

  parts = without_initial_values(default_parts())
  model: Any
  if family == "gpt2":
    model = GPT2(GPT2Config(num_layers=layers), parts)
  else:
    model = Llama(LlamaConfig(32_000, 1024, 768, 12, 4, 64, layers, 2048), parts)
  for tensor in nn.state.get_parameters(model):
    if tensor.ndim == 2 and dtype != "float32":
      rows, columns = tensor.shape
      columns += 4 if dtype == "int8" else 0  # the scale
      tensor.uop = Tensor.empty(rows, columns, dtype=getattr(dtypes, dtype)).uop
  return model


def step_facts(model: Any, num_tokens: int) -> dict[str, Any]:
  """Return what test_cuda.py checks of the step that processes this number of tokens.

  That is: the kernels' names; whether a second engine loads these kernels from the cache; how many
  of them use tensor cores; the sizes of the buffers that they read or write, except the weights'
  and the cache's, and those of all float32 buffers; and the size of the step's result, which leaves
  the device.
  """
  import numpy as np
  from tinygrad import dtypes

  from tinyformer.generation import Engine
  from tinyformer.kernels.tinygrad_internals import Ops

  def run_step() -> tuple[Any, Any, Engine]:
    engine = Engine(model, key=type(model).__name__, top_k=40)
    step = engine.step(num_tokens, 1024)
    variables = {"last": 5} if num_tokens > 1 else {}
    result = step(np.zeros((1, num_tokens), np.int32), start=3, **variables)
    return step, result, engine

  step, result, engine = run_step()
  assert step.is_new
  calls = step.jit.captured.linear.src
  names = [call.src[0].arg.name for call in calls]
  again, *_ = run_step()
  restored = [call.src[0].arg.name for call in again.jit.captured.linear.src]
  captured_sizes = {tensor.numel() for tensor in engine.captured_buffers.values()}
  buffers = [buffer for call in calls for buffer in call.src[1:]]
  sources = [part.arg for call in calls for part in call.src[0].src if part.op is Ops.SOURCE]
  return {
    "kernels": [re.sub(r"\x1b\[\d+m", "", name) for name in names],
    "loaded_from_cache": not again.is_new and restored == names,
    "tensor_cores": sum("mma.sync" in source for source in sources),
    "sizes": sorted({math.prod(buffer.shape) for buffer in buffers} - captured_sizes),
    "float32_sizes": sorted({math.prod(b.shape) for b in buffers if b.dtype == dtypes.float32}),
    "result": result.size,
  }


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
  facts = {
    "gpt2": step_facts(quantized_model("gpt2", 12, dtype), 1),
    "llama": step_facts(quantized_model("llama", 12, dtype), 1),
    "prefill": step_facts(quantized_model("gpt2", 2, dtype), 512),
  }
  if dtype != "int8":
    compile_training_step(dtype)
  print(json.dumps(facts))


if __name__ == "__main__":
  os.environ["NVRTC_PATH"] = str(nvrtc_path())
  main(sys.argv[1])
