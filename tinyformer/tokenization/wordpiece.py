"""WordPiece as BERT has it: words, cut at blanks and punctuation, as the longest pieces of a vocabulary from the left (Devlin et al. 2019, sec. 3)."""

import functools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tinyformer.tokenization.base import Files, Tokenizer, file_errors
from tinyformer.tokenization.normalizers import NormalizedString

CHINESE = (
  (0x4E00, 0x9FFF),
  (0x3400, 0x4DBF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F),
  (0x2B920, 0x2CEAF),
  (0xF900, 0xFAFF),
  (0x2F800, 0x2FA1F),
)


@functools.cache
def mark(c: str) -> bool:
  """Whether a character is punctuation, also those of ASCII that Unicode calls symbols."""
  return unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~"


class WordPiece(Tokenizer):
  """Text to token ids and back, with a vocabulary whose pieces within a word begin with ##.

  lower: small letters alone.  accents: whether they stay; None: unless lower.  chinese: each Chinese character is a word.
  """

  def __init__(
    self,
    vocab: dict[str, int],
    lower: bool = True,
    accents: bool | None = None,
    chinese: bool = True,
    unknown: str = "[UNK]",
    specials: dict[str, int] | None = None,
  ):
    self.vocab, self.lower, self.accents, self.chinese, self.unknown = (
      vocab,
      lower,
      not lower if accents is None else accents,
      chinese,
      unknown,
    )
    if unknown not in vocab:
      raise ValueError(f"the vocabulary has no {unknown}")
    tokens = {
      i: (piece[2:] if piece.startswith("##") else f" {piece}").encode()
      for piece, i in vocab.items()
    }
    super().__init__(
      tokens,
      {s: vocab[s] for s in KNOWN if s in vocab} if specials is None else specials,
      strip_leading_space=True,
    )
    self.letter = functools.cache(self.normal)

  @classmethod
  def load(cls, folder: str | Path) -> "WordPiece":
    """From tokenizer.json, or else vocab.txt, a piece a line, and what tokenizer_config.json says of it. Raises FileNotFoundError, or ValueError for damaged files."""
    files = Files(folder)
    if files.full:
      return cls.from_full(files)
    with file_errors(path := files.folder / "vocab.txt"):
      lines = path.read_text(encoding="utf-8").split("\n")
      vocab = {
        line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)
      }
      config, strip = files.config, files.config.get("strip_accents")
      self = cls(
        vocab,
        config.get("do_lower_case", True),
        None if strip is None else not strip,
        config.get("tokenize_chinese_chars", True),
        config.get("unk_token", "[UNK]"),
        files.specials(vocab, KNOWN),
      )
      self.load_special_tokens(files, "[CLS] A [SEP] B [SEP]", 1)
    return self

  @classmethod
  def from_full(cls, files: Files) -> "WordPiece":
    """From tokenizer.json."""
    with file_errors(files.folder / "tokenizer.json"):
      model, normal = files.full["model"], files.full["normalizer"]
      if (
        normal["type"] != "BertNormalizer"
        or model.get("continuing_subword_prefix", "##") != "##"
        or files.full["pre_tokenizer"]["type"] != "BertPreTokenizer"
      ):
        raise ValueError("the text is not prepared as BERT's is")
      strip = normal["strip_accents"]
      self = cls(
        model["vocab"],
        normal["lowercase"],
        None if strip is None else not strip,
        normal["handle_chinese_chars"],
        model["unk_token"],
        files.specials(model["vocab"], KNOWN),
      )
      self.load_special_tokens(files)
    return self

  def normal(self, c: str) -> str:
    """What becomes of a character: none of a control character; without accents and small, as the vocabulary wants it; blanks around it if it is Chinese."""
    if c in "\t\n\r" or (c.isspace() and unicodedata.category(c)[0] == "Z"):
      return " "
    if c in "\0\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs"):
      return ""
    if self.chinese and any(a <= ord(c) <= b for a, b in CHINESE):
      c = f" {c} "
    if not self.accents:
      c = "".join(d for d in unicodedata.normalize("NFD", c) if unicodedata.category(d) != "Mn")
    return "".join(d.lower() for d in c) if self.lower else c

  def words(self, s: NormalizedString) -> Iterator[NormalizedString]:
    """The words of a text that is `normal`, and its punctuation marks, each by itself."""
    begin = 0
    for n, c in enumerate(s.text):
      if c.isspace() or mark(c):
        if begin < n:
          yield s.part(begin, n)
        if mark(c):
          yield s.part(n, n + 1)
        begin = n + 1
    if begin < len(s.text):
      yield s.part(begin)

  def pieces(self, word: str) -> list[tuple[str, int]]:
    """A word as the longest pieces from its left, each with the number of its characters; unknown as a whole if there is none somewhere, or if it has over 100."""
    pieces: list[tuple[str, int]] = []
    begin = 0
    if len(word) > 100:
      return [(self.unknown, len(word))]
    while begin < len(word):
      for end in range(len(word), begin, -1):
        piece = ("##" if begin else "") + word[begin:end]
        if piece in self.vocab:
          break
      else:
        return [(self.unknown, len(word))]
      pieces.append((piece, end - begin))
      begin = end
    return pieces

  def tokenize(self, stretch: NormalizedString) -> Iterator[tuple[int, int, int]]:
    normal = stretch.rewrite(
      (n, n + 1, new) for n, c in enumerate(stretch.text) if (new := self.letter(c)) != c
    )
    for word in self.words(normal):
      done = 0
      for piece, count in self.pieces(word.text):
        begin, done = done, done + count
        yield self.vocab[piece], word.starts[begin], word.ends[done - 1]


KNOWN = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
