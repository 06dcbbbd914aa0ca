"""Pre-tokenizers: split a normalized text into parts, so that no token crosses a boundary."""

from collections.abc import Callable, Sequence
from typing import Any

from tinyformer.tokenization import normalizers
from tinyformer.tokenization.normalizers import NormalizedString, Normalizer
from tinyformer.tokenization.regular_expressions import WHITE_SPACE, Pattern, complement, escape
from tinyformer.tokenization.settings import Settings

PreTokenizer = Callable[[NormalizedString], list[NormalizedString]]

# GPT-2's pre-tokenizer (Radford et al. 2019, sec. 2.2).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Unicode classifies some ASCII punctuation as symbols.
PUNCTUATION = r"\p{P}$+<=>^`|~"
WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}"
# Where a matched delimiter goes.
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


class Split:
  """A pre-tokenizer that splits a text at the matches of a regular expression.

  behavior: what happens to a match, one of BEHAVIORS.
  invert: split at the texts between the matches instead.
  """

  def __init__(self, expression: str, behavior: str = "Isolated", invert: bool = False):
    self.pattern = Pattern(expression)
    self.behavior = behavior
    self.invert = invert

  def spans(self, text: str) -> list[tuple[int, int]]:
    """Return the start and end of each part of a text. Parts are not empty."""
    matches = self.pattern.spans(text)
    parts = [
      (start, end, is_match is not self.invert)
      for start, end, is_match in complement(matches, len(text))
    ]
    if self.behavior == "Removed":
      spans = [(start, end) for start, end, is_delimiter in parts if not is_delimiter]
    elif self.behavior == "Isolated":
      spans = [(start, end) for start, end, _ in parts]
    elif self.behavior == "Contiguous":
      spans = merge_parts(parts, lambda last, this: last is this)
    elif self.behavior == "MergedWithPrevious":
      spans = merge_parts(parts, lambda last, this: this and not last)
    else:
      spans = merge_parts(parts, lambda last, this: last and not this, from_right=True)
    return [(start, end) for start, end in spans if start < end]

  def words(self, text: str) -> list[str]:
    """Return the parts of a text."""
    if self.behavior == "Isolated" and not self.invert:
      words = self.pattern.words(text)
      if words is not None:
        return [word for word in words if word]
    return [text[start:end] for start, end in self.spans(text)]

  def __call__(self, text: NormalizedString) -> list[NormalizedString]:
    return [text.slice(start, end) for start, end in self.spans(text.text)]


def merge_parts(
  parts: list[tuple[int, int, bool]], joins: Callable[[bool, bool], bool], from_right: bool = False
) -> list[tuple[int, int]]:
  """Merge neighbours among (start, end, is a delimiter) and return (start, end) of the results.

  joins: whether a part is merged with the one before it, from whether each is a delimiter. The
  first argument belongs to the left one.
  from_right: merge from right to left, which decides how several delimiters in a row are merged.
  """
  merged: list[tuple[int, int]] = []
  last: bool | None = None
  for start, end, this in reversed(parts) if from_right else parts:
    left, right = (this, last) if from_right else (last, this)
    if left is None or right is None or not joins(left, right):
      merged.append((start, end))
    elif from_right:
      merged[-1] = (start, merged[-1][1])
    else:
      merged[-1] = (merged[-1][0], end)
    last = this
  return merged[::-1] if from_right else merged


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


def metaspace(replacement: str, prepend_scheme: str, split: bool) -> list[PreTokenizer]:
  """Return pre-tokenizers that replace each space by ▁ and split the text before each ▁.

  prepend_scheme: insert ▁ before a text that does not begin with ▁: "always", "never", or "first"
  for the start of the original text only.
  split: if false, do not split the text.
  """
  steps = [normalizers.replace(" ", replacement)]
  if prepend_scheme != "never":
    only_at_start = prepend_scheme == "first"
    steps.append(normalizers.prepend(replacement, if_missing=True, only_at_start=only_at_start))
  splits: list[PreTokenizer] = [Split(escape(replacement), "MergedWithNext")]
  return [lambda text: [normalizers.apply(steps, text)], *(splits if split else [])]


def letters(text: NormalizedString) -> list[NormalizedString]:
  """Replace each character by the letters of its UTF-8 bytes, as byte-level BPE does."""
  return [normalizers.byte_level(text)]


def byte_level(config: Settings) -> list[PreTokenizer]:
  """Return the pre-tokenizers of byte-level BPE."""
  steps: list[PreTokenizer] = []
  if config.get("add_prefix_space", bool, True):
    prepend = normalizers.prepend(" ", if_missing=True)
    steps.append(lambda text: [prepend(text)])
  if config.get("use_regex", bool, True):
    steps.append(Split(GPT2_PATTERN))
  return [*steps, letters]


def read_behavior(config: Settings, default: Any = None) -> str:
  """Return the setting "behavior". Raises ValueError if it is unknown."""
  behavior = config.get("behavior", str, default)
  if behavior not in BEHAVIORS:
    raise config.refuse(f"with the behavior {behavior!r:.40} is not supported")
  return behavior


def read_metaspace(config: Settings) -> list[PreTokenizer]:
  """Return the pre-tokenizers of a Metaspace step."""
  default = "always" if config.get("add_prefix_space", bool, True) else "never"
  scheme = config.get("prepend_scheme", str, default)
  replacement = config.get("replacement", str, "▁")
  if scheme not in ("always", "first", "never") or len(replacement) != 1:
    raise config.refuse(
      f"with prepend_scheme {scheme!r:.40} and replacement {replacement!r:.40} is not supported"
    )
  return metaspace(replacement, scheme, config.get("split", bool, True))


def from_json(config: Settings | None) -> list[PreTokenizer]:
  """Return the pre-tokenizers that the "pre_tokenizer" of tokenizer.json describes.

  Raises ValueError if a step is not supported or a setting is missing.
  """
  if config is None:
    return []
  kind = config.kind
  if kind == "Sequence":
    return [step for part in config.steps("pretokenizers") for step in from_json(part)]
  if kind == "ByteLevel":
    return byte_level(config)
  if kind == "Metaspace":
    return read_metaspace(config)
  splits: list[Split]
  if kind == "Split":
    pattern = normalizers.read_pattern(config)
    splits = [Split(pattern, read_behavior(config), config.get("invert", bool, False))]
  elif kind == "Digits":
    individual = config.get("individual_digits", bool, False)
    splits = [Split(r"\p{N}", "Isolated" if individual else "Contiguous")]
  elif kind == "Punctuation":
    splits = [Split(f"[{PUNCTUATION}]", read_behavior(config, "Isolated"))]
  elif kind == "Whitespace":
    splits = [Split(f"[{WORD}]+|[^{WORD}{WHITE_SPACE}]+", "Removed", invert=True)]
  elif kind == "WhitespaceSplit":
    splits = [Split(f"[{WHITE_SPACE}]", "Removed")]
  elif kind == "CharDelimiterSplit":
    splits = [Split(escape(config.get("delimiter", str)), "Removed")]
  elif kind == "BertPreTokenizer":
    words = f"[^{WHITE_SPACE}{PUNCTUATION}]+|[{PUNCTUATION}]"
    splits = [Split(words, "Removed", invert=True)]
  else:
    raise config.refuse()
  return [*splits]
