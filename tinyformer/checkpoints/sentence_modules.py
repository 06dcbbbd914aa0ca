"""Read what sentence-transformers saves beside a model: pooling, dense layers, length, prompts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.checkpoints.file_formats import read_module_list
from tinyformer.checkpoints.safetensors import read_safetensors
from tinyformer.files import read_json

# The keys of 1_Pooling/config.json before version 5.5 -> poolings, in the order of their outputs.
POOLING_KEYS = {
  "pooling_mode_cls_token": "cls",
  "pooling_mode_max_tokens": "max",
  "pooling_mode_mean_tokens": "mean",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
  "pooling_mode_weightedmean_tokens": "weightedmean",
  "pooling_mode_lasttoken": "lasttoken",
}


def weighted_mean(hidden: np.ndarray) -> np.ndarray:
  """Return the mean of the rows of (T, D), the last of which has T times the first one's weight."""
  weights = np.arange(1, len(hidden) + 1, dtype=hidden.dtype)
  return weights @ hidden / weights.sum()


# Each pooling maps the hidden states (T, D) of a text's tokens to a vector (D).
POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "cls": lambda hidden: hidden[0],
  "max": lambda hidden: hidden.max(0),
  "mean": lambda hidden: hidden.mean(0),
  "mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / np.sqrt(len(hidden)),
  "weightedmean": weighted_mean,
  "lasttoken": lambda hidden: hidden[-1],
}

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "torch.nn.modules.linear.Identity": lambda x: x,
  "torch.nn.modules.activation.Tanh": np.tanh,
  "torch.nn.modules.activation.ReLU": lambda x: np.maximum(x, 0),
  "torch.nn.modules.activation.Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@dataclass(frozen=True)
class Dense:
  """A linear layer and an activation: (D) -> (D')."""

  weight: np.ndarray
  bias: np.ndarray | None
  activation: Callable[[np.ndarray], np.ndarray]

  def __call__(self, x: np.ndarray) -> np.ndarray:
    product = self.weight @ x
    return self.activation(product if self.bias is None else product + self.bias)


def normalize(x: np.ndarray) -> np.ndarray:
  """Return x divided by its length."""
  return x / max(float(np.linalg.norm(x)), 1e-12)


@dataclass(frozen=True)
class SentenceConfig:
  """How to compute the embedding of a text.

  poolings: names of POOLINGS, whose results are concatenated.
  layers: Dense layers and `normalize`, applied to the pooled vector in this order.
  max_length: the number of tokens to which a text is truncated, special tokens included; None
    means the model's context.
  lowercase: whether texts are lowercased first.
  prompts: texts that are put before a text, by name.
  default_prompt: the name of the prompt to use if the caller names none.
  include_prompt: whether pooling includes the tokens of the prompt.
  """

  poolings: tuple[str, ...] = ("mean",)
  layers: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()
  max_length: int | None = None
  lowercase: bool = False
  prompts: dict[str, str] = field(default_factory=dict)
  default_prompt: str | None = None
  include_prompt: bool = True


def read_sentence_config(folder: Path) -> SentenceConfig:
  """Read the modules of a folder that sentence-transformers saved.

  For any other folder, the result is mean pooling, as in sentence-transformers. Raises OSError for
  a missing file, and ValueError for a setting that is invalid or not supported.
  """
  modules_file = folder / "modules.json"
  settings = read_optional_json(folder / "sentence_bert_config.json")
  tokenizer = read_optional_json(folder / "tokenizer_config.json")
  max_length = settings.get("max_seq_length") or tokenizer.get("model_max_length")
  if max_length is not None and (not isinstance(max_length, (int, float)) or max_length < 1):
    raise ValueError(f"{folder}: the maximum length {max_length!r} is not a positive integer")
  prompts, default_prompt = read_prompts(folder / "config_sentence_transformers.json")
  config: dict[str, Any] = {
    # Some tokenizers have a length of 1e30, which means that there is no limit.
    "max_length": int(max_length) if max_length and max_length < 1e9 else None,
    "lowercase": settings.get("do_lower_case") is True,
    "prompts": prompts,
    "default_prompt": default_prompt,
  }
  if not modules_file.exists():
    return SentenceConfig(**config)
  layers: list[Callable[[np.ndarray], np.ndarray]] = []
  for path, kind in read_module_list(modules_file):
    if kind == "Pooling":
      config |= read_pooling(folder / path / "config.json")
    elif kind == "Dense":
      layers.append(read_dense(folder / path))
    elif kind == "Normalize":
      layers.append(normalize)
    elif kind != "Transformer":
      raise ValueError(
        f"{modules_file}: the module {kind} is not supported, only Transformer, Pooling, Dense and "
        "Normalize"
      )
  return SentenceConfig(layers=tuple(layers), **config)


def read_optional_json(path: Path) -> dict[str, Any]:
  """Return the object in a JSON file, or {} if the file does not exist."""
  return read_json(path) if path.exists() else {}


def read_prompts(path: Path) -> tuple[dict[str, str], str | None]:
  """Return the prompts by name, and the name of the default prompt."""
  settings = read_optional_json(path)
  prompts = settings.get("prompts") or {}
  default_prompt = settings.get("default_prompt_name")
  if not isinstance(prompts, dict):
    raise ValueError(f"{path}: prompts must be an object, not {prompts!r}")
  # An empty prompt may be stored as null.
  prompts = {name: text or "" for name, text in prompts.items()}
  if not all(isinstance(text, str) for text in prompts.values()):
    raise ValueError(f"{path}: each of the prompts must be a string")
  if default_prompt is not None and default_prompt not in prompts:
    raise ValueError(f"{path}: default_prompt_name {default_prompt!r} is not one of the prompts")
  return prompts, default_prompt


def read_pooling(path: Path) -> dict[str, Any]:
  """Return the poolings, and whether they include the prompt, from a Pooling's config.json."""
  settings = read_json(path)
  mode = settings.get("pooling_mode")
  poolings = [mode] if isinstance(mode, str) else mode
  if poolings is None:
    poolings = [name for key, name in POOLING_KEYS.items() if settings.get(key)] or ["mean"]
  if not isinstance(poolings, list) or not poolings or not all(p in POOLINGS for p in poolings):
    raise ValueError(f"{path}: pooling_mode {mode!r} is not one of {', '.join(POOLINGS)}")
  return {
    "poolings": tuple(poolings),
    "include_prompt": settings.get("include_prompt", True) is not False,
  }


def read_dense(folder: Path) -> Dense:
  """Read a Dense layer: config.json and model.safetensors."""
  path = folder / "config.json"
  settings = read_json(path)
  activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
  if activation not in ACTIVATIONS:
    raise ValueError(
      f"{path}: activation_function {activation!r} is not one of {', '.join(ACTIVATIONS)}"
    )
  if settings.get("use_residual"):
    raise ValueError(f"{path}: use_residual is not supported")
  weights = folder / "model.safetensors"
  if not weights.exists():
    raise FileNotFoundError(f"{weights} does not exist; weights in another format are not read")
  tensors = {name: t.numpy().astype(np.float32) for name, t in read_safetensors(weights).items()}
  weight = tensors.pop("linear.weight", None)
  bias = tensors.pop("linear.bias", None)
  if weight is None or tensors or (bias is None) == bool(settings.get("bias", True)):
    raise ValueError(f"{weights} must contain linear.weight, and linear.bias if {path} has a bias")
  return Dense(weight, bias, ACTIVATIONS[activation])
