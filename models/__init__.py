"""The families, by the model_type of a checkpoint's config.json. This file alone knows all their names."""
import importlib
from pathlib import Path
from typing import Any
from models.checkpoint import read_json
from parts.attention import attention
from parts.linear import PackedLinear
from parts.norm import LayerNorm

FAMILIES = {"gpt2": "gpt2", "openai-gpt": "gpt", "llama": "llama", "mistral": "llama", "mixtral": "mixtral", "bert": "bert",
            "roberta": "bert", "camembert": "bert", "xlm-roberta": "bert", "deberta-v2": "deberta",
            "vit": "vit", "t5": "t5", "mt5": "t5", "bart": "bart", "marian": "marian"}   # model_type to module
FAST:dict[str, Any] = {"linear": PackedLinear, "attend": attention, "layer_norm": LayerNorm}   # the parts that compute sooner what transformer.py defines

def load(folder:str|Path, dtype:str="float32", **parts):
  """The model in a folder of `save_pretrained`'s layout, of the FAST parts or of those given. Raises FileNotFoundError, or ValueError for a model of no family that stands here."""
  kind = read_json(Path(folder) / "config.json").get("model_type")
  if kind not in FAMILIES: raise ValueError(f"{Path(folder) / 'config.json'}: model_type {kind!r} is not one of {', '.join(FAMILIES)}")
  return importlib.import_module(f"models.{FAMILIES[kind]}").load(folder, dtype, **(FAST | parts))
