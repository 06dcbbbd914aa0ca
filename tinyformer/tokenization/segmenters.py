"""The models of tokenizer.json: BPE, Unigram, WordPiece and WordLevel split words into tokens."""

import functools
import math
import re
from collections.abc import Callable, Sequence

from tinyformer.tokenization.sentencepiece import (
  BYTE_TOKENS,
  CACHE_SIZE,
  MAX_CACHED_LENGTH,
  UNKNOWN_PENALTY,
  long_tokens,
  merge_spans,
  prefix_table,
  viterbi,
)
from tinyformer.tokenization.settings import Settings, is_id, is_unicode

BYTES = frozenset(BYTE_TOKENS)

# (ID, start, end) of each token of a word.
Spans = Sequence[tuple[int, int, int]]


class Segmenter:
  """The base class: splits a word into tokens of a vocabulary. A subclass implements `spans`.

  vocab: the ID of each token.
  hidden: tokens that no text becomes, because they are special.
  unk_token: the token of unknown text, or None.
  Raises ValueError if the vocabulary is invalid.
  """

  def __init__(self, vocab: dict[str, int], hidden: set[str], unk_token: str | None):
    self.vocab = vocab
    self.ids = {token: i for token, i in vocab.items() if token not in hidden}
    self.unk_token = unk_token
    if unk_token is not None and unk_token not in vocab:
      raise ValueError(f"model: the unknown token {unk_token!r:.80} is not in the vocabulary")
    self.unk_id = None if unk_token is None else vocab[unk_token]
    self.cached = functools.lru_cache(CACHE_SIZE)(lambda word: tuple(self.spans(word)))

  def __call__(self, word: str) -> Spans:
    """Return (ID, start, end) of each token of a word. Raises ValueError for unknown text."""
    return self.cached(word) if len(word) <= MAX_CACHED_LENGTH else self.spans(word)

  def spans(self, word: str) -> Spans:
    """Return (ID, start, end) of each token of a word that is not cached."""
    raise NotImplementedError

  def unknown(self, text: str) -> int:
    """Return the ID of the unknown token. Raises ValueError if there is none."""
    if self.unk_id is None:
      raise ValueError(
        f"the vocabulary has no token for {text!r:.40} and no unknown token;"
        " remove the text, or use another model"
      )
    return self.unk_id

  def byte_ids(self, text: str) -> list[int] | None:
    """Return the IDs of byte tokens such as <0x0A>, or None if the vocabulary lacks one of them."""
    ids = [self.vocab.get(BYTE_TOKENS[b]) for b in text.encode()]
    return None if None in ids else [i for i in ids if i is not None]


class BPE(Segmenter):
  """Byte-pair encoding (Sennrich et al. 2016, sec. 3.2).

  merges: the rank of each pair of tokens.
  end_of_word_suffix: added to the last character of a word before merging.
  byte_fallback: an unknown character becomes byte tokens.
  fuse_unk: adjacent unknown characters are one token.
  ignore_merges: a word that is a token is not split, even if no merges produce it.
  """

  def __init__(self, config: Settings, hidden: set[str]):
    vocab = read_vocab(config)
    super().__init__(vocab, hidden, config.get("unk_token", str, "") or None)
    for name in ("dropout", "continuing_subword_prefix"):
      if config.config.get(name):
        raise config.refuse(f"with {name} {config.config[name]!r:.40} is not supported")
    self.merges = read_merges(config, vocab)
    self.end_of_word_suffix = config.get("end_of_word_suffix", str, "")
    self.byte_fallback = config.get("byte_fallback", bool, False)
    self.fuse_unk = config.get("fuse_unk", bool, False)
    self.ignore_merges = config.get("ignore_merges", bool, False)
    # A text without spaces is segmented word by word if no merge crosses the start of a word.
    crosses_words = any(re.search("[^▁]▁", a + b) for a, b in self.merges if "▁" in b)
    self.words = re.compile("▁*[^▁]+|▁+")
    is_plain = not self.end_of_word_suffix and not self.ignore_merges
    self.has_words = is_plain and not crosses_words and "▁" in self.ids

  def __call__(self, word: str) -> Spans:
    if not self.has_words or "▁" not in word:
      return super().__call__(word)
    return [
      (i, match.start() + start, match.start() + end)
      for match in self.words.finditer(word)
      for i, start, end in super(BPE, self).__call__(match[0])
    ]

  def spans(self, word: str) -> Spans:
    if self.ignore_merges and word in self.ids:
      return [(self.ids[word], 0, len(word))]
    symbols: list[str] = []
    # The index of the character of each symbol. None is the symbol of an unknown character.
    positions: list[int] = []
    for n, character in enumerate(word):
      symbol = character if n < len(word) - 1 else character + self.end_of_word_suffix
      fallback = [BYTE_TOKENS[b] for b in symbol.encode()] if self.byte_fallback else []
      if symbol not in self.ids and fallback and all(map(self.vocab.__contains__, fallback)):
        symbols += fallback
        positions += [n] * len(fallback)
      else:
        symbols.append(symbol)
        positions.append(n)
    spans: list[tuple[int, int, int]] = []
    after_unknown = False
    for symbol, first, end in merge_spans(symbols, self.rank):
      start, stop = positions[first], positions[end - 1] + 1
      i = self.vocab.get(symbol) if first + 1 < end or symbol in BYTES else self.ids.get(symbol)
      if i is None and after_unknown and self.fuse_unk:
        spans[-1] = (spans[-1][0], spans[-1][1], stop)
      else:
        spans.append((self.unknown(word[start:stop]) if i is None else i, start, stop))
      after_unknown = i is None
    return spans

  def rank(self, a: str, b: str) -> float | None:
    """Return the rank of the merge of two tokens, or None."""
    return self.merges.get((a, b))


