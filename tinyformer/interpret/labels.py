"""Labels of tokens: their text, without characters that change how other text is displayed."""

import unicodedata
from collections.abc import Sequence

# Tokens that one character can extend over. A character has at most four bytes, but the first
# token may also contain the end of the preceding character.
MAX_TOKENS_PER_CHARACTER = 8


def printable(text: str) -> str:
  """Return the text with a symbol for a newline or tab and a dot for other unprintable characters.

  Control characters and characters that set the text direction are unprintable.
  """
  symbols = {"\n": "⏎", "\t": "⇥"}
  return "".join(c if c.isprintable() else symbols.get(c, "·") for c in text)


def token_labels(tokenizer, ids: Sequence[int]) -> list[str]:
  """Return a label for each token.

  If several tokens form one character, each label has that character and a number, as in 😀 1/2.
  """
  special_tokens = {i: text for text, i in tokenizer.specials.items()}
  labels: list[str] = []
  while len(labels) < len(ids):
    start = len(labels)
    data = b""
    for count, i in enumerate(ids[start : start + MAX_TOKENS_PER_CHARACTER], 1):
      if i in special_tokens:
        break
      data += tokenizer.token(i)
      try:
        text = printable(data.decode())
      except UnicodeDecodeError:
        continue
      labels += [text] if count == 1 else [f"{text} {n}/{count}" for n in range(1, count + 1)]
      break
    if len(labels) == start:  # a special token, or bytes that are not UTF-8
      i = ids[start]
      labels.append(printable(special_tokens.get(i) or tokenizer.token(i).decode(errors="replace")))
  return labels


def right_to_left(text: str) -> bool:
  """Return True if the first letter belongs to a right-to-left script."""
  directions = (unicodedata.bidirectional(c) for c in text)
  return next((d in ("R", "AL") for d in directions if d in ("L", "R", "AL")), False)
