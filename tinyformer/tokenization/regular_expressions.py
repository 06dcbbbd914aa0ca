"""The regular expressions of tokenizer.json: Oniguruma's Ruby syntax, with a time limit.

Hugging Face tokenizers matches them with Oniguruma. The `regex` package has almost the same syntax;
`translate` converts what differs.
Source: https://github.com/kkos/oniguruma/blob/master/doc/RE
"""

import contextlib
import re
from collections.abc import Iterator

import regex

# A pattern of a real tokenizer needs under 2 µs per character. A pattern with catastrophic
# backtracking needs hours. The limit must also hold on a slow, busy machine.
SECONDS = 4.0
SECONDS_PER_CHARACTER = 5e-5
# The 25 characters with Unicode's property White_Space, for use in brackets.
WHITE_SPACE = r"\t-\r\x85\p{Z}"
# Escapes that have another meaning, or none, in the `regex` package.
ESCAPES = {
  "h": "[0-9A-Fa-f]",
  "H": "[^0-9A-Fa-f]",
  "O": "(?s:.)",
  "N": r"[^\n]",
  "e": r"\x1b",
  "z": r"\Z",
  "Z": r"(?=\n?\Z)",
  "w": r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}²³¹¼½¾]",
  "W": r"[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}²³¹¼½¾]",
  "s": f"[{WHITE_SPACE}]",
  "S": f"[^{WHITE_SPACE}]",
}
UNSUPPORTED_ESCAPES = "gkyYKcCM0"
# The operators of sets that `regex` has and Oniguruma has not.
SET_OPERATORS = ("--", "||", "~~")
INTERVAL = re.compile(r"\{(\d*)(,?)(\d*)\}")
OPTIONS = re.compile(r"\(\?([imx]*)(-[imx]*)?([:)])")


def escape(text: str) -> str:
  """Return the regular expression that matches a text literally."""
  return regex.escape(text)


class Pattern:
  """A compiled regular expression of tokenizer.json.

  Raises ValueError if the expression is invalid or not supported.
  """

  def __init__(self, expression: str):
    self.expression = expression
    try:
      self.compiled = regex.compile(translate(expression), regex.V1 | regex.MULTILINE)
    except (regex.error, ValueError, RecursionError, OverflowError, IndexError, KeyError) as e:
      raise ValueError(f"the pattern {expression!r:.200} is not supported: {e}") from e

  def spans(self, text: str) -> list[tuple[int, int]]:
    """Return the start and end of each match, from left to right.

    Raises ValueError if matching exceeds the time limit.
    """
    with self.time_limit(text) as timeout:
      spans = [match.span() for match in self.compiled.finditer(text, timeout=timeout)]
    # Oniguruma finds no empty match directly after another match.
    return [
      (start, end)
      for n, (start, end) in enumerate(spans)
      if start < end or n == 0 or spans[n - 1][1] < start
    ]

  @contextlib.contextmanager
  def time_limit(self, text: str) -> Iterator[float]:
    """Yield the time limit in seconds. Convert the error for exceeding it to a ValueError."""
    timeout = SECONDS + SECONDS_PER_CHARACTER * len(text)
    try:
      yield timeout
    except TimeoutError as e:
      raise ValueError(
        f"the pattern {self.expression!r:.200} took more than {timeout:.0f} s on a text of"
        f" {len(text):,} characters; it may backtrack exponentially, so use another tokenizer"
      ) from e

  def words(self, text: str) -> list[str] | None:
    """Return the matches if they cover the whole text, otherwise None. Faster than `spans`.

    Raises ValueError if matching exceeds the time limit.
    """
    if self.compiled.groups:
      return None
    with self.time_limit(text) as timeout:
      words = self.compiled.findall(text, timeout=timeout)
    return words if sum(map(len, words)) == len(text) else None

  def replace(self, text: str, new: str) -> str:
    """Return the text with each match replaced by a string."""
    parts = complement(self.spans(text), len(text))
    return "".join(new if is_match else text[start:end] for start, end, is_match in parts)


