"""Normalizers: rewrite a text before tokenization and track the offsets in the original text."""

import base64
import collections
import functools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import regex


class NormalizedString(NamedTuple):
  """A part of a text, possibly rewritten.

  Character n represents the characters starts[n] to ends[n] (exclusive) of the original text.
  """

  text: str
  starts: Sequence[int]
  ends: Sequence[int]

  @classmethod
  def from_text(cls, text: str, start: int = 0, end: int | None = None) -> "NormalizedString":
    """Return text[start:end], not rewritten."""
    end = len(text) if end is None else end
    return cls(text[start:end], range(start, end), range(start + 1, end + 1))

  def slice(self, start: int, end: int | None = None) -> "NormalizedString":
    """Return the characters from `start` to `end` (exclusive)."""
    return NormalizedString(self.text[start:end], self.starts[start:end], self.ends[start:end])

  def replace_spans(self, changes: Iterable[tuple[int, int, str]]) -> "NormalizedString":
    """Replace the characters start to end by a new string, for each (start, end, new).

    The spans must be in order and must not overlap. Each new character represents the whole span.
    If the span is empty, the new characters represent an empty range of the original text.
    """
    text: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for start, end, new in changes:
      original_start = self.starts[start]
      original_end = self.ends[end - 1] if start < end else original_start
      text += self.text[done:start], new
      starts += [*self.starts[done:start], *[original_start] * len(new)]
      ends += [*self.ends[done:start], *[original_end] * len(new)]
      done = end
    if not text:
      return self
    text.append(self.text[done:])
    starts += self.starts[done:]
    ends += self.ends[done:]
    return NormalizedString("".join(text), starts, ends)


Normalizer = Callable[[NormalizedString], NormalizedString]


def apply(normalizers: Iterable[Normalizer], text: NormalizedString) -> NormalizedString:
  """Apply the normalizers in order. An empty text remains empty."""
  for normalize in normalizers:
    if not text.text:
      break
    text = normalize(text)
  return text


def replace(pattern: str, new: str) -> Normalizer:
  """Return a normalizer that replaces each match of a regular expression by a string."""
  compiled = regex.compile(pattern)

  def normalize(text: NormalizedString) -> NormalizedString:
    return text.replace_spans((*match.span(), new) for match in compiled.finditer(text.text))

  return normalize


def strip(left: str, right: str) -> Normalizer:
  """Return a normalizer that removes all matches of `left` at the start and `right` at the end."""
  compiled = regex.compile(f"^(?:{left})*+(.*?)(?:{right})*$", regex.DOTALL)

  def normalize(text: NormalizedString) -> NormalizedString:
    match = compiled.match(text.text)
    assert match is not None
    return text.slice(*match.span(1))

  return normalize


def prepend(prefix: str, if_missing: bool = False, only_at_start: bool = False) -> Normalizer:
  """Return a normalizer that inserts a prefix.

  if_missing: do not insert the prefix before a text that already begins with the prefix.
  only_at_start: insert the prefix only at the start of the original text.
  """

  def normalize(text: NormalizedString) -> NormalizedString:
    is_present = if_missing and text.text.startswith(prefix)
    is_elsewhere = only_at_start and text.starts[0] > 0
    return text if is_present or is_elsewhere else text.replace_spans([(0, 0, prefix)])

  return normalize


def replace_each(pattern: str, change: Callable[[str], str]) -> Normalizer:
  """Return a normalizer that applies a function to each match of a regular expression."""
  compiled = regex.compile(pattern)

  def normalize(text: NormalizedString) -> NormalizedString:
    return text.replace_spans(
      (*match.span(), new)
      for match in compiled.finditer(text.text)
      if (new := change(match[0])) != match[0]
    )

  return normalize


def unicode_form(form: Any) -> Normalizer:
  """Return a normalizer to NFC, NFD, NFKC or NFKD, one grapheme cluster at a time."""
  change = replace_each(r"\X", functools.partial(unicodedata.normalize, form))

  def normalize(text: NormalizedString) -> NormalizedString:
    return text if unicodedata.is_normalized(form, text.text) else change(text)

  return normalize


