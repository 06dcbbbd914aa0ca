"""Normalizers: rewrite a text before tokenization and track the offsets in the original text."""

import base64
import collections
import functools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import regex

from tinyformer.tokenization.added_tokens import WHITE_SPACE
from tinyformer.tokenization.byte_letters import to_letters
from tinyformer.tokenization.regular_expressions import Pattern, escape
from tinyformer.tokenization.settings import Settings


class NormalizedString(NamedTuple):
  """A part of a text, possibly rewritten.

  Character n represents the characters starts[n] to ends[n] (exclusive) of the original text.
  is_first: the part begins at the start of the original text.
  """

  text: str
  starts: Sequence[int]
  ends: Sequence[int]
  is_first: bool = False

  @classmethod
  def from_text(cls, text: str, start: int = 0, end: int | None = None) -> "NormalizedString":
    """Return text[start:end], not rewritten."""
    end = len(text) if end is None else end
    return cls(text[start:end], range(start, end), range(start + 1, end + 1), start == 0)

  def slice(self, start: int, end: int | None = None) -> "NormalizedString":
    """Return the characters from `start` to `end` (exclusive)."""
    starts = self.starts[start:end]
    is_first = self.is_first and len(starts) > 0 and starts[0] == 0
    return NormalizedString(self.text[start:end], starts, self.ends[start:end], is_first)

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
      original_start = (*self.starts[start : start + 1], *self.ends[-1:])[0]
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
    return NormalizedString("".join(text), starts, ends, self.is_first)


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
  """Return a normalizer that removes all characters of `left` at the start, of `right` at the end.

  If a text consists of such characters only, nothing remains.
  """

  def normalize(text: NormalizedString) -> NormalizedString:
    start = len(text.text) - len(text.text.lstrip(left)) if left else 0
    end = max(start, len(text.text.rstrip(right))) if right else len(text.text)
    return text.slice(start, end)._replace(is_first=text.is_first)

  return normalize


def prepend(prefix: str, if_missing: bool = False, only_at_start: bool = False) -> Normalizer:
  """Return a normalizer that inserts a prefix.

  if_missing: do not insert the prefix before a text that already begins with the prefix.
  only_at_start: insert the prefix only at the start of the original text.
  """

  def normalize(text: NormalizedString) -> NormalizedString:
    is_present = if_missing and text.text.startswith(prefix)
    is_elsewhere = only_at_start and not text.is_first
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


def strip_accents(text: NormalizedString) -> NormalizedString:
  """Remove all combining marks."""
  return text.replace_spans(
    (i, i + 1, "") for i, c in enumerate(text.text) if unicodedata.category(c)[0] == "M"
  )


NMT_REMOVED = {*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F}
NMT_SPACES = {9, 10, 12, 13, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD}


def nmt(text: NormalizedString) -> NormalizedString:
  """Remove control characters, and replace unusual spaces, as SentencePiece's nmt_nfkc does."""
  changes = dict.fromkeys(map(chr, NMT_REMOVED), "") | dict.fromkeys(map(chr, NMT_SPACES), " ")
  return text.replace_spans((i, i + 1, changes[c]) for i, c in enumerate(text.text) if c in changes)


CJK_RANGES = (
  (0x4E00, 0x9FFF),
  (0x3400, 0x4DBF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F),
  (0x2B920, 0x2CEAF),
  (0xF900, 0xFAFF),
  (0x2F800, 0x2FA1F),
)


def bert(
  lowercase: bool, strip_accents: bool, handle_chinese_chars: bool, clean_text: bool = True
) -> Normalizer:
  """Return BERT's normalizer, which rewrites each character.

  lowercase: convert the text to lowercase.
  strip_accents: remove accents.
  handle_chinese_chars: surround each Chinese character by spaces.
  clean_text: remove control characters, and replace all white space by spaces.
  """

  @functools.cache
  def change(character: str) -> str:
    category = unicodedata.category(character)
    if clean_text:
      if character in "\t\n\r" or (character.isspace() and category[0] == "Z"):
        return " "
      if character in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
        return ""
    normal = character
    if handle_chinese_chars and any(a <= ord(character) <= b for a, b in CJK_RANGES):
      normal = f" {character} "
    if strip_accents:
      decomposed = unicodedata.normalize("NFD", normal)
      normal = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    return "".join(c.lower() for c in normal) if lowercase else normal

  def normalize(text: NormalizedString) -> NormalizedString:
    return text.replace_spans(
      (i, i + 1, new) for i, c in enumerate(text.text) if (new := change(c)) != c
    )

  return normalize


def byte_level(text: NormalizedString) -> NormalizedString:
  """Replace each character by the letters of its UTF-8 bytes, as byte-level BPE does."""
  if text.text.isascii():
    return text._replace(text=to_letters(text.text))
  sizes = [len(character.encode()) for character in text.text]
  starts = [start for start, size in zip(text.starts, sizes, strict=True) for _ in range(size)]
  ends = [end for end, size in zip(text.ends, sizes, strict=True) for _ in range(size)]
  return NormalizedString(to_letters(text.text), starts, ends, text.is_first)


def read_pattern(config: Settings) -> str:
  """Return the regular expression of a step whose "pattern" is a String or a Regex."""
  pattern = Settings(f"{config.title}: 'pattern'", config.get("pattern", dict))
  if "String" in pattern.config:
    return escape(pattern.get("String", str))
  return pattern.get("Regex", str)


def replace_pattern(config: Settings) -> Normalizer:
  """Return a normalizer that replaces each match of the setting "pattern"."""
  pattern = Pattern(read_pattern(config))
  new = config.get("content", str)

  def normalize(text: NormalizedString) -> NormalizedString:
    return text.replace_spans((start, end, new) for start, end in pattern.spans(text.text))

  return normalize


SIMPLE: dict[str, Normalizer] = {
  "Lowercase": replace_each(".", str.lower),
  "StripAccents": strip_accents,
  "Nmt": nmt,
  "ByteLevel": byte_level,
}


def from_json(config: Settings | None) -> list[Normalizer]:
  """Return the normalizers that the "normalizer" of tokenizer.json describes.

  Raises ValueError if a step is not supported or a setting is missing.
  """
  if config is None:
    return []
  kind = config.kind
  if kind == "Sequence":
    return [step for part in config.steps("normalizers") for step in from_json(part)]
  if kind in SIMPLE:
    return [SIMPLE[kind]]
  if kind in ("NFC", "NFD", "NFKC", "NFKD"):
    return [unicode_form(kind)]
  if kind == "Replace":
    return [replace_pattern(config)]
  if kind == "Prepend":
    return [prepend(config.get("prepend", str))]
  if kind == "Strip":
    left = WHITE_SPACE if config.get("strip_left", bool) else ""
    right = WHITE_SPACE if config.get("strip_right", bool) else ""
    return [strip(left, right)]
  if kind == "Precompiled":
    charsmap = config.config.get("precompiled_charsmap")
    if not charsmap:
      return []
    data = base64.b64decode(config.get("precompiled_charsmap", str), validate=True)
    return [replace_graphemes(read_charsmap(data))]
  if kind == "BertNormalizer":
    lowercase = config.get("lowercase", bool)
    return [
      bert(
        lowercase,
        config.get("strip_accents", bool, lowercase),
        config.get("handle_chinese_chars", bool),
        config.get("clean_text", bool),
      )
    ]
  raise config.refuse()
