"""Checkpoints as Hugging Face saves them: config.json and safetensors, read and written."""

import importlib
from pathlib import Path

from models import FAMILIES
from tinyformer.files import read_json
from tinyformer.kernels.parts import CPU_KERNELS


def load_module(folder: str | Path, dtype: str = "float32", **parts):
  """Load the architecture in a folder written by `save_pretrained`.

  parts: replace those of CPU_KERNELS.  Raises FileNotFoundError if a file is missing. Raises
  ValueError if the model_type of config.json is not in models.FAMILIES.
  """
  path = Path(folder) / "config.json"
  model_type = read_json(path).get("model_type")
  if model_type not in FAMILIES:
    raise ValueError(f"{path}: model_type {model_type!r} is not one of {', '.join(FAMILIES)}")
  module = importlib.import_module(f"models.{FAMILIES[model_type]}")
  return module.load(folder, dtype, **(CPU_KERNELS | parts))
