"""The families, by the model_type of a checkpoint's config.json. This file alone knows all their names."""
import importlib
from pathlib import Path
from models.checkpoint import read_json
from transformer import Linear

FAMILIES = {"gpt2": "gpt2"}   # model_type to module

def load(folder:str|Path, dtype:str="float32", linear:type[Linear]=Linear):
  """The model in a folder of `save_pretrained`'s layout, its linear layers of the class given. Raises FileNotFoundError, or ValueError for a model of no family that stands here."""
  kind = read_json(Path(folder) / "config.json").get("model_type")
  if kind not in FAMILIES: raise ValueError(f"{Path(folder) / 'config.json'}: model_type {kind!r} is not one of {', '.join(FAMILIES)}")
  return importlib.import_module(f"models.{FAMILIES[kind]}").load(folder, dtype, linear)
