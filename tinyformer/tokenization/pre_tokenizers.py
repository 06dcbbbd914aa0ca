"""Pre-tokenizers: split a normalized text into parts, so that no token crosses a boundary."""

from collections.abc import Callable, Sequence
from typing import Any

import regex

from tinyformer.tokenization import normalizers
from tinyformer.tokenization.normalizers import NormalizedString, Normalizer

PreTokenizer = Callable[[NormalizedString], list[NormalizedString]]

# Unicode classifies some ASCII punctuation as symbols.
PUNCTUATION = r"\p{P}$+<=>^`|~"


def pipeline(
  normalize: Sequence[Normalizer], pre_tokenize: Sequence[PreTokenizer] = ()
) -> PreTokenizer:
  """Return a function that applies all normalizers, then all pre-tokenizers, in order.

  Empty parts are removed.
  """

  def prepare(text: NormalizedString) -> list[NormalizedString]:
    parts = [normalizers.apply(normalize, text)]
    for split in pre_tokenize:
      parts = [new for part in parts if part.text for new in split(part)]
    return [part for part in parts if part.text]

  return prepare


def find_all(pattern: str) -> PreTokenizer:
  """Return a pre-tokenizer whose parts are the matches of a regular expression."""
  compiled = regex.compile(pattern)
  return lambda text: [text.slice(*match.span()) for match in compiled.finditer(text.text)]


def metaspace(prepend_scheme: str = "always", split: bool = True) -> PreTokenizer:
  """Return a pre-tokenizer that replaces each space by ▁ and splits the text before each ▁.

  prepend_scheme: insert ▁ before a text that does not begin with ▁: "always", "never", or "first"
  for the start of the original text only.
  split: if false, do not split the text.
  """
  steps = [normalizers.replace(" ", "▁")]
  if prepend_scheme != "never":
    only_at_start = prepend_scheme == "first"
    steps.append(normalizers.prepend("▁", if_missing=True, only_at_start=only_at_start))
  find_words = find_all("▁[^▁]*|[^▁]+")

  def pre_tokenize(text: NormalizedString) -> list[NormalizedString]:
    text = normalizers.apply(steps, text)
    return find_words(text) if split else [text]

  return pre_tokenize


def from_json(config: dict[str, Any] | None) -> list[PreTokenizer]:
  """Return the pre-tokenizers that the "pre_tokenizer" of tokenizer.json describes.

  Raises ValueError if the type is not supported, and KeyError if a setting is missing.
  """
  if config is None:
    return []
  kind = config["type"]
  if kind == "Sequence":
    return [step for part in config.get("pretokenizers", []) for step in from_json(part)]
  if kind == "WhitespaceSplit":
    return [find_all(r"\S+")]
  if kind == "Punctuation" and config.get("behavior", "Isolated") == "Isolated":
    return [find_all(f"[{PUNCTUATION}]|[^{PUNCTUATION}]+")]
  if kind == "Metaspace" and config.get("replacement", "▁") == "▁":
    default = "always" if config.get("add_prefix_space", True) else "never"
    return [metaspace(config.get("prepend_scheme", default), config.get("split", True))]
  raise ValueError(
    f"pre-tokenizer {config} is not supported; use Sequence, WhitespaceSplit,"
    " Punctuation (Isolated) or Metaspace (▁)"
  )
