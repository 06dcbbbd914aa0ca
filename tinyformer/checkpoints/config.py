"""From a config.json to a model: what it says, and an error that names the file where it does not say it, or says what is not built here."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygrad import Tensor

from tinyformer.checkpoints import safetensors
from tinyformer.kernels.gelu import gelu
from tinyformer.kernels.linear import PackedLinear

ACTIVATIONS: dict[
  str, Callable[[Tensor], Tensor]
] = {  # gelu: tinygrad's tanh form, on the CPU as a kernel, also beside plain parts
  "gelu_new": gelu,
  "gelu_pytorch_tanh": gelu,
  "gelu": functools.partial(Tensor.gelu, approximate="none"),
  "relu": Tensor.relu,
  "silu": Tensor.silu,
  "swish": Tensor.silu,
  "tanh": Tensor.tanh,
}


def name_of(activation: Callable) -> str:
  """What a config.json calls it. Raises ValueError if it is none of ACTIVATIONS."""
  for name, function in ACTIVATIONS.items():
    if function is activation:
      return name
  raise ValueError(
    f"config.json has no name for {activation}: take one of models.config.ACTIVATIONS"
  )


class Config(dict[str, Any]):
  """The keys of a config.json. source: what errors call it."""

  def __init__(self, values: dict[str, Any], source: str = "config.json"):
    super().__init__(values)
    self.source = source

  @classmethod
  def read(cls, folder: str | Path) -> "Config":
    """Raises FileNotFoundError, ValueError if it is no JSON object."""
    path = Path(folder) / "config.json"
    return cls(safetensors.read_json(path), str(path))

  def size(self, name: str, default: int | None = None) -> int:
    """A whole number above 0. Raises ValueError for what is none."""
    if type(value := self.get(name) or default) is int and value > 0:
      return value
    raise ValueError(f"{self.source}: {name} should be a whole number above 0, not {value!r}")

  def only(self, **values: Any) -> None:
    """Raises ValueError if one of the keys has another value than the only one that is built here; a key that is not there has it."""
    for key, value in values.items():
      if self.get(key, value) != value:
        raise ValueError(f"{self.source}: {key} is {self[key]}, only {value} is built here")

  def activation(self, name: str, default: str) -> Callable[[Tensor], Tensor]:
    """Raises ValueError for one that is not built here."""
    if (value := self.get(name, default)) in ACTIVATIONS:
      return ACTIVATIONS[value]
    raise ValueError(f"{self.source}: the {name} {value!r} is not one of {', '.join(ACTIVATIONS)}")


def loader(from_config: Callable, names: safetensors.KeyMap) -> Callable:
  """A family's `load`. from_config: a Config and parts -> the model, untrained."""

  def load(folder: str | Path, dtype: str = "float32", **parts):
    """The model in a folder of `save_pretrained`'s layout, its matrices kept as `dtype`, of the parts given (linear, attend, layer_norm).

    dtype: float32, float16, bfloat16 or int8. Whatever it is, the model computes in float32.
    Raises FileNotFoundError for what is not there, ValueError for a file that is damaged or of another model.
    """
    if dtype == "int8":
      parts = {"linear": PackedLinear} | parts  # the plain one cannot read it
    with safetensors.skip_init():
      model = from_config(Config.read(folder), **parts)
    safetensors.load_weights(
      model, safetensors.read(Path(folder)), names, safetensors.DTYPES[dtype]
    )
    return model

  return load
