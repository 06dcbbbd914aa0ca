"""WordPiece, the tokenizer of BERT (Devlin et al. 2019, sec. 3).

Words are split at white space and punctuation. Each word becomes the longest tokens of the
vocabulary, from left to right.
"""

import functools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tinyformer.files import MAX_VOCABULARY_BYTES, read_text
from tinyformer.tokenization import normalizers
from tinyformer.tokenization.base import Tokenizer, TokenizerFiles, file_errors
from tinyformer.tokenization.normalizers import NormalizedString

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_CHARACTERS_PER_WORD = 100


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
    strip_accents = lowercase if strip_accents is None else strip_accents
    self.normalize = normalizers.bert(lowercase, strip_accents, handle_chinese_chars)
    self.unk_token = unk_token
    if specials is None:
      specials = {token: vocab[token] for token in BERT_SPECIALS if token in vocab}
    tokens = {
      i: (token[2:] if token.startswith("##") else f" {token}").encode()
      for token, i in vocab.items()
    }
    super().__init__(tokens, specials, strip_leading_space=True)

  @classmethod
  def load(cls, folder: str | Path) -> "WordPiece":
    """Load the tokenizer from vocab.txt and tokenizer_config.json.

    vocab.txt contains one token per line. Raises FileNotFoundError if there is no such file, and
    ValueError if a file is damaged.
    """
    files = TokenizerFiles(folder)
    path = files.folder / "vocab.txt"
    with file_errors(path):
      lines = read_text(path, MAX_VOCABULARY_BYTES).split("\n")
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
      tokenizer.load_added_tokens(files)
    return tokenizer

  def continues_word(self, i: int, text: str, start: int, end: int) -> bool:
    """Return whether the token i, which represents text[start:end], continues a word.

    As in transformers' TokenClassificationPipeline: if the token is longer than the text.
    """
    token = self.tokens[i].decode()
    length = len(token) - 1 if token.startswith(" ") else len("##" + token)
    return i != self.vocab[self.unk_token] and length != end - start

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
    for word in self.split_words(self.normalize(text)):
      end = 0
      for token, length in self.tokenize_word(word.text):
        start = end
        end += length
        yield self.vocab[token], word.starts[start], word.ends[end - 1]
