"""What is done to a text before it is cut into tokens: normalisations and splits, each of which keeps where the characters came from."""

import base64
import collections
import functools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import regex


class NormalizedString(NamedTuple):
  """A part of a text, perhaps rewritten: its character n stands for the original's from starts[n] up to ends[n]."""

  text: str
  starts: Sequence[int]
  ends: Sequence[int]

  def part(self, a: int, b: int | None = None) -> "NormalizedString":
    return NormalizedString(self.text[a:b], self.starts[a:b], self.ends[a:b])

  def rewrite(self, changes: Iterable[tuple[int, int, str]]) -> "NormalizedString":
    """With each (begin, end, new), from the left, written anew; every new character stands for all that was there, an insertion for nothing."""
    text: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for a, b, new in changes:
      text += self.text[done:a], new
      starts += [*self.starts[done:a], *[self.starts[a]] * len(new)]
      ends += [*self.ends[done:a], *[self.ends[b - 1] if a < b else self.starts[a]] * len(new)]
      done = b
    return (
      NormalizedString(
        "".join([*text, self.text[done:]]),
        [*starts, *self.starts[done:]],
        [*ends, *self.ends[done:]],
      )
      if text
      else self
    )


Step = Callable[[NormalizedString], list[NormalizedString]]


def whole(text: str, a: int = 0, b: int | None = None) -> NormalizedString:
  """A text's characters from a up to b, as they are."""
  b = len(text) if b is None else b
  return NormalizedString(text[a:b], range(a, b), range(a + 1, b + 1))


def apply(steps: Sequence[Step], stretch: NormalizedString) -> list[NormalizedString]:
  """What comes of a stretch, step by step; empty ones are left out."""
  stretches = [stretch]
  for step in steps:
    stretches = [new for s in stretches if s.text for new in step(s)]
  return [s for s in stretches if s.text]


# the steps


def replace(pattern: str, new: str) -> Step:
  find = regex.compile(pattern)
  return lambda s: [s.rewrite((*m.span(), new) for m in find.finditer(s.text))]


def found(pattern: str) -> Step:
  """The matches alone, each a stretch by itself."""
  find = regex.compile(pattern)
  return lambda s: [s.part(*m.span()) for m in find.finditer(s.text)]


def strip(left: str, right: str) -> Step:
  """Without what the patterns match at either end."""
  ends = regex.compile(f"^(?:{left})*+(.*?)(?:{right})*$", regex.DOTALL)
  return lambda s: [s.part(*ends.match(s.text).span(1))]  # type: ignore[union-attr]


def prepend(new: str, unless: bool = False, first: bool = False) -> Step:
  """With `new` before it; `unless` it begins so already; `first`: only where the text itself begins."""

  def step(s: NormalizedString) -> list[NormalizedString]:
    return [
      s
      if (unless and s.text.startswith(new)) or (first and s.starts[0])
      else s.rewrite([(0, 0, new)])
    ]

  return step


def each(pattern: str, change: Callable[[str], str]) -> Step:
  """With every match changed by itself."""
  find = regex.compile(pattern)
  return lambda s: [
    s.rewrite((*m.span(), new) for m in find.finditer(s.text) if (new := change(m[0])) != m[0])
  ]


def unicode_form(form: Any) -> Step:
  """NFC, NFD, NFKC or NFKD, of one user-perceived character after the other."""
  change = each(r"\X", functools.partial(unicodedata.normalize, form))
  return lambda s: [s] if unicodedata.is_normalized(form, s.text) else change(s)


