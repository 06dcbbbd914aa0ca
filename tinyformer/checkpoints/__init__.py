"""Checkpoints: folders as Hugging Face saves them, read and written, and GGUF files, read."""

import functools
import importlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tinygrad import Tensor

from layers.parts import Parts
from models import ARCHITECTURES, FAMILIES
from models.hf_config import HFConfig
from models.key_map import KeyMap
from tinyformer.checkpoints import gguf_model, gguf_tokenizer, safetensors
from tinyformer.checkpoints.gguf import GGUF, is_gguf, read_gguf
from tinyformer.files import read_json
from tinyformer.kernels import default_parts


def open_gguf(path: str | Path) -> GGUF:
  """Read the header of a GGUF file. That of the last file is kept, unless the file has changed."""
  status = Path(path).stat()
  return _open_gguf(Path(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _open_gguf(path: Path, *_: int) -> GGUF:
  return read_gguf(path)


def read_config(folder: str | Path) -> HFConfig:
  """Read a folder's config.json, or the configuration in a GGUF file.

  Raises FileNotFoundError, or ValueError if it is damaged or not supported.
  """
  if is_gguf(folder):
    return HFConfig(gguf_model.hf_config(open_gguf(folder)), str(folder))
  path = Path(folder) / "config.json"
  return HFConfig(read_json(path), str(path))


def tokenizer_contents(path: str | Path) -> dict[str, dict[str, Any]] | None:
  """Return the content of each tokenizer file that a GGUF file represents, by file name.

  Returns None for a folder, which has the files itself. Raises ValueError if the tokenizer is
  damaged or not supported.
  """
  if not is_gguf(path):
    return None
  gguf = open_gguf(path)
  return {
    "tokenizer.json": gguf_tokenizer.tokenizer_json(gguf),
    "tokenizer_config.json": gguf_tokenizer.tokenizer_config(gguf),
    "generation_config.json": gguf_tokenizer.generation_config(gguf),
  }


def read_pooling(path: str | Path) -> str:
  """Return the pooling of a GGUF file's embeddings: mean, cls or lasttoken.

  Raises ValueError if it is not supported.
  """
  return gguf_model.pooling_of(open_gguf(path))


def read_tensors(path: str | Path) -> Mapping[str, safetensors.StoredTensor]:
  """Return the tensors of a folder or a GGUF file by Hugging Face's names, without their values."""
  return gguf_model.hf_tensors(open_gguf(path)) if is_gguf(path) else safetensors.read(Path(path))


def architecture(config: HFConfig) -> tuple[ModuleType, Any]:
  """Return the module of models/ and the class that implement a config.json.

  Raises ValueError if its model_type is not in models.FAMILIES.
  """
  name = FAMILIES[config.choice("model_type", FAMILIES)]
  for architecture_name in config.texts("architectures")[:1]:
    name = ARCHITECTURES.get(architecture_name, name)
  module_name, class_name = name.split(".")
  module = importlib.import_module(f"models.{module_name}")
  return module, getattr(module, class_name)


def load_module(
  folder: str | Path, dtype: str = "float32", parts: Parts | None = None, **settings: Any
):
  """Load the architecture in a folder written by `save_pretrained`, or in a GGUF file.

  dtype: the data type of the matrices in memory: float32, float16, bfloat16, int8 or int4.
  Computation is in float32, except that some products of narrow weights narrow activations too.
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
  model, tensors, key_map = open_module(folder, parts, **settings)
  safetensors.load_weights(model, tensors, key_map, safetensors.DTYPES[dtype])
  return model


def open_module(
  folder: str | Path, parts: Parts, **settings: Any
) -> tuple[Any, Mapping[str, safetensors.StoredTensor], KeyMap]:
  """Return the model in a folder without its weights, the folder's tensors, and the key map.

  The arguments and exceptions are those of load_module.
  """
  hf = read_config(folder)
  module, model_class = architecture(hf)
  config = module.from_hf(hf)
  tensors = read_tensors(folder)
  if hasattr(module, "with_tensors"):  # some settings depend on the tensors that the folder has
    config = module.with_tensors(config, tensors)
  config = replace(config, **settings)
  check_sizes(config, tensors, hf.source)
  try:
    model = model_class(config, without_initial_values(parts))
  except ValueError as e:
    raise ValueError(f"{hf.source}: {e}") from e
  return model, tensors, module.KEY_MAP


# The fields of a config that are the length of a tensor's axis, or divide it.
AXES = {
  "vocab_size",
  "dim",
  "heads",
  "kv_heads",
  "head_dim",
  "ff_dim",
  "encoder_heads",
  "decoder_heads",
  "encoder_ff_dim",
  "decoder_ff_dim",
  "segments",
  "channels",
  "experts",
}
LAYERS = {"num_layers", "encoder_layers", "decoder_layers"}


def check_sizes(config: Any, tensors: Mapping[str, safetensors.StoredTensor], source: str) -> None:
  """Raise ValueError if a checkpoint's tensors are too small, or too few, for the sizes in config.

  Constructing a model of absurd sizes would take much time and memory. The exact shapes are checked
  when the weights are loaded. source: the config's file name in error messages.
  """
  largest = max((math.prod(tensor.shape) for tensor in tensors.values()), default=0)
  for name, value in vars(config).items():
    if name in AXES and value and value > largest:
      raise ValueError(
        f"{source}: {name} {value:,} exceeds the number of elements of the checkpoint's largest "
        f"tensor, {largest:,}: use the config.json that belongs to the weights"
      )
    if name in LAYERS and value > len(tensors):
      raise ValueError(
        f"{source}: {value:,} layers are more than the {len(tensors):,} tensors in the checkpoint: "
        "use the config.json that belongs to the weights"
      )


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