def read_charsmap(data: bytes) -> dict[str, str]:
  """Return the replacements in SentencePiece's precompiled_charsmap.

  The format is the size of a trie in bytes, the trie, and the replacement strings. The trie is a
  double array (darts-clone) over the UTF-8 bytes of the keys. If a node has offset o, its child
  for byte c is at index node ^ o ^ c and has label c. Several nodes may share a child. The value
  of a key is at index node ^ o: the position of its replacement string.
  Raises ValueError or IndexError if the data is invalid.
  """
  size = int.from_bytes(data[:4], "little")
  units = np.frombuffer(data, "<u4", size // 4, 4).tolist()
  texts = data[4 + size :]
  table: dict[str, str] = {}
  children = collections.defaultdict(list)
  for index, unit in enumerate(units):
    label = unit & 255
    is_value = unit >= 1 << 31
    if label and not is_value:
      children[index ^ label].append(index)
  stack = [(0, b"")]
  while stack:
    node, key = stack.pop()
    if len(key) > 99:
      raise ValueError("invalid precompiled_charsmap: a key is longer than 99 bytes")
    unit = units[node]
    base = node ^ (unit >> 10 << (unit >> 6 & 8))
    has_value = unit & 256
    if has_value:
      start = units[base] & ~(1 << 31)
      table[key.decode()] = texts[start : texts.index(b"\0", start)].decode()
    stack += [(child, key + bytes([units[child] & 255])) for child in children.get(base, [])]
  return table


def replace_longest(table: dict[str, str]) -> Normalizer:
  """Return a normalizer that replaces the longest keys of a table, from left to right.

  SentencePiece applies its precompiled_charsmap in this way.
  """
  first_characters = {key[0] for key in table}
  max_length = max(map(len, table), default=0)

  def changes(text: str) -> Iterator[tuple[int, int, str]]:
    done = 0
    for start, character in enumerate(text):
      if character in first_characters and start >= done:
        for end in range(min(start + max_length, len(text)), start, -1):
          if text[start:end] in table:
            yield start, end, table[text[start:end]]
            done = end
            break

  return lambda text: text.replace_spans(changes(text.text))


def replace_graphemes(table: dict[str, str]) -> Normalizer:
  """Return a normalizer that looks up each grapheme cluster in a table.

  A grapheme cluster of at most 5 bytes becomes the replacement of its shortest prefix in the
  table. In all other clusters, each character is replaced separately. Hugging Face tokenizers
  applies SentencePiece's precompiled_charsmap in this way.
  """

  def change(grapheme: str) -> str:
    if len(grapheme.encode()) < 6:
      for n in range(1, len(grapheme) + 1):
        if grapheme[:n] in table:
          return table[grapheme[:n]]
    return "".join(table.get(character, character) for character in grapheme)

  return replace_each(r"\X", functools.lru_cache(1 << 16)(change))


def from_json(config: dict[str, Any] | None) -> list[Normalizer]:
  """Return the normalizers that the "normalizer" of tokenizer.json describes.

  Raises ValueError if the type is not supported, and KeyError if a setting is missing.
  """
  if config is None:
    return []
  kind = config["type"]
  if kind == "Sequence":
    return [step for part in config.get("normalizers", []) for step in from_json(part)]
  if kind == "Replace":
    pattern = config["pattern"]
    expression = pattern["Regex"] if "Regex" in pattern else regex.escape(pattern["String"])
    return [replace(expression, config["content"])]
  if kind == "Prepend":
    return [prepend(config["prepend"])]
  if kind == "Strip":
    left = r"\s" if config["strip_left"] else ""
    right = r"\s" if config["strip_right"] else ""
    return [strip(left, right)]
  if kind == "Precompiled":
    charsmap = config["precompiled_charsmap"]
    return [replace_graphemes(read_charsmap(base64.b64decode(charsmap)))] if charsmap else []
  if kind in ("NFC", "NFD", "NFKC", "NFKD"):
    return [unicode_form(kind)]
  if kind == "Lowercase":
    return [replace_each(".", str.lower)]
  raise ValueError(
    f"normalizer {kind} is not supported; use Sequence, Replace, Prepend, Strip, Precompiled,"
    " NFC, NFD, NFKC, NFKD or Lowercase"
  )
