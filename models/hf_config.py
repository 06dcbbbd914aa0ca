"""Read and write Hugging Face's config.json, with errors that name the file and the key."""

from typing import Any

# Hugging Face's names of activations -> those of layers/activations.py. If an activation has
# several names, hf_activation returns the first.
ACTIVATION_NAMES = {
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu": "gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
  "tanh": "tanh",
}


def hf_activation(name: str) -> str:
  """Return Hugging Face's name of an activation. Raises ValueError if it has none."""
  for hf_name, ours in ACTIVATION_NAMES.items():
    if ours == name:
      return hf_name
  raise ValueError(f"{name!r} has no name in a config.json: use one of layers.activations")


class HFConfig(dict[str, Any]):
  """The keys of a config.json. source: the file's name in error messages."""

  def __init__(self, values: dict[str, Any], source: str = "config.json"):
    super().__init__(values)
    self.source = source

  def size(self, name: str, default: int | None = None) -> int:
    """Return a positive integer, or the default if the value is missing, null or 0.

    Raises ValueError if the value is anything else.
    """
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

  def activation(self, name: str, default: str) -> str:
    """Return our name of the activation that a key names.

    Raises ValueError if it is not supported.
    """
    value = self.get(name, default)
    if value in ACTIVATION_NAMES:
      return ACTIVATION_NAMES[value]
    raise ValueError(f"{self.source}: {name} {value!r} is not one of {', '.join(ACTIVATION_NAMES)}")
