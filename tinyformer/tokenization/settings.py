"""Read the settings of a step in tokenizer.json and check their types."""

from typing import Any, TypeVar

T = TypeVar("T")
# IDs must be below this number.
MAX_ID = 1 << 31


class Settings:
  """The JSON object that describes one step of tokenizer.json, such as a normalizer.

  section: the part of tokenizer.json, for messages: "normalizer", "pre_tokenizer" and so on.
  Raises ValueError if the value is not a JSON object.
  """

  def __init__(self, section: str, config: Any):
    if not isinstance(config, dict):
      raise ValueError(f"{section} must be a JSON object, not {config!r:.80}")
    self.section = section
    self.config = config

  def get(self, name: str, kind: type[T], default: T | None = None) -> T:
    """Return the setting `name`, or the default if it is missing or null.

    Raises ValueError if the setting has another type, or if it is missing without a default.
    """
    value = self.config.get(name)
    if value is None:
      value = default
    if value is None:
      raise ValueError(f"{self.title}: {name!r} is missing")
    # A bool is an int in Python.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
      raise ValueError(f"{self.title}: {name!r} must be {kind.__name__}, not {value!r:.80}")
    if isinstance(value, str) and not is_unicode(value):
      raise ValueError(f"{self.title}: {name!r} is not valid Unicode: {value!r:.80}")
    return value

  def steps(self, name: str) -> list["Settings"]:
    """Return the settings of each step of a Sequence, whose list has the given name."""
    return [Settings(self.section, step) for step in self.get(name, list)]

  @property
  def kind(self) -> str:
    """Return the type of the step."""
    return self.get("type", str)

  @property
  def title(self) -> str:
    """Return the section and the type of the step, for messages."""
    kind = self.config.get("type")
    if not isinstance(kind, str):
      return self.section
    # A name may contain escape sequences, which must not reach a terminal.
    return f"{self.section} {kind if kind.isprintable() else ascii(kind):.80}"

  def refuse(self, problem: str = "") -> ValueError:
    """Return the error for a step that is not supported.

    problem: the setting that is not supported; empty if the whole step is not.
    """
    return ValueError(
      f"{self.title} {problem or 'is not supported'};"
      " this tokenizer.json cannot be loaded without it, so use a tokenizer that has no such step"
    )


def is_id(value: Any) -> bool:
  """Return whether a value is a token ID."""
  return type(value) is int and 0 <= value < MAX_ID


def is_unicode(text: str) -> bool:
  """Return whether a text can be encoded, because it contains no lone surrogate."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True
