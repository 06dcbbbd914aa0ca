"""What a token is called: its text, with nothing in it that could change how other text is shown."""

import unicodedata
from collections.abc import Sequence

MOST = 8  # tokens that a character is spread over, at most: one has four bytes, and a token may begin with the end of the one before


def safe(text: str) -> str:
  """A dot for what cannot be shown, controls and directions among it, but for signs of an end of line and a tab."""
  return "".join(c if c.isprintable() else {"\n": "⏎", "\t": "⇥"}.get(c, "·") for c in text)


def labels(tokenizer, ids: Sequence[int]) -> list[str]:
  """A label for each token; tokens that only together make up characters have those of them all, and which they are: 😀 1/2, 😀 2/2."""
  names = {i: s for s, i in tokenizer.specials.items()}
  found: list[str] = []
  while len(found) < len(ids):
    n, data = len(found), b""
    for m, i in enumerate(ids[n : n + MOST], 1):
      if i in names:
        break
      data += tokenizer.token(i)
      try:
        text = data.decode()
      except UnicodeDecodeError:
        continue
      found += [safe(text)] if m == 1 else [f"{safe(text)} {k}/{m}" for k in range(1, m + 1)]
      break
    if len(found) == n:
      found.append(safe(names.get(ids[n]) or tokenizer.token(ids[n]).decode(errors="replace")))
  return found


def leftward(text: str) -> bool:
  """Whether a text's first letter is of a script that runs from the right to the left."""
  return next(
    (d in ("R", "AL") for c in text if (d := unicodedata.bidirectional(c)) in ("L", "R", "AL")),
    False,
  )