class Unigram(Segmenter):
  """A unigram language model (Kudo 2018, sec. 3.2).

  byte_fallback: unknown characters become byte tokens.
  """

  def __init__(self, config: Settings, hidden: set[str]):
    pieces = config.get("vocab", list)
    scores: dict[str, float] = {}
    for piece in pieces:
      if not isinstance(piece, list) or len(piece) != 2 or not isinstance(piece[0], str):
        raise ValueError(f"{config.title}: {piece!r:.80} must be a token and its score")
      if not isinstance(piece[1], float | int) or not math.isfinite(piece[1]):
        raise ValueError(f"{config.title}: the score of {piece[0]!r:.40} must be a finite number")
      scores[piece[0]] = float(piece[1])
    vocab = {token: i for i, (token, _) in enumerate(pieces)}
    check_vocab(config, vocab)
    unk_index = config.config.get("unk_id")
    if unk_index is not None and not 0 <= config.get("unk_id", int) < len(pieces):
      raise ValueError(
        f"{config.title}: unk_id {unk_index!r:.40} is not an index of the vocabulary"
      )
    super().__init__(vocab, hidden, None)
    self.unk_id = unk_index
    self.byte_fallback = config.get("byte_fallback", bool, False)
    self.unk_score = min(scores.values()) - UNKNOWN_PENALTY
    text_scores = {token: score for token, score in scores.items() if token and token in self.ids}
    self.table = prefix_table(text_scores, self.unk_score)
    self.long_tokens = long_tokens(text_scores)

  def spans(self, word: str) -> Spans:
    spans: list[tuple[int, int, int]] = []
    end = 0
    unknown_start: int | None = None
    for token in [*viterbi(word, self.table, self.unk_score, float, self.long_tokens), None]:
      start = end
      if token is not None and self.ids.get(token, self.unk_id) == self.unk_id:
        unknown_start = start if unknown_start is None else unknown_start
        end += len(token)
        continue
      if unknown_start is not None:
        spans += self.unknown_spans(word, unknown_start, start)
        unknown_start = None
      if token is not None:
        end += len(token)
        spans.append((self.ids[token], start, end))
    return spans

  def unknown_spans(self, word: str, start: int, end: int) -> Spans:
    """Return the tokens of unknown characters: byte tokens, or one unknown token."""
    if word[start:end] in self.ids:
      return [(self.ids[word[start:end]], start, end)]
    if self.byte_fallback:
      ids = [(self.byte_ids(word[n]), n) for n in range(start, end)]
      if all(character_ids is not None for character_ids, _ in ids):
        return [(i, n, n + 1) for character_ids, n in ids for i in character_ids or ()]
    return [(self.unknown(word[start:end]), start, end)]


