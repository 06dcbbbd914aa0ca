"""SentencePiece (Kudo and Richardson 2018): text to pieces in which ▁ stands for a blank, by byte-pair merges or by the likeliest cut of a unigram model."""

import functools
import heapq
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinyformer.tokenization import normalizers
from tinyformer.tokenization.base import Files, Tokenizer, file_errors
from tinyformer.tokenization.normalizers import Step, NormalizedString

NORMAL, UNKNOWN, CONTROL, DEFINED = 1, 2, 3, 4  # types of pieces
PENALTY = 10  # of an unknown character, below the least score of all
BYTES = [f"<0x{b:02X}>" for b in range(256)]
Cut = Callable[[str], list[str]]


def merge(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
  """Neighbours joined, each time the pair of the lowest rank, of several the leftmost, until no pair has one: Sennrich et al. 2016, in n log n."""
  n = len(symbols)
  before, after, heap = (
    list(range(-1, n - 1)),
    list(range(1, n + 1)),
    list[tuple[float, int, str, str]](),
  )

  def look(i: int) -> None:
    if i >= 0 and after[i] < n and (r := rank(a := symbols[i], b := symbols[after[i]])) is not None:
      heapq.heappush(heap, (r, i, a, b))

  for i in range(n):
    look(i)
  while heap:
    _, i, a, b = heapq.heappop(heap)
    j = after[i]
    if symbols[i] != a or j == n or symbols[j] != b:
      continue  # one of them was joined with another
    symbols[i], symbols[j], after[i] = a + b, "", after[j]
    if after[j] < n:
      before[after[j]] = i
    look(before[i])
    look(i)
  return [s for s in symbols if s]


def merging(
  rank: Callable[[str, str], float | None], pieces: Iterable[str], whole: Iterable[str] = ()
) -> Cut:
  """Cuts by `merge`; where no piece has a blank after another character, word by word. whole: pieces that are symbols from the start."""
  words = re.compile(
    "▁*[^▁]+|▁+" if not any(re.search("[^▁]▁", p) for p in pieces) else ".+", re.DOTALL
  )
  symbols = re.compile(
    "|".join([*map(re.escape, sorted(whole, key=len, reverse=True)), "."]), re.DOTALL
  )
  cut = functools.lru_cache(1 << 16)(lambda word: merge(symbols.findall(word), rank))
  return lambda text: [piece for word in words.findall(text) for piece in cut(word)]


def viterbi(
  text: str, scores: dict[str, float], unknown: float, rounded: Callable[[float], float] = float
) -> list[str]:
  """The pieces with the highest sum of scores that make up a text, by Viterbi's algorithm (Kudo 2018, sec. 3.2); of equals, those of which the last is the longest.

  scores: of pieces, and -inf for what pieces only begin with.  unknown: the score of a character that is in none.  rounded: how a sum is kept.
  """
  n = len(text)
  best, begin = [0.0] + [-math.inf] * n, [0] * (n + 1)
  for i in range(n):
    j = i + 1
    score: float | None = scores.get(text[i], unknown)
    while score is not None:
      if (total := rounded(best[i] + score)) > best[j]:
        best[j], begin[j] = total, i
      j += 1
      score = scores.get(text[i:j]) if j <= n else None
  ends = [n]
  while ends[-1]:
    ends.append(begin[ends[-1]])
  return [text[a:b] for a, b in zip(ends[:0:-1], ends[-2::-1])]


def unigram(
  scores: dict[str, float], unknown: float, rounded: Callable[[float], float] = float
) -> Cut:
  """Cuts by `likeliest`."""
  beginnings = {
    piece[:n]: unknown if n == 1 else -math.inf for piece in scores for n in range(1, len(piece))
  }
  table = beginnings | scores
  return functools.lru_cache(1 << 16)(lambda text: viterbi(text, table, unknown, rounded))


class SentencePiece(Tokenizer):
  """vocab: each piece's id.  pieces: cuts a prepared text.  prepare: the steps before.  unknown: the id of what is no piece, if there is one.

  bytes: the ids of the 256 byte pieces such as <0x0A>, in which is written what is no piece; or none.
  """

  def __init__(
    self,
    vocab: dict[str, int],
    pieces: Cut,
    prepare: list[Step],
    unknown: int | None,
    specials: dict[str, int],
    fallback: bool = False,
    strip_leading_space: bool = True,
  ):
    self.vocab, self.pieces, self.prepare, self.unknown = vocab, pieces, prepare, unknown
    self.bytes = [vocab[b] for b in BYTES] if fallback and all(b in vocab for b in BYTES) else []
    self.ids = {
      piece: i for piece, i in vocab.items() if piece not in specials and i not in self.bytes
    }  # what a text can be read as
    tokens = {i: piece.replace("▁", " ").encode() for piece, i in self.ids.items()} | {
      i: bytes([b]) for b, i in enumerate(self.bytes)
    }
    super().__init__(tokens, specials, strip_leading_space)

  def tokenize(self, stretch: NormalizedString) -> list[tuple[int, int, int]]:
    spans: list[tuple[int, int, int]] = []
    for s in normalizers.apply(self.prepare, stretch):
      done, fused = 0, False  # unknown neighbours are one token
      for piece in self.pieces(s.text):
        a, done = done, done + len(piece)
        if piece in self.ids:
          spans.append((self.ids[piece], s.starts[a], s.ends[done - 1]))
        elif self.bytes:
          spans += [
            (self.bytes[b], s.starts[a + n], s.ends[a + n])
            for n, c in enumerate(piece)
            for b in c.encode()
          ]
        elif self.unknown is not None:
          spans.append((self.unknown, spans.pop()[1] if fused else s.starts[a], s.ends[done - 1]))
        fused = piece not in self.ids and not self.bytes and self.unknown is not None
    return spans

  @classmethod
  def load(cls, folder: str | Path) -> "SentencePiece":
    """Reads Marian's three files, or tokenizer.json, or a sentencepiece model. Raises FileNotFoundError, or ValueError for a damaged file."""
    files = Files(folder)
    if (files.folder / "source.spm").exists():
      return cls.marian(files)
    if files.full:
      return cls.from_full(files)
    for name in FAMILIES:
      if (files.folder / name).exists():
        return cls.from_model(files, files.folder / name)
    raise FileNotFoundError(
      f"{folder} has no tokenizer: tokenizer.json, vocab.json and merges.txt, vocab.txt, source.spm or {', '.join(FAMILIES)}"
    )

  @classmethod
  def from_full(cls, files: Files) -> "SentencePiece":
    """From tokenizer.json, whose `model` is a BPE with merges, or a Unigram with scores."""
    with file_errors(files.folder / "tokenizer.json"):
      model = files.full["model"]
      vocab = (
        model["vocab"]
        if "merges" in model
        else {piece: i for i, (piece, _) in enumerate(model["vocab"])}
      )
      specials = files.specials(vocab)
      if "merges" in model:
        ranks = {
          (a, b): float(n)
          for n, (a, b) in enumerate(
            m.split(" ") if isinstance(m, str) else m for m in model["merges"]
          )
        }
        pieces, unknown = (
          merging(lambda a, b: ranks.get((a, b)), vocab),
          vocab.get(model.get("unk_token")),
        )
      else:
        scores, unknown = dict(model["vocab"]), model.get("unk_id")
        pieces = unigram(
          {p: s for p, s in scores.items() if p not in specials}, min(scores.values()) - PENALTY
        )
      prepare = normalizers.read(files.full.get("normalizer")) + normalizers.read(
        files.full.get("pre_tokenizer")
      )
      self = cls(
        vocab,
        pieces,
        prepare,
        unknown,
        specials,
        model.get("byte_fallback", False),
        drops_blank(files.full.get("decoder")),
      )
      self.load_special_tokens(files)
    return self

  @classmethod
  def from_model(cls, files: Files, path: Path) -> "SentencePiece":
    """From sentencepiece's own file, with the ids that the family whose file has this name gives the pieces."""
    model, (ids, template, second) = read_model(path), FAMILIES[path.name]
    spelled = [p.text for p in model.pieces]
    vocab = {p: i for i, p in enumerate(ids(spelled))}
    with file_errors(path):
      specials = files.specials(
        vocab,
        [p.text for p in model.pieces if p.type in (UNKNOWN, CONTROL)]
        + [p for p in vocab if p not in spelled],
      )
      self = cls(
        vocab,
        model.tokenize(),
        model.prepare(),
        vocab[spelled[model.unknown]],
        specials,
        model.fallback,
        model.dummy,
      )
      self.load_special_tokens(files, template, second)
    return self

  @classmethod
  def marian(cls, files: Files) -> "SentencePiece":
    """From source.spm, which cuts, and vocab.json, which has the ids of both languages' pieces."""
    with file_errors(path := files.folder / "source.spm"):
      model = read_model(path)
      cut, prepare = model.tokenize(), model.prepare()
    with file_errors(path := files.folder / "vocab.json"):
      if files.config.get("separate_vocabs"):
        raise ValueError("two languages with a vocabulary each are not read here")
      vocab = json.loads(path.read_text(encoding="utf-8"))
      unknown, specials = vocab["<unk>"], files.specials(vocab, ("<unk>", "</s>", "<pad>"))
      self = cls(
        vocab | {p.text: vocab.get(p.text, unknown) for p in model.pieces},
        cut,
        prepare,
        unknown,
        specials,
        strip_leading_space=model.dummy,
      )
      self.tokens |= {
        i: piece.replace("▁", " ").encode() for piece, i in vocab.items() if piece not in specials
      }
      self.load_special_tokens(files, "A B </s>")
      self.added_tokens = {
        s: i for s, i in vocab.items() if s.startswith(">>") and s.endswith("<<")
      }  # the language to translate into
    return self


# From the pieces of a sentencepiece model of that name to what has the ids 0, 1, 2 ..., and what stands around texts.
FAMILIES: dict[str, tuple[Callable[[list[str]], list[str]], str, int]] = {
  "tokenizer.model": (lambda p: p, "<s> A <s> B", 0),  # LLaMA and Mistral
  "spiece.model": (
    lambda p: [*p, *(f"<extra_id_{n}>" for n in reversed(range(100)))],
    "A </s> B </s>",
    0,
  ),  # T5
  "sentencepiece.bpe.model": (
    lambda p: ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", *p[1:], "<mask>"],
    "<s> A </s> </s> B </s>",
    0,
  ),  # CamemBERT, after fairseq
  "spm.model": (lambda p: p if "[MASK]" in p else [*p, "[MASK]"], "[CLS] A [SEP] B [SEP]", 1),
}  # DeBERTa


def drops_blank(decoder: dict[str, Any] | None) -> bool:
  """Whether a decoder of tokenizer.json takes a text's first blank away."""
  if decoder is None:
    return False
  if decoder["type"] == "Sequence":
    return any(map(drops_blank, decoder["decoders"]))
  return decoder["type"] == "Strip" or (
    decoder["type"] == "Metaspace" and decoder.get("prepend_scheme", "always") != "never"
  )


# sentencepiece's file: a protobuf message, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """(number, value) of each field of a protobuf message, ints or bytes: https://protobuf.dev/programming-guides/encoding. Raises ValueError if it is not whole."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      if at >= len(data) or shift > 63:
        raise ValueError(f"no protobuf message: a number does not end at byte {at:,}")
      value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
      if data[at - 1] < 128:
        return value

  while at < len(data):
    number, kind = divmod(varint(), 8)
    if kind not in (0, 1, 2, 5):
      raise ValueError(f"no protobuf message: a field of kind {kind} before byte {at:,}")
    if kind == 0:
      yield number, varint()
    else:
      size = varint() if kind == 2 else 4 if kind == 5 else 8
      at += size
      if at > len(data):
        raise ValueError(f"no whole protobuf message: {len(data):,} of {at:,} bytes")
      yield number, data[at - size : at]


def float32(x: float) -> float:
  return struct.unpack("<f", struct.pack("<f", x))[0]


class Piece(NamedTuple):
  text: str
  score: float
  type: int


class Model(NamedTuple):
  """merges: byte-pair merges, in the order of the scores, rather than a unigram model.  unknown: the index of that piece.  fallback: bytes for what is no piece.

  charsmap: how characters are rewritten.  dummy: a blank is put before a text.  tidy: blanks at its ends, and all but one between words, are left out.
  """

  pieces: list[Piece]
  merges: bool
  fallback: bool
  unknown: int
  charsmap: bytes
  dummy: bool
  tidy: bool

  def prepare(self) -> list[Step]:
    table = normalizers.read_charsmap(self.charsmap) if self.charsmap else {}
    tidy = [normalizers.strip(" ", ""), normalizers.replace(" {2,}", " ")] if self.tidy else []
    blanks = [normalizers.replace(" ", "▁"), *([normalizers.strip("", "▁")] if self.tidy else [])]
    return [
      *([normalizers.longest(table)] if table else []),
      *tidy,
      *([normalizers.prepend("▁")] if self.dummy else []),
      *blanks,
    ]

  def tokenize(self) -> Cut:
    """Where sums are as near as a rounding, they are float32 as sentencepiece's are."""
    normal = {p.text: p.score for p in self.pieces if p.type == NORMAL}
    defined = [p.text for p in self.pieces if p.type == DEFINED]  # are always read as such
    if not self.merges:
      return unigram(
        normal | dict.fromkeys(defined, -0.1), float32(min(normal.values()) - PENALTY), float32
      )
    ranks = {p: -score for p, score in normal.items()}
    return merging(lambda a, b: ranks.get(a + b), [*normal, *defined], defined)


def read_model(path: Path) -> Model:
  """Raises FileNotFoundError, or ValueError for what is no sentencepiece model."""
  pieces: list[Piece] = []
  trainer: dict[int, Any] = {}
  normalizer: dict[int, Any] = {}
  data = path.read_bytes()
  with file_errors(path):
    for number, value in fields(data):
      if number == 1:
        piece = dict(fields(value))
        pieces.append(
          Piece(
            piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, NORMAL)
          )
        )
      elif number == 2:
        trainer = dict(fields(value))
      elif number == 3:
        normalizer = dict(fields(value))
    kind, unknown = trainer.get(3, 1), trainer.get(40, 0)
    if kind not in (1, 2):
      raise ValueError(f"a model of kind {kind} is neither unigram (1) nor byte-pair merges (2)")
    if not any(p.type == NORMAL for p in pieces) or unknown >= len(pieces):
      raise ValueError("no sentencepiece model: it has no pieces")
    return Model(
      pieces,
      kind == 2,
      bool(trainer.get(35, 0)),
      unknown,
      normalizer.get(2, b""),
      bool(normalizer.get(3, 1)),
      bool(normalizer.get(4, 1)),
    )
