"""Checkpoints as Hugging Face saves them: config.json and safetensors, read and written."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tinygrad import Tensor

from layers.parts import Parts
from models import FAMILIES
from models.hf_config import HFConfig
from tinyformer.checkpoints import safetensors
from tinyformer.files import read_json
from tinyformer.kernels.parts import default_parts


def read_config(folder: str | Path) -> HFConfig:
  """Read a folder's config.json.

  Raises FileNotFoundError, or ValueError if it does not contain a JSON object.
  """
  path = Path(folder) / "config.json"
  return HFConfig(read_json(path), str(path))


def architecture(config: HFConfig) -> tuple[ModuleType, Any]:
  """Return the module of models/ and the class that implement a config.json.

  Raises ValueError if its model_type is not in models.FAMILIES.
  """
  model_type = config.get("model_type")
  if model_type not in FAMILIES:
    raise ValueError(
      f"{config.source}: model_type {model_type!r} is not one of {', '.join(FAMILIES)}"
    )
  module_name, class_name = FAMILIES[model_type].split(".")
  module = importlib.import_module(f"models.{module_name}")
  return module, getattr(module, class_name)


def load_module(
  folder: str | Path, dtype: str = "float32", parts: Parts | None = None, **settings: Any
):
  """Load the architecture in a folder written by `save_pretrained`.

  dtype: the data type of the matrices in memory: float32, float16, bfloat16 or int8. Computation
  is in float32.
  parts: what the model is built from; None uses the fastest parts for the device.
  settings: replace those of the model's config, such as dropout=0.1.
  Raises FileNotFoundError for a missing file, and ValueError for a damaged file, one of an unknown
  architecture, or a dtype that the parts cannot read.
  """
  parts = parts or default_parts()
  if dtype not in parts.dtypes:
    raise ValueError(
      f"these parts cannot read weights in {dtype}: use {' or '.join(parts.dtypes)}, or other parts"
    )
  hf = read_config(folder)
  module, model_class = architecture(hf)
  config = replace(module.from_hf(hf), **settings)
  model = model_class(config, without_initial_values(parts))
  tensors = safetensors.read(Path(folder))
  safetensors.load_weights(model, tensors, module.KEY_MAP, safetensors.DTYPES[dtype])
  return model


def save(model, folder: str | Path, dtype: str = "float32", **config: Any) -> None:
  """Save a GPT-2 or a ViT in a folder that load_module and transformers can read.

  config: additional keys of config.json, such as eos_token_id.
  """
  module = importlib.import_module(type(model).__module__)
  safetensors.write(model, Path(folder), module.to_hf(model) | config, module.KEY_MAP, dtype)


def without_initial_values(parts: Parts) -> Parts:
  """Return parts for a model whose parameters will all be overwritten.

  Drawing the random numbers of GPT-2 takes a second.
  """
  linear: Any = parts.linear
  embedding: Any = parts.embedding

  class EmptyLinear(linear):
    def __init__(self, inputs: int, outputs: int, bias: bool = True):
      self.weight = Tensor.empty(outputs, inputs)
      self.bias = Tensor.empty(outputs) if bias else None

  class EmptyEmbedding(embedding):
    def __init__(self, vocab_size: int, dim: int):
      self.weight = Tensor.empty(vocab_size, dim)

  return replace(parts, linear=EmptyLinear, embedding=EmptyEmbedding, initialize=False)
