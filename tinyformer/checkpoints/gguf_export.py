"""Translate a model in a Hugging Face folder to GGUF's terms: metadata, and names of tensors.

This is the inverse of gguf_model.py, whose tables it uses.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from layers.parts import PLAIN
from layers.positions import rope_inv_freq
from models.gpt2 import GPT2Config
from models.llama import LlamaConfig
from tinyformer.checkpoints import open_module, read_config, safetensors, without_initial_values
from tinyformer.checkpoints.gguf_model import (
  ARCHITECTURES,
  ROPE_FACTORS,
  AdjacentRows,
  TransposedTensor,
)
from tinyformer.checkpoints.safetensors import StoredTensor

# Each model_type that can be written -> general.architecture.
EXPORTED = {
  "gpt2": "gpt2",
  "llama": "llama",
  "mistral": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
}


class ArrayTensor(NamedTuple):
  """A tensor in memory."""

  array: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`."""
    return self.array[first:last]


def hf_to_gguf_names(names: dict[str, str]) -> dict[str, str]:
  """Return regular expressions of Hugging Face's names -> GGUF's names, from the opposite table."""
  inverse: dict[str, str] = {}
  for pattern, hf_name in names.items():
    groups = re.findall(r"\(.*?\)", pattern)
    gguf_name, hf_pattern = pattern.replace(r"\.", "."), hf_name.replace(".", r"\.")
    for number, group in enumerate(groups, 1):
      gguf_name = gguf_name.replace(group, f"\\{number}", 1)
      hf_pattern = hf_pattern.replace(f"\\{number}", group)
    inverse[hf_pattern] = gguf_name
  return inverse


def gpt2_metadata(config: GPT2Config, source: str) -> dict[str, Any]:
  """Return the metadata of a GPT-2's sizes. Raises ValueError if llama.cpp has no such model."""
  if config.activation != "gelu_tanh":
    raise ValueError(f"{source}: llama.cpp's GPT-2 has gelu_new only, not {config.activation}")
  return {
    "context_length": config.context,
    "embedding_length": config.dim,
    "feed_forward_length": config.ff_dim or 4 * config.dim,
    "block_count": config.num_layers,
    "attention.head_count": config.heads,
    "attention.layer_norm_epsilon": config.eps,
  }


def decoder_metadata(config: LlamaConfig, source: str) -> dict[str, Any]:
  """Return the metadata of the sizes of a LLaMA, Mistral, Qwen2 or Qwen3.

  Raises ValueError if llama.cpp's files have no equivalent.
  """
  metadata = {
    "vocab_size": config.vocab_size,
    "context_length": config.context,
    "embedding_length": config.dim,
    "feed_forward_length": config.ff_dim,
    "block_count": config.num_layers,
    "attention.head_count": config.heads,
    "attention.head_count_kv": config.kv_heads,
    "attention.key_length": config.head_dim,
    "attention.value_length": config.head_dim,
    "attention.layer_norm_rms_epsilon": config.eps,
    "rope.dimension_count": config.head_dim,
    "rope.freq_base": float(config.rope_theta),
  }
  if config.window:
    metadata["attention.sliding_window"] = config.window
  scaling = config.rope_scaling or {"rope_type": "default"}
  kind = scaling["rope_type"]
  if kind == "linear":
    metadata |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
  elif kind not in ("default", "llama3"):
    raise ValueError(f"{source}: RoPE scaling {kind!r} cannot be written; linear and llama3 can")
  return metadata


def rope_factors(config: LlamaConfig) -> dict[str, StoredTensor]:
  """Return the tensor of the factors of LLaMA 3.1's RoPE scaling; nothing without this scaling."""
  scaling = config.rope_scaling
  if not scaling or scaling["rope_type"] != "llama3":
    return {}
  K, theta = config.head_dim, config.rope_theta
  plain, scaled = (np.array(rope_inv_freq(K, theta, s)) for s in (None, scaling))
  return {ROPE_FACTORS: ArrayTensor((plain / scaled).astype(np.float32))}


def export_model(folder: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
  """Return the metadata and the tensors of the model in a folder, in llama.cpp's layout.

  Raises ValueError if the folder is damaged, or if the model cannot be written.
  """
  hf = read_config(folder)
  model_type = hf.text("model_type")
  if model_type not in EXPORTED:
    raise ValueError(
      f"{hf.source}: model_type {model_type!r} cannot be written as GGUF; {', '.join(EXPORTED)} can"
    )
  model, found, key_map = open_module(folder, without_initial_values(PLAIN))
  config = model.config
  tensors, _ = safetensors.tensors_of_model(model, found, key_map)
  name = EXPORTED[model_type]
  architecture = ARCHITECTURES[name]
  is_gpt2 = isinstance(config, GPT2Config)
  sizes = (gpt2_metadata if is_gpt2 else decoder_metadata)(config, hf.source)
  written: dict[str, StoredTensor] = {} if is_gpt2 else rope_factors(config)
  names = hf_to_gguf_names(architecture.names)
  for hf_name, tensor in tensors.items():
    pattern = next(p for p in names if re.match(p, hf_name))
    gguf_name = re.sub(pattern, names[pattern], hf_name)
    if re.match(architecture.interleaved, gguf_name):
      tensor = AdjacentRows(tensor, config.head_dim)
    elif re.match(architecture.transposed, gguf_name):
      tensor = TransposedTensor(tensor)
    written[gguf_name] = tensor
  head = {"general.architecture": name, "general.name": folder.resolve().name}
  return head | {f"{name}.{key}": value for key, value in sizes.items()}, written
