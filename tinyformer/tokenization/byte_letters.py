"""GPT-2's 256 printable characters that represent bytes (Radford et al. 2019, sec. 2.2)."""

PRINTABLE = [
  *range(ord("!"), ord("~") + 1),
  *range(ord("¡"), ord("¬") + 1),
  *range(ord("®"), ord("ÿ") + 1),
]
UNPRINTABLE = [b for b in range(256) if b not in PRINTABLE]
# The printable character that represents each byte in vocab.json and merges.txt, in the order of
# GPT-2's first 256 token IDs.
LETTERS = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(UNPRINTABLE)}
BYTE_OF_LETTER = {letter: b for b, letter in LETTERS.items()}


# The same tables for str.translate, between Latin-1 and the letters.
TO_LETTERS = {b: letter for b, letter in LETTERS.items()}
FROM_LETTERS = {ord(letter): b for b, letter in LETTERS.items()}


def bytes_to_unicode(token: bytes) -> str:
  """Return the spelling of a token in vocab.json and merges.txt."""
  return "".join(map(LETTERS.__getitem__, token))


def unicode_to_bytes(token: str) -> bytes:
  """Return the bytes of a token that is spelled as in vocab.json.

  Raises ValueError if a character does not represent a byte.
  """
  if invalid := [c for c in token if c not in BYTE_OF_LETTER]:
    raise ValueError(
      f"{invalid[0]!r} in the token {token!r:.80} does not represent a byte;"
      " a byte-level vocabulary uses GPT-2's 256 characters"
    )
  return bytes(map(BYTE_OF_LETTER.__getitem__, token))


def to_letters(text: str) -> str:
  """Return the letters of a text's UTF-8 bytes."""
  return text.encode().decode("latin-1").translate(TO_LETTERS)


def from_letters(token: str) -> bytes:
  """Return the bytes of a token in letters. A token with any other character becomes UTF-8."""
  if all(map(BYTE_OF_LETTER.__contains__, token)):
    return token.translate(FROM_LETTERS).encode("latin-1")
  return token.encode()
