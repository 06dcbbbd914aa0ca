"""Decoders: convert tokens to text, as the "decoder" of tokenizer.json describes.

A byte that is no complete UTF-8 character becomes a lone surrogate (Python's `surrogateescape`),
so that the bytes of a character may be in several tokens.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tinyformer.tokenization.byte_letters import from_letters
from tinyformer.tokenization.regular_expressions import Pattern
from tinyformer.tokenization.settings import Settings

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
# What the WordPiece decoder removes before punctuation and contractions.
CLEANUP = (
  (" .", "."),
  (" ?", "?"),
  (" !", "!"),
  (" ,", ","),
  (" ' ", "'"),
  (" n't", "n't"),
  (" 'm", "'m"),
  (" do not", " don't"),
  (" 's", "'s"),
  (" 've", "'ve"),
  (" 're", "'re"),
)


class Decoder(NamedTuple):
  """One step of decoding.

  each: converts a token that is neither the first nor the last of a text.
  whole: converts all tokens of a text.
  """

  each: Callable[[str], str]
  whole: Callable[[list[str]], list[str]]


def every(change: Callable[[str], str]) -> Decoder:
  """Return a decoder that treats all tokens alike."""
  return Decoder(change, lambda tokens: [change(token) for token in tokens])


def decode_bytes(data: bytes) -> str:
  """Return the text of bytes. Each byte that is not UTF-8 becomes a lone surrogate."""
  return data.decode("utf-8", "surrogateescape")


def encode_text(text: str) -> bytes:
  """Return the bytes from which `decode_bytes` has decoded a text."""
  return text.encode("utf-8", "surrogateescape")


def join(tokens: Sequence[str]) -> list[str]:
  """Return one token, the concatenation of all tokens."""
  return [decode_bytes(encode_text("".join(tokens)))]


def spaces() -> Decoder:
  """Return a decoder that joins all tokens by spaces."""
  return Decoder(lambda token: f" {token}", lambda tokens: [" ".join(tokens)])


def byte_level() -> Decoder:
  """Return the decoder of byte-level BPE, whose tokens consist of letters that represent bytes."""
  return Decoder(
    lambda token: decode_bytes(from_letters(token)),
    lambda tokens: [decode_bytes(b"".join(map(from_letters, tokens)))],
  )


def byte_fallback(token: str) -> str:
  """Return the byte of a token such as <0x0A>, and any other token unchanged."""
  match = BYTE_TOKEN.fullmatch(token)
  return decode_bytes(bytes.fromhex(match[1])) if match else token


def word_piece(prefix: str, cleanup: bool) -> Decoder:
  """Return the decoder of WordPiece: a space before each token without prefix."""

  def clean(token: str) -> str:
    for old, new in CLEANUP if cleanup else ():
      token = token.replace(old, new)
    return token

  def each(token: str) -> str:
    return clean(token.removeprefix(prefix) if token.startswith(prefix) else f" {token}")

  return Decoder(each, lambda tokens: [*map(clean, tokens[:1]), *map(each, tokens[1:])])


def metaspace(replacement: str, keeps_first: bool) -> Decoder:
  """Return a decoder that replaces ▁ by a space, and removes it from the first token."""

  def each(token: str) -> str:
    return token.replace(replacement, " ")

  def whole(tokens: list[str]) -> list[str]:
    first = [token.replace(replacement, " " if keeps_first else "") for token in tokens[:1]]
    return [*first, *map(each, tokens[1:])]

  return Decoder(each, whole)


def bpe(suffix: str) -> Decoder:
  """Return a decoder that replaces the suffix of words by a space, except at the end."""

  def each(token: str) -> str:
    return token.replace(suffix, " ")

  return Decoder(
    each,
    lambda tokens: [*map(each, tokens[:-1]), *(t.replace(suffix, "") for t in tokens[-1:])],
  )


def strip(content: str, start: int, stop: int, is_joined: bool) -> Decoder:
  """Return a decoder that removes up to `start` and `stop` characters at the ends of each token.

  is_joined: the tokens are joined to one, so that only the ends of the text change.
  """
  at_start = re.compile(f"{re.escape(content)}{{0,{start}}}")
  at_end = re.compile(f"{re.escape(content)}{{0,{stop}}}")

  def change(token: str) -> str:
    found = at_start.match(token)
    token = token[found.end() :] if found else token
    found = at_end.match(token[::-1])
    return token[: len(token) - found.end()] if found else token

  return Decoder(
    (lambda token: token) if is_joined else change, lambda tokens: list(map(change, tokens))
  )


def from_json(config: Settings, is_joined: bool = False) -> list[Decoder]:
  """Return the decoders that the "decoder" of tokenizer.json describes.

  is_joined: an earlier step joins all tokens to one.
  Raises ValueError if a step is not supported or a setting is missing.
  """
  kind = config.kind
  if kind == "Sequence":
    steps: list[Decoder] = []
    for part in config.steps("decoders"):
      steps += from_json(part, is_joined)
      is_joined = is_joined or part.kind in ("ByteLevel", "Fuse")
    return steps
  if kind == "ByteLevel":
    return [byte_level()]
  if kind == "ByteFallback":
    return [every(byte_fallback)]
  if kind == "Fuse":
    return [Decoder(lambda token: token, join)]
  if kind == "WordPiece":
    return [word_piece(config.get("prefix", str, "##"), config.get("cleanup", bool, True))]
  if kind == "Metaspace":
    default = "always" if config.get("add_prefix_space", bool, True) else "never"
    keeps_first = config.get("prepend_scheme", str, default) == "never"
    return [metaspace(config.get("replacement", str, "▁"), keeps_first)]
  if kind == "BPEDecoder":
    return [bpe(config.get("suffix", str, "</w>"))]
  if kind == "Strip":
    start, stop = config.get("start", int, 0), config.get("stop", int, 0)
    if not 0 <= start <= 1000 or not 0 <= stop <= 1000 or len(config.get("content", str)) != 1:
      raise config.refuse("needs one character, and start and stop between 0 and 1000")
    return [strip(config.get("content", str), start, stop, is_joined)]
  if kind == "Replace":
    pattern = Settings(f"{config.title}: 'pattern'", config.get("pattern", dict))
    new = config.get("content", str)
    if "String" in pattern.config:
      old = pattern.get("String", str)
      return [every(lambda token: token.replace(old, new))]
    compiled = Pattern(pattern.get("Regex", str))
    return [every(lambda token: compiled.replace(token, new))]
  raise config.refuse()
