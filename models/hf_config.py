"""Read and write Hugging Face's config.json, with errors that name the file, the key and the value.

Every value is checked when it is read: a checkpoint can contain anything.
"""

import json
import reprlib
from collections.abc import Collection
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
MAX_SIZE = 2**31 - 1


def hf_activation(name: str) -> str:
  """Return Hugging Face's name of an activation. Raises ValueError if it has none."""
  for hf_name, ours in ACTIVATION_NAMES.items():
    if ours == name:
      return hf_name
  raise ValueError(f"{name!r} has no name in a config.json: use one of layers.activations")


def shown(value: Any) -> str:
  """Return a JSON value as text for an error message, abbreviated if it is long."""
  if isinstance(value, list | dict):
    return reprlib.repr(value)
  text = json.dumps(value)
  return text if len(text) <= 80 else f"{text[:60]}..."


class HFConfig:
  """The settings of a config.json.

  A method returns the default if its key is missing or null. It raises ValueError if the value is
  invalid, or if the key is missing and has no default.
  source: the file's name in error messages.
  """

  def __init__(self, values: dict[str, Any], source: str = "config.json"):
    self.values = values
    self.source = source

  def __contains__(self, name: str) -> bool:
    """Return whether a key has a value other than null."""
    return self.values.get(name) is not None

  def error(self, name: str, requirement: str, default: Any = None) -> ValueError:
    """Return the error for a value that does not meet a requirement, such as "be positive"."""
    if name in self or default is None:
      found = f"not {shown(self.values[name])}" if name in self.values else "but it is missing"
    else:
      found = f"but its default is {shown(default)}"
    return ValueError(f"{self.source}: {name} must {requirement}, {found}")

  def integer(
    self, name: str, default: int | None = None, minimum: int = 0, maximum: int = MAX_SIZE
  ) -> int:
    """Return an integer between two bounds, inclusive."""
    value = self.values[name] if name in self else default
    if type(value) is int and minimum <= value <= maximum:
      return value
    raise self.error(name, f"be an integer from {minimum:,} to {maximum:,}", default)

  def size(self, name: str, default: int | None = None, divides: int | None = None) -> int:
    """Return a positive integer. divides: a number that must be a multiple of it."""
    size = self.integer(name, default, 1)
    if divides is not None and divides % size:
      raise self.error(name, f"divide {divides}", default)
    return size

  def optional_size(self, name: str) -> int | None:
    """Return a positive integer, or None if the key has no value."""
    return self.size(name) if name in self else None

  def number(self, name: str, default: float | None, minimum: float, maximum: float) -> float:
    """Return an integer or a float between two bounds, inclusive."""
    value = self.values[name] if name in self else default
    if isinstance(value, int | float) and type(value) is not bool and minimum <= value <= maximum:
      return value
    raise self.error(name, f"be a number from {minimum} to {maximum}")

  def epsilon(self, name: str, default: float) -> float:
    """Return the epsilon of a norm: a positive number of at most 1."""
    return self.number(name, default, 1e-30, 1.0)

  def flag(self, name: str, default: bool) -> bool:
    """Return true or false."""
    value = self.values[name] if name in self else default
    if type(value) is bool:
      return value
    raise self.error(name, "be true or false")

  def text(self, name: str, default: str | None = None) -> str:
    """Return a string."""
    value = self.values[name] if name in self else default
    if type(value) is str:
      return value
    raise self.error(name, "be a string")

  def choice(self, name: str, choices: Collection[str], default: str | None = None) -> str:
    """Return a string that is one of the choices."""
    value = self.text(name, default)
    if value in choices:
      return value
    raise self.error(name, f"be one of {', '.join(choices)}")

  def activation(self, name: str, default: str) -> str:
    """Return our name of the activation that a key names."""
    return ACTIVATION_NAMES[self.choice(name, ACTIVATION_NAMES, default)]

  def texts(self, name: str, default: Collection[str] = ()) -> list[str]:
    """Return a list of strings."""
    values = self.values[name] if name in self else list(default)
    if type(values) is list and all(type(value) is str for value in values):
      return values
    raise self.error(name, "be a list of strings")

  def integers(self, name: str, maximum: int = MAX_SIZE) -> list[int] | None:
    """Return a list of integers from 0 to a bound, inclusive, or None if the key has no value."""
    if name not in self:
      return None
    values = self.values[name]
    if type(values) is list and all(type(n) is int and 0 <= n <= maximum for n in values):
      return values
    raise self.error(name, f"be a list of integers from 0 to {maximum:,}")

  def section(self, *names: str) -> "HFConfig":
    """Return the object under the first of the keys that has a value; empty if none has."""
    for name in names:
      if name in self:
        if type(self.values[name]) is not dict:
          raise self.error(name, "be an object")
        return HFConfig(self.values[name], f"{self.source}: {name}")
    return HFConfig({}, self.source)

  def only(self, **supported: Any) -> None:
    """Require the only supported value of each key. A missing key is accepted."""
    for name, value in supported.items():
      if self.values.get(name, value) != value:
        raise self.error(name, f"be {shown(value)}, the only supported value")
