"""Added tokens: strings that are found in a text before tokenization."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import regex

from tinyformer.tokenization.settings import Settings

# The 25 characters with Unicode's property White_Space.
WHITE_SPACE = (
  "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
  "\u2028\u2029\u202f\u205f\u3000"
)
SPACES = re.compile(f"[{WHITE_SPACE}]+")
WORD_CHARACTER = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


class AddedToken(NamedTuple):
  """A token that is found in a text before tokenization.

  special: recognized only on request, and not part of decoded text.
  single_word: found only if no letter, digit or underscore is next to the token.
  lstrip, rstrip: the token includes the white space before and after it.
  normalized: searched for in the normalized text, after normalizing the token itself.
  """

  content: str
  id: int
  special: bool = False
  single_word: bool = False
  lstrip: bool = False
  rstrip: bool = False
  normalized: bool = False

  @classmethod
  def from_json(cls, config: Any) -> "AddedToken":
    """Return the added token that an item of "added_tokens" in tokenizer.json describes."""
    settings = Settings("added_tokens", config)
    special = settings.get("special", bool, False)
    return cls(
      settings.get("content", str),
      settings.get("id", int),
      special,
      settings.get("single_word", bool, False),
      settings.get("lstrip", bool, False),
      settings.get("rstrip", bool, False),
      settings.get("normalized", bool, not special),
    )


# Yields (start, end, ID) of each added token of a text, and of the texts between, whose ID is None.
# The second argument is the indices of characters that are not part of a special token.
Finder = Callable[[str, Collection[int]], Iterator[tuple[int, int, int | None]]]


def contains_any(span: tuple[int, int], indices: Collection[int]) -> bool:
  """Return whether one of the indices is in a span (start, end)."""
  return any(i in indices for i in range(*span))


def find_nothing(text: str, literal: Collection[int] = ()) -> Iterator[tuple[int, int, int | None]]:
  """Yield the whole text."""
  if text:
    yield 0, len(text), None


def finder(tokens: Iterable[AddedToken], special: Sequence[str] = ()) -> Finder:
  """Return a function that finds tokens in a text. Of several tokens, the longest is found.

  special: the special tokens to recognize. All others remain text.
  """
  by_content: dict[str, AddedToken] = {}
  # Normalization can make two tokens equal. Special tokens take precedence, then earlier ones.
  for token in sorted(tokens, key=lambda token: not token.special):
    if token.content:
      by_content.setdefault(token.content, token)
  if not by_content:
    return find_nothing
  longest_first = sorted(by_content, key=len, reverse=True)
  pattern = re.compile("|".join(map(re.escape, longest_first)))

  def find(text: str, literal: Collection[int] = ()) -> Iterator[tuple[int, int, int | None]]:
    done = 0
    for match in pattern.finditer(text):
      token = by_content[match[0]]
      start, end = match.span()
      is_text = token.content not in special or contains_any((start, end), literal)
      if token.special and is_text:
        continue
      if token.single_word and is_part_of_word(text, start, end):
        continue
      if token.lstrip:
        before = text[done:start]
        start = done + len(before.rstrip(WHITE_SPACE))
      if token.rstrip:
        spaces = SPACES.match(text, end)
        end = spaces.end() if spaces else end
      if done < start:
        yield done, start, None
      yield start, end, token.id
      done = end
    if done < len(text):
      yield done, len(text), None

  return find


def is_part_of_word(text: str, start: int, end: int) -> bool:
  """Return whether a letter, digit or underscore is next to text[start:end]."""
  neighbours = text[max(start - 1, 0) : start] + text[end : end + 1]
  return WORD_CHARACTER.search(neighbours) is not None
