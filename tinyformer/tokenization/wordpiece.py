"""WordPiece, the tokenizer of BERT (Devlin et al. 2019, sec. 3).

Words are split at white space and punctuation. Each word becomes the longest tokens of the
vocabulary, from left to right.
"""

import functools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tinyformer.tokenization.base import Tokenizer, TokenizerFiles, file_errors
from tinyformer.tokenization.normalizers import NormalizedString

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_CHARACTERS_PER_WORD = 100
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


@functools.cache
def is_punctuation(character: str) -> bool:
  """Return whether a character is punctuation, including ASCII that Unicode calls symbols."""
  return unicodedata.category(character)[0] == "P" or character in "$+<=>^`|~"


class WordPiece(Tokenizer):
  """A tokenizer whose tokens begin with ## if they continue a word.

  lowercase: convert the text to lowercase.
  strip_accents: remove accents. The default, None, removes them if `lowercase` is true.
  handle_chinese_chars: treat each Chinese character as a word.
  unk_token: the token that represents an unknown word.
  Raises ValueError if the vocabulary does not contain `unk_token`.
  """

  def __init__(
    self,
    vocab: dict[str, int],
    lowercase: bool = True,
    *,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
    unk_token: str = "[UNK]",
    specials: dict[str, int] | None = None,
  ):
    if unk_token not in vocab:
      raise ValueError(f"the vocabulary does not contain the unknown token {unk_token}")
    self.vocab = vocab
    self.lowercase = lowercase
    self.strip_accents = lowercase if strip_accents is None else strip_accents
    self.handle_chinese_chars = handle_chinese_chars
    self.unk_token = unk_token
    if specials is None:
      specials = {token: vocab[token] for token in BERT_SPECIALS if token in vocab}
    tokens = {
      i: (token[2:] if token.startswith("##") else f" {token}").encode()
      for token, i in vocab.items()
    }
    super().__init__(tokens, specials, strip_leading_space=True)
    self.normalize_cached = functools.cache(self.normalize)

  @classmethod
  def load(cls, folder: str | Path) -> "WordPiece":
    """Load the tokenizer from tokenizer.json, or from vocab.txt and tokenizer_config.json.

    vocab.txt contains one token per line. Raises FileNotFoundError if there are no such files, and
    ValueError if they are damaged.
    """
    files = TokenizerFiles(folder)
    if files.tokenizer_json:
      return cls.from_tokenizer_json(files)
    path = files.folder / "vocab.txt"
    with file_errors(path):
      lines = path.read_text(encoding="utf-8").split("\n")
      if lines[-1] == "":
        lines.pop()
      vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
      config = files.config
      tokenizer = cls(
        vocab,
        config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        unk_token=config.get("unk_token", "[UNK]"),
        specials=files.special_ids(vocab, BERT_SPECIALS),
      )
      tokenizer.load_special_tokens(files, "[CLS] A [SEP] B [SEP]", 1)
    return tokenizer

  @classmethod
  def from_tokenizer_json(cls, files: TokenizerFiles) -> "WordPiece":
    """Load the tokenizer from tokenizer.json. Raises ValueError if a setting is not supported."""
    with file_errors(files.folder / "tokenizer.json"):
      model = files.tokenizer_json["model"]
      normalizer = files.tokenizer_json["normalizer"]
      prefix = model.get("continuing_subword_prefix", "##")
      if (
        normalizer["type"] != "BertNormalizer"
        or prefix != "##"
        or files.tokenizer_json["pre_tokenizer"]["type"] != "BertPreTokenizer"
      ):
        raise ValueError(
          "WordPiece requires a BertNormalizer, a BertPreTokenizer and the prefix ##, not"
          f" {normalizer['type']}, {files.tokenizer_json.get('pre_tokenizer')} and {prefix}"
        )
      tokenizer = cls(
        model["vocab"],
        normalizer["lowercase"],
        strip_accents=normalizer["strip_accents"],
        handle_chinese_chars=normalizer["handle_chinese_chars"],
        unk_token=model["unk_token"],
        specials=files.special_ids(model["vocab"], BERT_SPECIALS),
      )
      tokenizer.load_special_tokens(files)
    return tokenizer

  def normalize(self, character: str) -> str:
    """Return the normalized form of a character.

    A control character becomes the empty string. A Chinese character is surrounded by spaces.
    """
    category = unicodedata.category(character)
    if character in "\t\n\r" or (character.isspace() and category[0] == "Z"):
      return " "
    if character in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
      return ""
    normal = character
    if self.handle_chinese_chars and any(a <= ord(character) <= b for a, b in CJK_RANGES):
      normal = f" {character} "
    if self.strip_accents:
      decomposed = unicodedata.normalize("NFD", normal)
      normal = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    return "".join(c.lower() for c in normal) if self.lowercase else normal

  def split_words(self, text: NormalizedString) -> Iterator[NormalizedString]:
    """Yield the words and the punctuation characters of a normalized text."""
    start = 0
    for i, character in enumerate(text.text):
      punctuation = is_punctuation(character)
      if character.isspace() or punctuation:
        if start < i:
          yield text.slice(start, i)
        if punctuation:
          yield text.slice(i, i + 1)
        start = i + 1
    if start < len(text.text):
      yield text.slice(start)

  def tokenize_word(self, word: str) -> list[tuple[str, int]]:
    """Return the tokens of a word, each with its number of characters.

    A word becomes one unknown token if it has over 100 characters, or if at some position no token
    of the vocabulary matches.
    """
    unknown = [(self.unk_token, len(word))]
    if len(word) > MAX_CHARACTERS_PER_WORD:
      return unknown
    tokens: list[tuple[str, int]] = []
    start = 0
    while start < len(word):
      prefix = "##" if start else ""
      for end in range(len(word), start, -1):
        token = prefix + word[start:end]
        if token in self.vocab:
          break
      else:
        return unknown
      tokens.append((token, end - start))
      start = end
    return tokens

  def tokenize(self, text: NormalizedString) -> Iterator[tuple[int, int, int]]:
    """Yield (ID, start, end) of each token of a text without special tokens."""
    normalized = text.replace_spans(
      (i, i + 1, new)
      for i, character in enumerate(text.text)
      if (new := self.normalize_cached(character)) != character
    )
    for word in self.split_words(normalized):
      end = 0
      for token, length in self.tokenize_word(word.text):
        start = end
        end += length
        yield self.vocab[token], word.starts[start], word.ends[end - 1]
