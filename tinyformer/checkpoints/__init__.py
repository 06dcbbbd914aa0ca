"""Checkpoints as Hugging Face saves them: config.json and safetensors, read and written."""

import importlib
from pathlib import Path

from models import FAMILIES
from tinyformer.files import read_json
from tinyformer.kernels.parts import CPU_KERNELS


def load_module(folder: str | Path, dtype: str = "float32", **parts):
  """Load the architecture in a folder written by `save_pretrained`, with CPU_KERNELS or the given parts.

  Raises FileNotFoundError, or ValueError for a model_type that is not in models.FAMILIES.
  """
  kind = read_json(Path(folder) / "config.json").get("model_type")
  if kind not in FAMILIES:
    raise ValueError(
      f"{Path(folder) / 'config.json'}: model_type {kind!r} is not one of {', '.join(FAMILIES)}"
    )
  return importlib.import_module(f"models.{FAMILIES[kind]}").load(
    folder, dtype, **(CPU_KERNELS | parts)
  )
