"""GPT-2's 256 printable characters that represent bytes (Radford et al. 2019, sec. 2.2)."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

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
# The same tables as arrays. -1 stands for a character that does not represent a byte.
LETTER_CODES = np.array([ord(LETTERS[b]) for b in range(256)], dtype="<u2")
BYTE_OF_CODE = np.full(max(FROM_LETTERS) + 2, -1, dtype=np.int16)
BYTE_OF_CODE[list(FROM_LETTERS)] = list(FROM_LETTERS.values())


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


def all_to_unicode(tokens: Sequence[bytes]) -> list[str]:
  """Return the spelling of each token, ten times as fast as bytes_to_unicode."""
  codes = LETTER_CODES[np.frombuffer(b"".join(tokens), np.uint8)]
  return split_by_lengths(codes.tobytes().decode("utf-16-le"), map(len, tokens))


def all_to_bytes(spellings: Sequence[str]) -> list[bytes]:
  """Return the bytes of each token, several times as fast as unicode_to_bytes.

  Raises ValueError if a character does not represent a byte.
  """
  text = "".join(spellings).encode("utf-32-le", errors="surrogatepass")
  values = BYTE_OF_CODE[np.minimum(np.frombuffer(text, "<u4"), len(BYTE_OF_CODE) - 1)]
  if values.min(initial=0) < 0:
    return list(map(unicode_to_bytes, spellings))  # one of them raises the error
  return split_by_lengths(values.astype(np.uint8).tobytes(), map(len, spellings))


def split_by_lengths(sequence, lengths: Iterable[int]) -> list:
  """Return the consecutive parts of a text or of bytes that have these lengths."""
  ends = itertools.accumulate(lengths, initial=0)
  return [sequence[start:end] for start, end in itertools.pairwise(ends)]


def to_letters(text: str) -> str:
  """Return the letters of a text's UTF-8 bytes."""
  return text.encode().decode("latin-1").translate(TO_LETTERS)


def from_letters(token: str) -> bytes:
  """Return the bytes of a token in letters. A token with any other character becomes UTF-8."""
  if all(map(BYTE_OF_LETTER.__contains__, token)):
    return token.translate(FROM_LETTERS).encode("latin-1")
  return token.encode()