class Translator:
  """Converts a regular expression from Oniguruma's Ruby syntax to the syntax of `regex`.

  out: the converted parts.
  atom: the index in `out` of the last atom, which a quantifier repeats.
  groups: the index in `out` of each open group.
  """

  def __init__(self, expression: str):
    self.expression = expression
    self.out: list[str] = []
    self.atom = 0
    self.groups: list[int] = []

  def run(self) -> str:
    """Return the converted expression. Raises ValueError for a construct without equivalent."""
    i = 0
    while i < len(self.expression):
      i = self.convert(i)
    return "".join(self.out)

  def convert(self, i: int) -> int:
    """Convert the element of the pattern at index i, and return the index after it."""
    character = self.expression[i]
    if character in "\\[":
      self.atom = len(self.out)
      escape_or_set = translate_set if character == "[" else translate_escape
      text, i = escape_or_set(self.expression, i)
      self.out.append(text)
      return i
    interval = INTERVAL.match(self.expression, i)
    if interval and (interval[1] or interval[3]):
      return self.convert_interval(interval)
    options = OPTIONS.match(self.expression, i)
    if options:
      return self.convert_options(options)
    if self.expression.startswith("(?~", i):
      raise ValueError("the absence operator (?~ is not supported")
    if character == "(":
      self.groups.append(len(self.out))
    elif character == ")":
      self.atom = self.groups.pop() if self.groups else 0
    elif character not in "*+?|^$":
      self.atom = len(self.out)
    self.out.append(character)
    return i + 1

  def convert_interval(self, interval: re.Match) -> int:
    """Convert a quantifier such as {1,3}, which does not become possessive by a + after it."""
    following = self.expression[interval.end() : interval.end() + 1]
    is_fixed = not interval[2]
    if following == "+" or (is_fixed and following == "?"):
      repeated = "".join(self.out[self.atom :])
      self.out[self.atom :] = [f"(?:{repeated}{interval[0]})"]
    else:
      self.out.append(interval[0])
    return interval.end()

  def convert_options(self, options: re.Match) -> int:
    """Convert options such as (?i) or (?i:, whose m means that a dot matches a newline."""
    on, off, end = options.groups()
    if end == ":":
      self.groups.append(len(self.out))
    flags = f"{on}{off if off and off != '-' else ''}".replace("m", "s")
    self.out.append(f"(?{flags}{end}")
    return options.end()


def translate(expression: str) -> str:
  """Convert a regular expression from Oniguruma's Ruby syntax to the syntax of `regex`.

  Raises ValueError for a construct that has no equivalent.
  """
  return Translator(expression).run()


def translate_escape(expression: str, i: int, in_set: bool = False) -> tuple[str, int]:
  r"""Convert the escape at index i, such as \s or \p{L}. Return it and the index after it."""
  name = expression[i + 1 : i + 2]
  if name in ("p", "P") or expression.startswith(r"\x{", i):
    end = expression.index("}", i) + 1
    text = expression[i:end]
    return (text if name != "x" else regex.escape(chr(int(text[3:-1], 16)))), end
  if name and name in UNSUPPORTED_ESCAPES:
    raise ValueError(rf"the escape \{name} is not supported")
  if in_set and name in ("O", "N", "z", "Z", "R", "X"):
    raise ValueError(rf"the escape \{name} is not supported inside brackets")
  return ESCAPES.get(name, expression[i : i + 2]), i + 2


def translate_set(expression: str, i: int) -> tuple[str, int]:
  """Convert the set in brackets at index i. Return it and the index after it."""
  depth = 0
  out: list[str] = []
  while i < len(expression):
    character = expression[i]
    if character == "\\":
      text, i = translate_escape(expression, i, in_set=True)
      out.append(text)
      continue
    if expression.startswith("[:", i) and depth > 0 and ":]" in expression[i + 2 :]:
      end = expression.index(":]", i + 2) + 2
      out.append(expression[i:end])
      i = end
      continue
    if expression[i : i + 2] in SET_OPERATORS and depth > 0:
      out.append(character + "\\")
    else:
      out.append(character)
    depth += {"[": 1, "]": -1}.get(character, 0)
    i += 1
    if depth == 0:
      return "".join(out), i
    if character == "[":
      # A bracket that closes directly after the opening one is literal.
      caret = "^" if expression[i : i + 1] == "^" else ""
      out.append(caret)
      i += len(caret)
      if expression[i : i + 1] == "]":
        out.append(r"\]")
        i += 1
  raise ValueError("a set has no closing bracket")


def complement(spans: list[tuple[int, int]], length: int) -> Iterator[tuple[int, int, bool]]:
  """Yield (start, end, is a match) of all matches and of the texts between them, in order."""
  done = 0
  for start, end in spans:
    if done < start:
      yield done, start, False
    yield start, end, True
    done = end
  if done < length:
    yield done, length, False
