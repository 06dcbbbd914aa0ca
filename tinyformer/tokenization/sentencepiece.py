"""SentencePiece (Kudo and Richardson 2018): BPE or a unigram model, with ▁ instead of spaces."""

import functools
import heapq
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinyformer.files import MAX_VOCABULARY_BYTES, printable, read_bytes
from tinyformer.tokenization import normalizers, pre_tokenizers
from tinyformer.tokenization.base import Tokenizer, TokenizerFiles, file_errors, read_vocab_json
from tinyformer.tokenization.normalizers import NormalizedString, Normalizer
from tinyformer.tokenization.pre_tokenizers import PreTokenizer

BYTE_TOKENS = [f"<0x{b:02X}>" for b in range(256)]
# The score of an unknown character is the lowest score of all tokens minus this penalty.
UNKNOWN_PENALTY = 10
# The number of words, or of texts, whose segmentation is cached, and their maximum length.
CACHE_SIZE = 1 << 16
MAX_CACHED_LENGTH = 256
# Unigram tokens of up to this length are found in one table that also contains all their prefixes.
MAX_TABLE_LENGTH = 64

# Splits a prepared text into tokens.
Segmenter = Callable[[str], list[str]]


def merge_spans(
  symbols: list[str], rank: Callable[[str, str], float | None]
) -> list[tuple[str, int, int]]:
  """Merge adjacent symbols until no pair has a rank, and return the remaining symbols.

  Each is returned as (symbol, start, end): the concatenation of symbols[start:end].
  Each step merges the pair with the lowest rank, or the leftmost of several. The list is modified.
  A heap makes this O(n log n). Source: Sennrich et al. 2016, sec. 3.2.
  """
  n = len(symbols)
  previous = list(range(-1, n - 1))
  following = list(range(1, n + 1))
  heap: list[tuple[float, int, str, str]] = []

  def push(left: int) -> None:
    if left >= 0 and following[left] < n:
      a = symbols[left]
      b = symbols[following[left]]
      pair_rank = rank(a, b)
      if pair_rank is not None:
        heapq.heappush(heap, (pair_rank, left, a, b))

  for i in range(n):
    push(i)
  while heap:
    _, left, a, b = heapq.heappop(heap)
    right = following[left]
    if symbols[left] != a or right == n or symbols[right] != b:
      # One of the two symbols has been merged with another symbol.
      continue
    symbols[left] = a + b
    symbols[right] = ""
    following[left] = following[right]
    if following[right] < n:
      previous[following[right]] = left
    push(previous[left])
    push(left)
  return [(symbol, i, following[i]) for i, symbol in enumerate(symbols) if symbol]