class WordPiece(Segmenter):
  """WordPiece: the longest tokens from left to right (Devlin et al. 2019, sec. 3).

  prefix: the beginning of each token that continues a word.
  max_length: a longer word is one unknown token, as is a word that no tokens form.
  """

  def __init__(self, config: Settings, hidden: set[str]):
    vocab = read_vocab(config)
    super().__init__(vocab, hidden, config.get("unk_token", str, "[UNK]"))
    self.prefix = config.get("continuing_subword_prefix", str, "##")
    self.max_length = config.get("max_input_chars_per_word", int, 100)
    self.longest = max(map(len, vocab))

  def spans(self, word: str) -> Spans:
    spans: list[tuple[int, int, int]] = []
    start = 0
    while start < len(word) <= self.max_length:
      prefix = self.prefix if start else ""
      for end in range(min(len(word), start + self.longest), start, -1):
        if prefix + word[start:end] in self.ids:
          break
      else:
        break
      spans.append((self.ids[prefix + word[start:end]], start, end))
      start = end
    return spans if start == len(word) else [(self.unknown(word), 0, len(word))]


class WordLevel(Segmenter):
  """A vocabulary of whole words."""

  def __init__(self, config: Settings, hidden: set[str]):
    vocab = read_vocab(config)
    unk_token = config.get("unk_token", str, "<unk>")
    super().__init__(vocab, hidden, unk_token if unk_token in vocab else None)

  def spans(self, word: str) -> Spans:
    return [(self.ids[word] if word in self.ids else self.unknown(word), 0, len(word))]


def read_ids(config: Settings) -> dict[str, int]:
  """Return the ID of each token of a model of any kind. It is not checked yet."""
  vocab = config.config.get("vocab")
  if isinstance(vocab, dict):
    return vocab
  pieces = config.get("vocab", list)
  return {piece[0]: i for i, piece in enumerate(pieces) if is_piece(piece)}


def is_piece(piece: object) -> bool:
  """Return whether a piece of a Unigram vocabulary is a list that begins with a string."""
  return isinstance(piece, list) and len(piece) > 0 and isinstance(piece[0], str)


def check_vocab(config: Settings, vocab: dict[str, int]) -> None:
  """Raise ValueError if the vocabulary is empty, or has IDs or tokens that are invalid."""
  if not vocab:
    raise ValueError(f"{config.title}: the vocabulary is empty")
  if not all(map(is_id, vocab.values())):
    raise ValueError(f"{config.title}: the vocabulary must map each token to an integer ID")
  if len(set(vocab.values())) < len(vocab):
    raise ValueError(f"{config.title}: two tokens of the vocabulary have the same ID")
  if not is_unicode("".join(vocab)):
    raise ValueError(f"{config.title}: a token of the vocabulary is not valid Unicode")


def read_vocab(config: Settings) -> dict[str, int]:
  """Return the vocabulary of a model, the ID of each token."""
  vocab = config.get("vocab", dict)
  check_vocab(config, vocab)
  return vocab


def read_merges(config: Settings, vocab: dict[str, int]) -> dict[tuple[str, str], float]:
  """Return the rank of each merge. A merge is a pair, or a string with a space between two tokens.

  Raises ValueError if a token is not in the vocabulary.
  """
  ranks: dict[tuple[str, str], float] = {}
  for rank, merge in enumerate(config.get("merges", list)):
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2:
      raise ValueError(f"{config.title}: the merge {merge!r:.80} must be two tokens")
    a, b = pair
    if not isinstance(a, str) or not isinstance(b, str):
      raise ValueError(f"{config.title}: the merge {merge!r:.80} must be two tokens")
    if a not in vocab or b not in vocab or a + b not in vocab:
      missing = next(token for token in (a, b, a + b) if token not in vocab)
      raise ValueError(
        f"{config.title}: the merge {merge!r:.80} needs the token {missing!r:.80}, which is not in"
        " the vocabulary"
      )
    ranks[a, b] = float(rank)
  return ranks


MODELS: dict[str, Callable[[Settings, set[str]], Segmenter]] = {
  "BPE": BPE,
  "Unigram": Unigram,
  "WordPiece": WordPiece,
  "WordLevel": WordLevel,
}


def from_json(config: Settings, hidden: set[str]) -> Segmenter:
  """Return the segmenter that the "model" of tokenizer.json describes.

  hidden: the special tokens, which no text becomes. Old files lack the type of the model.
  Raises ValueError if the model is not supported or invalid.
  """
  keys = config.config
  if "type" in keys:
    kind = config.kind
  elif "merges" in keys:
    kind = "BPE"
  else:
    kind = "Unigram" if isinstance(keys.get("vocab"), list) else "WordPiece"
  if kind not in MODELS:
    raise config.refuse()
  return MODELS[kind](config, hidden)