def read_charsmap(data: bytes) -> dict[str, str]:
  """What sentencepiece's precompiled_charsmap rewrites: a double-array trie of UTF-8 keys (the bits are those of darts-clone), then the new texts.

  The child by byte c of a node with offset o stands at node ^ o ^ c and is labelled c; several nodes may share it. The place of a key's new text
  stands at node ^ o. Raises ValueError or IndexError for what is no such table.
  """
  size = int.from_bytes(data[:4], "little")
  units, texts, table = np.frombuffer(data, "<u4", size // 4, 4).tolist(), data[4 + size :], {}
  children = collections.defaultdict(list)
  for n, unit in enumerate(units):
    if unit < 1 << 31 and unit & 255:
      children[n ^ (unit & 255)].append(n)
  todo = [(0, b"")]
  while todo:
    node, key = todo.pop()
    if len(key) > 99:
      raise ValueError("the table of characters never ends")
    unit = units[node]
    base = node ^ (unit >> 10 << (unit >> 6 & 8))
    if unit & 256:
      begin = units[base] & ~(1 << 31)
      table[key.decode()] = texts[begin : texts.index(b"\0", begin)].decode()
    todo += [(child, key + bytes([units[child] & 255])) for child in children.get(base, [])]
  return table


def longest(table: dict[str, str]) -> Step:
  """From the left, the longest part that is in the table, rewritten: as sentencepiece does."""
  first, most = {key[0] for key in table}, max(map(len, table), default=0)

  def changes(text: str) -> Iterator[tuple[int, int, str]]:
    done = 0
    for a, c in enumerate(text):
      if c in first and a >= done:
        for b in range(min(a + most, len(text)), a, -1):
          if text[a:b] in table:
            yield a, b, table[text[a:b]]
            done = b
            break

  return lambda s: [s.rewrite(changes(s.text))]


def by_grapheme(table: dict[str, str]) -> Step:
  """As Hugging Face's tokenizers uses the same table: a user-perceived character of up to 5 bytes becomes what its shortest beginning does, any other goes letter by letter."""

  def change(grapheme: str) -> str:
    if len(grapheme.encode()) < 6:
      for n in range(1, len(grapheme) + 1):
        if grapheme[:n] in table:
          return table[grapheme[:n]]
    return "".join(table.get(c, c) for c in grapheme)

  return each(r"\X", functools.lru_cache(1 << 16)(change))


PUNCTUATION = r"\p{P}$+<=>^`|~"  # those of ASCII that Unicode calls symbols too


def read(part: dict[str, Any] | None) -> list[Step]:
  """The steps of a normalizer or pre_tokenizer of tokenizer.json. Raises ValueError for one that is not known here, KeyError for one that lacks something."""
  if part is None:
    return []
  kind = part["type"]
  if kind == "Sequence":
    return [
      step for p in part.get("normalizers", part.get("pretokenizers", [])) for step in read(p)
    ]
  if kind == "Replace":
    return [
      replace(
        p["Regex"] if "Regex" in (p := part["pattern"]) else regex.escape(p["String"]),
        part["content"],
      )
    ]
  if kind == "Prepend":
    return [prepend(part["prepend"])]
  if kind == "Strip":
    return [strip(r"\s" if part["strip_left"] else "", r"\s" if part["strip_right"] else "")]
  if kind == "Precompiled":
    return (
      [by_grapheme(read_charsmap(base64.b64decode(part["precompiled_charsmap"])))]
      if part["precompiled_charsmap"]
      else []
    )
  if kind in ("NFC", "NFD", "NFKC", "NFKD"):
    return [unicode_form(kind)]
  if kind == "Lowercase":
    return [each(".", str.lower)]
  if kind == "WhitespaceSplit":
    return [found(r"\S+")]
  if kind == "Punctuation" and part.get("behavior", "Isolated") == "Isolated":
    return [found(f"[{PUNCTUATION}]|[^{PUNCTUATION}]+")]
  if kind == "Metaspace" and part.get("replacement", "▁") == "▁":
    scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
    return [
      replace(" ", "▁"),
      *([prepend("▁", True, scheme == "first")] if scheme != "never" else []),
      *([found("▁[^▁]*|[^▁]+")] if part.get("split", True) else []),
    ]
  raise ValueError(f"the step {kind} is not known here")
