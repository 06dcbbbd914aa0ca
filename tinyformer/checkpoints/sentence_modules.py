"""Read what sentence-transformers saves beside a model: pooling, dense layers, length, prompts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.hf_config import MAX_SIZE, HFConfig, shown
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


def sigmoid(x: np.ndarray) -> np.ndarray:
  """Return 1 / (1 + exp(-x)), computed so that no exponential overflows."""
  exponential = np.exp(-np.abs(x))
  return np.where(x < 0, exponential, 1) / (1 + exponential)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "torch.nn.modules.linear.Identity": lambda x: x,
  "torch.nn.modules.activation.Tanh": np.tanh,
  "torch.nn.modules.activation.ReLU": lambda x: np.maximum(x, 0),
  "torch.nn.modules.activation.Sigmoid": sigmoid,
}


@dataclass(frozen=True)
class Dense:
  """A linear layer and an activation: (D) -> (D')."""

  weight: np.ndarray
  bias: np.ndarray | None
  activation: Callable[[np.ndarray], np.ndarray]

  def __call__(self, x: np.ndarray) -> np.ndarray:
    if len(x) != self.weight.shape[1]:
      raise ValueError(
        f"a Dense layer of this model has {self.weight.shape[1]:,} inputs, but the vector before "
        f"it has {len(x):,} numbers: the model's folder is damaged"
      )
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
  settings = read_optional(folder / "sentence_bert_config.json")
  prompts, default_prompt = read_prompts(folder / "config_sentence_transformers.json")
  config: dict[str, Any] = {
    "max_length": settings.optional_size("max_seq_length") or tokenizer_max_length(folder),
    "lowercase": settings.flag("do_lower_case", False),
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
        f"{modules_file}: the module {shown(kind)} is not supported, only Transformer, Pooling, "
        "Dense and Normalize"
      )
  return SentenceConfig(layers=tuple(layers), **config)


def read_config(path: Path) -> HFConfig:
  """Return the settings in a JSON file."""
  return HFConfig(read_json(path), str(path))


def read_optional(path: Path) -> HFConfig:
  """Return the settings in a JSON file, which are empty if the file does not exist."""
  return read_config(path) if path.exists() else HFConfig({}, str(path))


def tokenizer_max_length(folder: Path) -> int | None:
  """Return model_max_length of tokenizer_config.json, or None if there is no limit."""
  length = read_optional(folder / "tokenizer_config.json").number(
    "model_max_length", math.inf, 1, math.inf
  )
  # Some tokenizers have a length of 1e30, which means that there is no limit.
  return int(length) if length <= MAX_SIZE else None


def read_prompts(path: Path) -> tuple[dict[str, str], str | None]:
  """Return the prompts by name, and the name of the default prompt."""
  settings = read_optional(path)
  section = settings.section("prompts")
  # An empty prompt may be stored as null.
  prompts = {name: section.text(name, "") for name in section.values}
  default_prompt = None
  if "default_prompt_name" in settings:
    default_prompt = settings.choice("default_prompt_name", prompts)
  return prompts, default_prompt


def read_score_activation(
  folder: Path, config: HFConfig
) -> Callable[[np.ndarray], np.ndarray] | None:
  """Return the function that sentence-transformers' CrossEncoder applies to the logits.

  config: the model's config.json.  The result is None if the checkpoint names no function.
  """
  sources = (
    (read_optional(folder / "config_sentence_transformers.json"), "activation_fn"),
    (config.section("sentence_transformers"), "activation_fn"),
    # The name before version 4.
    (config, "sbert_ce_default_activation_function"),
  )
  for settings, key in sources:
    if key in settings:
      return ACTIVATIONS[settings.choice(key, ACTIVATIONS)]
  return None


def read_pooling(path: Path) -> dict[str, Any]:
  """Return the poolings, and whether they include the prompt, from a Pooling's config.json."""
  settings = read_config(path)
  if "pooling_mode" not in settings:
    poolings = [name for key, name in POOLING_KEYS.items() if settings.flag(key, False)] or ["mean"]
  elif isinstance(settings.values["pooling_mode"], str):
    poolings = [settings.choice("pooling_mode", POOLINGS)]
  else:
    poolings = settings.texts("pooling_mode")
  if not poolings or not all(name in POOLINGS for name in poolings):
    raise settings.error("pooling_mode", f"be one or more of {', '.join(POOLINGS)}")
  return {"poolings": tuple(poolings), "include_prompt": settings.flag("include_prompt", True)}


def read_dense(folder: Path) -> Dense:
  """Read a Dense layer: config.json and model.safetensors."""
  settings = read_config(folder / "config.json")
  activation = settings.choice(
    "activation_function", ACTIVATIONS, "torch.nn.modules.activation.Tanh"
  )
  settings.only(use_residual=False)
  weights = folder / "model.safetensors"
  if not weights.exists():
    raise FileNotFoundError(f"{weights} does not exist; weights in another format are not read")
  tensors = {name: t.numpy().astype(np.float32) for name, t in read_safetensors(weights).items()}
  weight = tensors.pop("linear.weight", np.zeros(0))
  bias = tensors.pop("linear.bias", None)
  has_bias = settings.flag("bias", True)
  if weight.ndim != 2 or tensors or (bias is not None) != has_bias:
    raise ValueError(
      f"{weights} must contain a matrix linear.weight"
      f"{' and linear.bias' if has_bias else ''}, and nothing else"
    )
  if bias is not None and bias.shape != weight.shape[:1]:
    raise ValueError(f"{weights}: linear.bias has shape {bias.shape}, not {weight.shape[:1]}")
  return Dense(weight, bias, ACTIVATIONS[activation])
