"""Read the settings of a config.json, with errors that name the file and the key."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygrad import Tensor

from models.key_map import KeyMap
from tinyformer.checkpoints import safetensors
from tinyformer.files import read_json
from tinyformer.kernels.gelu import gelu
from tinyformer.kernels.linear import PackedLinear

# Hugging Face's activation names. The function `gelu` is the tanh approximation and has a CPU
# kernel; the key "gelu" means exact GELU.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
  "gelu_new": gelu,
  "gelu_pytorch_tanh": gelu,
  "gelu": functools.partial(Tensor.gelu, approximate="none"),
  "relu": Tensor.relu,
  "silu": Tensor.silu,
  "swish": Tensor.silu,
  "tanh": Tensor.tanh,
}


def name_of(activation: Callable) -> str:
  """Return an activation's name in a config.json. Raises ValueError if it has none."""
  for name, function in ACTIVATIONS.items():
    if function is activation:
      return name
  raise ValueError(
    f"{activation} has no name in a config.json: use one of checkpoints.config.ACTIVATIONS"
  )


class Config(dict[str, Any]):
  """The keys of a config.json. source: the file's name in error messages."""

  def __init__(self, values: dict[str, Any], source: str = "config.json"):
    super().__init__(values)
    self.source = source

  @classmethod
  def read(cls, folder: str | Path) -> "Config":
    """Read a folder's config.json.

    Raises FileNotFoundError, or ValueError if it does not contain a JSON object.
    """
    path = Path(folder) / "config.json"
    return cls(read_json(path), str(path))

  def size(self, name: str, default: int | None = None) -> int:
    """Return a positive integer. Raises ValueError if the value is anything else."""
    value = self.get(name) or default
    if type(value) is int and value > 0:
      return value
    raise ValueError(f"{self.source}: {name} must be a positive integer, not {value!r}")

  def only(self, **values: Any) -> None:
    """Require the only supported value of each key. A missing key is accepted.

    Raises ValueError for any other value.
    """
    for key, value in values.items():
      if self.get(key, value) != value:
        raise ValueError(f"{self.source}: {key} is {self[key]}; only {value} is supported")

  def activation(self, name: str, default: str) -> Callable[[Tensor], Tensor]:
    """Return the activation that a key names. Raises ValueError if it is not supported."""
    value = self.get(name, default)
    if value in ACTIVATIONS:
      return ACTIVATIONS[value]
    raise ValueError(f"{self.source}: {name} {value!r} is not one of {', '.join(ACTIVATIONS)}")


def loader(from_config: Callable, key_map: KeyMap) -> Callable:
  """Return an architecture's `load` function. from_config: (config, **parts) -> a model."""

  def load(folder: str | Path, dtype: str = "float32", **parts):
    """Load a model from a folder written by `save_pretrained`.

    dtype: the data type of the matrices in memory: float32, float16, bfloat16 or int8. Computation
    is in float32.
    parts: linear, attention_fn, layer_norm.  Raises FileNotFoundError for a missing file, and
    ValueError for a damaged file or one of another architecture.
    """
    if dtype == "int8":
      parts = {"linear": PackedLinear} | parts  # the plain Linear cannot read int8
    with safetensors.skip_init():
      model = from_config(Config.read(folder), **parts)
    tensors = safetensors.read(Path(folder))
    safetensors.load_weights(model, tensors, key_map, safetensors.DTYPES[dtype])
    return model

  return load