def apply_merges(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
  """Return the symbols that `merge_spans` returns."""
  return [symbol for symbol, _, _ in merge_spans(symbols, rank)]


def bpe_segmenter(
  rank: Callable[[str, str], float | None], vocab: Iterable[str], symbols: Iterable[str] = ()
) -> Segmenter:
  """Return a function that splits a text into tokens by BPE.

  Words are segmented separately if no token contains a ▁ after another character.
  symbols: tokens of several characters that are never split.
  """
  crosses_words = any(re.search("[^▁]▁", token) for token in vocab)
  words = re.compile(".+" if crosses_words else "▁*[^▁]+|▁+", re.DOTALL)
  longest_first = sorted(symbols, key=len, reverse=True)
  initial_symbols = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

  @functools.lru_cache(CACHE_SIZE)
  def segment_cached(word: str) -> list[str]:
    return apply_merges(initial_symbols.findall(word), rank)

  def segment_word(word: str) -> list[str]:
    if len(word) > MAX_CACHED_LENGTH:
      return apply_merges(initial_symbols.findall(word), rank)
    return segment_cached(word)

  return lambda text: [token for word in words.findall(text) for token in segment_word(word)]


def viterbi(
  text: str,
  scores: dict[str, float],
  unk_score: float,
  round_sum: Callable[[float], float] = float,
  long: dict[str, list[tuple[str, float]]] | None = None,
) -> list[str]:
  """Return the segmentation of a text with the highest sum of scores.

  If several segmentations have the same sum, the last token is as long as possible.
  scores: the score of each token, and -inf for each string that is only a prefix of tokens.
  unk_score: the score of a character that is not in `scores`.
  round_sum: rounds each partial sum.
  long: very long tokens that are not in `scores`, as `long_tokens` returns them.
  Source: Kudo 2018, sec. 3.2.
  """
  n = len(text)
  best = [0.0] + [-math.inf] * n
  best_start = [0] * (n + 1)
  for start in range(n):
    end = start + 1
    score: float | None = scores.get(text[start], unk_score)
    while score is not None:
      if (total := round_sum(best[start] + score)) > best[end]:
        best[end] = total
        best_start[end] = start
      end += 1
      score = scores.get(text[start:end]) if end <= n else None
    for token, long_score in long.get(text[start : start + MAX_TABLE_LENGTH], ()) if long else ():
      end = start + len(token)
      if text.startswith(token, start) and round_sum(best[start] + long_score) > best[end]:
        best[end] = round_sum(best[start] + long_score)
        best_start[end] = start
  tokens = []
  end = n
  while end:
    start = best_start[end]
    tokens.append(text[start:end])
    end = start
  return tokens[::-1]


def unigram_segmenter(
  scores: dict[str, float], unk_score: float, round_sum: Callable[[float], float] = float
) -> Segmenter:
  """Return a function that splits a text into tokens by the Viterbi algorithm."""
  table = prefix_table(scores, unk_score)
  long = long_tokens(scores)

  @functools.lru_cache(CACHE_SIZE)
  def segment_cached(text: str) -> list[str]:
    return viterbi(text, table, unk_score, round_sum, long)

  def segment(text: str) -> list[str]:
    if len(text) > MAX_CACHED_LENGTH:
      return viterbi(text, table, unk_score, round_sum, long)
    return segment_cached(text)

  return segment


def prefix_table(scores: dict[str, float], unk_score: float) -> dict[str, float]:
  """Return the scores of all tokens but very long ones, and -inf for the prefixes of all tokens.

  A prefix of one character has the score of an unknown character.
  """
  table = {
    token[:n]: unk_score if n == 1 else -math.inf
    for token in scores
    for n in range(1, min(len(token), MAX_TABLE_LENGTH + 1))
  }
  return table | {token: s for token, s in scores.items() if len(token) <= MAX_TABLE_LENGTH}


def long_tokens(scores: dict[str, float]) -> dict[str, list[tuple[str, float]]]:
  """Return the very long tokens and their scores by their first MAX_TABLE_LENGTH characters.

  Their prefixes are not listed, which would need memory quadratic in the length.
  """
  table: dict[str, list[tuple[str, float]]] = {}
  for token, score in scores.items():
    if len(token) > MAX_TABLE_LENGTH:
      table.setdefault(token[:MAX_TABLE_LENGTH], []).append((token, score))
  return table


class SentencePiece(Tokenizer):
  """A tokenizer that normalizes a text and splits the result into tokens by BPE or Viterbi.

  vocab: the ID of each token.
  prepare: normalizes and pre-tokenizes a text.
  segment: splits a prepared text into tokens.
  unk_id: the ID of the unknown token, or None. Adjacent unknown tokens are merged.
  byte_fallback: represent a string that is not in the vocabulary by byte tokens such as <0x0A>.
  """

  def __init__(
    self,
    vocab: dict[str, int],
    prepare: PreTokenizer,
    segment: Segmenter,
    unk_id: int | None,
    specials: dict[str, int],
    byte_fallback: bool = False,
  ):
    self.vocab = vocab
    self.prepare = prepare
    self.segment = segment
    self.unk_id = unk_id
    has_bytes = byte_fallback and all(token in vocab for token in BYTE_TOKENS)
    self.byte_ids = [vocab[token] for token in BYTE_TOKENS] if has_bytes else []
    # The tokens that segmentation may produce.
    byte_ids = set(self.byte_ids)
    self.text_ids = {
      token: i for token, i in vocab.items() if token not in specials and i not in byte_ids
    }
    tokens = token_bytes(self.text_ids)
    tokens |= {i: bytes([b]) for b, i in enumerate(self.byte_ids)}
    super().__init__(tokens, specials, strip_leading_space=True)

  def tokenize(self, text: NormalizedString) -> list[tuple[int, int, int]]:
    """Return (ID, start, end) of each token of a text without special tokens."""
    spans: list[tuple[int, int, int]] = []
    for part in self.prepare(text):
      end = 0
      after_unknown = False
      for token in self.segment(part.text):
        start = end
        end += len(token)
        is_unknown = False
        if token in self.text_ids:
          spans.append((self.text_ids[token], part.starts[start], part.ends[end - 1]))
        elif self.byte_ids:
          spans += [
            (self.byte_ids[b], part.starts[start + n], part.ends[start + n])
            for n, character in enumerate(token)
            for b in character.encode()
          ]
        elif self.unk_id is not None:
          is_unknown = True
          first = spans.pop()[1] if after_unknown else part.starts[start]
          spans.append((self.unk_id, first, part.ends[end - 1]))
        after_unknown = is_unknown
    return spans

  @classmethod
  def load(cls, folder: str | Path) -> "SentencePiece":
    """Load the tokenizer from Marian's three files, or from a SentencePiece model.

    Raises FileNotFoundError if there are no such files, and ValueError if a file is damaged.
    """
    files = TokenizerFiles(folder)
    if (files.folder / "source.spm").exists():
      return cls.from_marian(files)
    for name in FAMILIES:
      if (files.folder / name).exists():
        return cls.from_model(files, files.folder / name)
    raise FileNotFoundError(
      f"{folder} has no tokenizer; add tokenizer.json, vocab.json and merges.txt, vocab.txt,"
      f" source.spm or {', '.join(FAMILIES)}"
    )

  @classmethod
  def from_model(cls, files: TokenizerFiles, path: Path) -> "SentencePiece":
    """Load the tokenizer from a SentencePiece model file, whose name determines the family."""
    model = read_model(path)
    family = FAMILIES[path.name]
    texts = [entry.text for entry in model.entries]
    vocab = {token: i for i, token in enumerate(family.to_vocab(texts))}
    with file_errors(path):
      control = [entry.text for entry in model.entries if entry.type in (UNKNOWN, CONTROL)]
      known = set(texts)
      added = [token for token in vocab if token not in known]
      tokenizer = cls(
        vocab,
        model.prepare(),
        model.segmenter(),
        vocab[texts[model.unk_index]],
        files.special_ids(vocab, control + added),
        model.byte_fallback,
      )
      tokenizer.strip_leading_space = model.add_dummy_prefix
      tokenizer.load_special_tokens(files, family.template, family.second)
      tokenizer.load_added_tokens(files)
    return tokenizer

  @classmethod
  def from_marian(cls, files: TokenizerFiles) -> "SentencePiece":
    """Load the tokenizer from source.spm and vocab.json.

    source.spm segments a text. vocab.json contains the IDs of the tokens of both languages.
    """
    path = files.folder / "source.spm"
    with file_errors(path):
      model = read_model(path)
      segment = model.segmenter()
      prepare = model.prepare()
    path = files.folder / "vocab.json"
    with file_errors(path):
      if files.config.get("separate_vocabs"):
        raise ValueError(
          "separate vocabularies for two languages are not supported;"
          " use a model with a joint vocabulary"
        )
      vocab = read_vocab_json(path)
      unk_id = vocab["<unk>"]
      specials = files.special_ids(vocab, ("<unk>", "</s>", "<pad>"))
      source_vocab = {entry.text: vocab.get(entry.text, unk_id) for entry in model.entries}
      tokenizer = cls(vocab | source_vocab, prepare, segment, unk_id, specials)
      tokenizer.strip_leading_space = model.add_dummy_prefix
      texts = token_bytes({t: i for t, i in vocab.items() if t not in specials})
      tokenizer.tokens = dict(tokenizer.tokens) | texts
      tokenizer.load_special_tokens(files, "A B </s>")
      tokenizer.load_added_tokens(files)
      # A token such as >>deu<< selects the target language.
      tokenizer.added_tokens = {
        token: i for token, i in vocab.items() if token.startswith(">>") and token.endswith("<<")
      }
    return tokenizer


def token_bytes(ids: dict[str, int]) -> dict[int, bytes]:
  """Return the bytes of each token ID, with spaces instead of ▁."""
  return {i: token.replace("▁", " ").encode() for token, i in ids.items()}


class Family(NamedTuple):
  """The conventions of a model family.

  to_vocab: converts the tokens of the SentencePiece model to the tokens with the IDs 0, 1, 2, ...
  template: the special tokens around two texts A and B.  second: the segment of B.
  """

  to_vocab: Callable[[list[str]], list[str]]
  template: str
  second: int = 0


def llama_vocab(tokens: list[str]) -> list[str]:
  """Return the tokens of LLaMA or Mistral."""
  return tokens


def t5_vocab(tokens: list[str]) -> list[str]:
  """Return the tokens of T5. The sentinel tokens have descending numbers."""
  return [*tokens, *(f"<extra_id_{n}>" for n in reversed(range(100)))]


def camembert_vocab(tokens: list[str]) -> list[str]:
  """Return the tokens of CamemBERT in the order of fairseq."""
  first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"]
  return [*first, *tokens[1:], "<mask>"]


def deberta_vocab(tokens: list[str]) -> list[str]:
  """Return the tokens of DeBERTa."""
  return tokens if "[MASK]" in tokens else [*tokens, "[MASK]"]


# The name of the SentencePiece model file determines the family.
FAMILIES = {
  "tokenizer.model": Family(llama_vocab, "<s> A <s> B"),
  "spiece.model": Family(t5_vocab, "A </s> B </s>"),
  "sentencepiece.bpe.model": Family(camembert_vocab, "<s> A </s> </s> B </s>"),
  "spm.model": Family(deberta_vocab, "[CLS] A [SEP] B [SEP]", second=1),
}


# The file format of SentencePiece is a protobuf message:
# https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto

# SentencePiece.Type
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
BYTE = 6

# TrainerSpec.ModelType
UNIGRAM = 1
BPE = 2

# Field numbers
MODEL_PIECES = 1
MODEL_TRAINER_SPEC = 2
MODEL_NORMALIZER_SPEC = 3
PIECE_TEXT = 1
PIECE_SCORE = 2
PIECE_TYPE = 3
TRAINER_MODEL_TYPE = 3
TRAINER_BYTE_FALLBACK = 35
NORMALIZER_CHARSMAP = 2
NORMALIZER_ADD_DUMMY_PREFIX = 3
NORMALIZER_REMOVE_EXTRA_WHITESPACES = 4


def read_protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
  """Yield (number, value) of each field of a protobuf message; a value is an int or bytes.

  Raises ValueError if the message is incomplete or invalid.
  Source: https://protobuf.dev/programming-guides/encoding
  """
  position = 0

  def read_varint() -> int:
    nonlocal position
    value = 0
    shift = 0
    while True:
      if position >= len(data) or shift > 63:
        raise ValueError(f"invalid protobuf message: number does not end at byte {position:,}")
      byte = data[position]
      value |= (byte & 127) << shift
      shift += 7
      position += 1
      if byte < 128:
        return value

  while position < len(data):
    number, wire_type = divmod(read_varint(), 8)
    if wire_type == 0:
      yield number, read_varint()
      continue
    if wire_type == 1:
      size = 8
    elif wire_type == 2:
      size = read_varint()
    elif wire_type == 5:
      size = 4
    else:
      raise ValueError(
        f"invalid protobuf message: wire type {wire_type} before byte {position:,} is unknown"
      )
    position += size
    if position > len(data):
      raise ValueError(
        f"incomplete protobuf message: expected {position:,} bytes, found {len(data):,}"
      )
    yield number, data[position - size : position]


def round_to_float32(x: float) -> float:
  """Return the float32 number closest to x."""
  return struct.unpack("<f", struct.pack("<f", x))[0]


class VocabEntry(NamedTuple):
  """A token of a SentencePiece model. type: NORMAL, UNKNOWN, CONTROL, USER_DEFINED or other."""

  text: str
  score: float
  type: int


class Model(NamedTuple):
  """The content of a SentencePiece model file.

  is_bpe: the model is BPE with merges in the order of the scores, otherwise a unigram model.
  byte_fallback: represent unknown strings by byte tokens.
  unk_index: the index of the unknown token.
  charsmap: the precompiled replacements of characters.
  add_dummy_prefix: insert a space before a text.
  remove_extra_whitespaces: remove spaces at both ends, and all but one space between words.
  """

  entries: list[VocabEntry]
  is_bpe: bool
  byte_fallback: bool
  unk_index: int
  charsmap: bytes
  add_dummy_prefix: bool
  remove_extra_whitespaces: bool

  def prepare(self) -> PreTokenizer:
    """Return a function that normalizes a text.

    Raises ValueError or IndexError if the charsmap is invalid.
    """
    steps: list[Normalizer] = []
    table = normalizers.read_charsmap(self.charsmap) if self.charsmap else {}
    if table:
      steps.append(normalizers.replace_longest(table))
    if self.remove_extra_whitespaces:
      steps.append(normalizers.strip(" ", ""))
      steps.append(normalizers.replace(" {2,}", " "))
    if self.add_dummy_prefix:
      steps.append(normalizers.prepend("▁"))
    steps.append(normalizers.replace(" ", "▁"))
    if self.remove_extra_whitespaces:
      steps.append(normalizers.strip("", "▁"))
    return pre_tokenizers.pipeline(steps)

  def segmenter(self) -> Segmenter:
    """Return a function that splits a prepared text into tokens.

    Sums of unigram scores are rounded to float32 as in SentencePiece, because the rounding decides
    near ties.
    """
    scores = {entry.text: entry.score for entry in self.entries if entry.type == NORMAL}
    user_defined = [entry.text for entry in self.entries if entry.type == USER_DEFINED]
    if not self.is_bpe:
      unk_score = round_to_float32(min(scores.values()) - UNKNOWN_PENALTY)
      all_scores = scores | dict.fromkeys(user_defined, -0.1)
      return unigram_segmenter(all_scores, unk_score, round_to_float32)
    ranks = {token: -score for token, score in scores.items()}
    return bpe_segmenter(lambda a, b: ranks.get(a + b), [*scores, *user_defined], user_defined)


def read_model(path: Path) -> Model:
  """Read a SentencePiece model file.

  Raises FileNotFoundError, or ValueError if the file is not a SentencePiece model.
  """
  entries: list[VocabEntry] = []
  trainer: dict[int, Any] = {}
  normalizer: dict[int, Any] = {}
  data = read_bytes(path, MAX_VOCABULARY_BYTES)
  with file_errors(path):
    for number, value in read_protobuf(data):
      if number == MODEL_PIECES:
        piece = dict(read_protobuf(value))
        (score,) = struct.unpack("<f", piece.get(PIECE_SCORE, bytes(4)))
        text = piece[PIECE_TEXT].decode()
        entries.append(VocabEntry(text, score, piece.get(PIECE_TYPE, NORMAL)))
      elif number == MODEL_TRAINER_SPEC:
        trainer = dict(read_protobuf(value))
      elif number == MODEL_NORMALIZER_SPEC:
        normalizer = dict(read_protobuf(value))
    model_type = trainer.get(TRAINER_MODEL_TYPE, UNIGRAM)
    if model_type not in (UNIGRAM, BPE):
      raise ValueError(f"model type {model_type} is not supported; use unigram (1) or BPE (2)")
    byte_fallback = bool(trainer.get(TRAINER_BYTE_FALLBACK, 0))
    check_byte_tokens(entries, byte_fallback)
    types = [entry.type for entry in entries]
    if NORMAL not in types or types.count(UNKNOWN) != 1:
      raise ValueError(
        f"not a SentencePiece model: {types.count(UNKNOWN)} of {len(types):,} tokens are unknown"
        f" tokens and {types.count(NORMAL):,} normal ones; expected one unknown token"
      )
    return Model(
      entries,
      is_bpe=model_type == BPE,
      byte_fallback=byte_fallback,
      unk_index=types.index(UNKNOWN),
      charsmap=normalizer.get(NORMALIZER_CHARSMAP, b""),
      add_dummy_prefix=bool(normalizer.get(NORMALIZER_ADD_DUMMY_PREFIX, 1)),
      remove_extra_whitespaces=bool(normalizer.get(NORMALIZER_REMOVE_EXTRA_WHITESPACES, 1)),
    )


def check_byte_tokens(entries: list[VocabEntry], byte_fallback: bool) -> None:
  """Raise ValueError for a byte token that is misspelled or not used, as SentencePiece does."""
  for entry in entries:
    if entry.type == BYTE and not (byte_fallback and entry.text in BYTE_TOKENS):
      raise ValueError(
        f"the byte token {printable(repr(entry.text), 60)} must be like <0x0A>, in a model with "
        "byte_fallback: the file is damaged"
      )
