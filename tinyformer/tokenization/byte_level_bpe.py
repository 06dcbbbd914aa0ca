"""Text to token ids and back, by byte-level byte-pair encoding; and learning such an encoding from a text."""

import codecs
import collections
import functools
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import regex
import tiktoken

from tinyformer.tokenization.base import SURROGATE, Files, Tokenizer, file_errors
from tinyformer.tokenization.normalizers import NormalizedString

# How GPT-2 cuts a text before it merges (Radford et al. 2019, sec. 2.2): no token spans two of these.
PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# tiktoken's matcher overflows its stack where much white space stands before a word; a cut here falls between two pieces.
LONG_SPACE = regex.compile(r"((?<!\s)\s{5000,}(?=\s\S))")
END = "<|endoftext|>"

# The printable character that stands for each byte in vocab.json and merges.txt, in the order of GPT-2's first 256 ids.
PRINTABLE = [
  *range(ord("!"), ord("~") + 1),
  *range(ord("¡"), ord("¬") + 1),
  *range(ord("®"), ord("ÿ") + 1),
]
LETTERS = {b: chr(b) for b in PRINTABLE} | {
  b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in PRINTABLE)
}
BYTES = {letter: b for b, letter in LETTERS.items()}


def bytes_to_unicode(token: bytes) -> str:
  """A token as vocab.json and merges.txt write it."""
  return "".join(map(LETTERS.__getitem__, token))


def unspell(token: str) -> bytes:
  """The bytes of a token of vocab.json. Raises ValueError for a character that stands for no byte."""
  if strange := [c for c in token if c not in BYTES]:
    raise ValueError(f"{strange[0]!r} stands for no byte")
  return bytes(map(BYTES.__getitem__, token))


def read_merges(pairs: Iterable[str | Sequence[str]]) -> list[tuple[bytes, bytes]]:
  """Merges as the files write them: pairs, or strings with a blank in the middle. Raises ValueError for what is none."""
  merges = []
  for pair in pairs:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if len(parts) != 2:
      raise ValueError(f"{pair!r} is no pair of tokens")
    merges.append((unspell(parts[0]), unspell(parts[1])))
  return merges


class BytePairEncoding(Tokenizer):
  """Byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2): merges, in their order; vocab, each token's id.

  Tokens of the vocabulary that no merge makes, such as <|endoftext|>, and the specials given are written by id alone, never read from text.
  pattern: how a text is cut before the merges.  whole: a token that lies between two cuts is read as such, merges or not (tokenizer.json's ignore_merges).
  Raises ValueError if a byte or a merge has no id, or a merge joins what is no token.
  """

  def __init__(
    self,
    merges: Sequence[tuple[bytes, bytes]],
    vocab: dict[str, int],
    pattern: str = PIECES,
    specials: dict[str, int] | None = None,
    whole: bool = False,
  ):
    self.merges, self.vocab = list(merges), vocab
    ranks = {bytes([b]): i for i, b in enumerate(LETTERS)}
    for a, b in self.merges:
      if a not in ranks or b not in ranks:
        raise ValueError(
          f"the merge {bytes_to_unicode(a)} {bytes_to_unicode(b)} joins what is not yet a token"
        )
      ranks.setdefault(a + b, len(ranks))
    specials = specials or {}
    unmade = {
      t: None
      for token in vocab
      if whole and token not in specials and (t := unspell(token)) not in ranks
    }
    if joined := [
      t for t in unmade if any(t[:n] in ranks and t[n:] in ranks for n in range(1, len(t)))
    ]:
      raise ValueError(f"no merge makes {bytes_to_unicode(joined[0])!r} of its parts")
    for t in unmade:
      ranks[t] = len(ranks)  # tiktoken would merge the parts of one, had it any
    if missing := [t for t in ranks if bytes_to_unicode(t) not in vocab]:
      raise ValueError(f"the vocabulary has no id for {bytes_to_unicode(missing[0])!r}")
    self.by_rank = np.array(
      [vocab[bytes_to_unicode(t)] for t in ranks]
    )  # tiktoken's ids are ranks; RoBERTa's, for one, are not
    self.encoding = tiktoken.Encoding(
      "bpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )
    made = {vocab[bytes_to_unicode(t)]: t for t in ranks}
    super().__init__(made, {t: i for t, i in vocab.items() if i not in made} | specials)

  def ids(self, text: str) -> list[int]:
    """Token ids of a text without specials."""
    ranks = [r for part in LONG_SPACE.split(text) for r in self.encoding.encode_ordinary(part)]
    return self.by_rank[ranks].tolist() if ranks else []

  def tokenize(self, stretch: NormalizedString) -> Iterator[tuple[int, int, int]]:
    place, done = (
      [n for n, c in enumerate(stretch.text) for _ in c.encode()],
      0,
    )  # the character of each byte
    for i in self.ids(stretch.text):
      begin, done = done, done + len(self.tokens[i])
      yield i, stretch.starts[place[begin]], stretch.ends[place[done - 1]]

  def encode(self, text: str, special: Sequence[str] = ()) -> list[int]:
    text = SURROGATE.sub("\ufffd", text)
    return [
      i
      for a, b, known in self.parts(text, special)
      for i in (self.ids(text[a:b]) if known is None else [known])
    ]

  def encode_documents(self, documents: Iterable[str]) -> np.ndarray:
    """The ids of every document, each closed by the id that ends a text, one after the other."""
    end = [] if self.end is None else [self.end]
    return np.concatenate([np.array(self.encode(d) + end, dtype=np.int32) for d in documents])

  @classmethod
  def load(cls, folder: str | Path) -> "BytePairEncoding":
    """Reads tokenizer.json, or else vocab.json and merges.txt. Raises FileNotFoundError, or ValueError if they do not fit together."""
    files = Files(folder)
    if files.full:
      return cls.from_full(files)
    path = files.folder / "vocab.json"
    with file_errors(path):
      vocab = json.loads(path.read_text(encoding="utf-8"))
      if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        raise ValueError("not a table of ids")
    with file_errors(path := files.folder / "merges.txt"):
      tokenizer = cls(
        read_merges(
          [
            line
            for line in path.read_text(encoding="utf-8").split("\n")
            if line and not line.startswith("#version")
          ]
        ),
        vocab,
      )
    tokenizer.load_special_tokens(
      files, "<s> A </s> </s> B </s>" if {"<s>", "</s>"} <= tokenizer.specials.keys() else "A B"
    )  # RoBERTa and BART; GPT-2
    return tokenizer

  @classmethod
  def from_full(cls, files: Files) -> "BytePairEncoding":
    """From tokenizer.json, which also says how a text is cut."""
    with file_errors(files.folder / "tokenizer.json"):
      model, pre = files.full["model"], files.full["pre_tokenizer"]
      *splits, last = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
      patterns = [
        s["pattern"]["Regex"]
        for s in splits
        if s["type"] == "Split" and s["behavior"] == "Isolated" and not s["invert"]
      ] + [PIECES] * last.get("use_regex", True)
      if (
        files.full.get("normalizer")
        or last["type"] != "ByteLevel"
        or last["add_prefix_space"]
        or len(patterns) != 1
        or len(splits) > 1
      ):
        raise ValueError(
          f"a text that is prepared by {files.full.get('normalizer')} and {pre} cannot be read here"
        )
      tokenizer = cls(
        read_merges(model["merges"]),
        model["vocab"],
        patterns[0],
        files.specials(model["vocab"]),
        model.get("ignore_merges", False),
      )
      tokenizer.load_special_tokens(files)
    return tokenizer

  def save(self, folder: str | Path) -> None:
    """Writes vocab.json and merges.txt, as transformers reads them."""
    (Path(folder) / "vocab.json").write_text(
      json.dumps(self.vocab, ensure_ascii=False), encoding="utf-8"
    )
    lines = [
      "#version: 0.2",
      *(f"{bytes_to_unicode(a)} {bytes_to_unicode(b)}" for a, b in self.merges),
    ]
    (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

  @classmethod
  def train(cls, documents: Iterable[str], size: int, end: str = END) -> "BytePairEncoding":
    """Learns `size` tokens: the 256 bytes, merges of the commonest pair, and `end`. Fewer where the text has no more pairs."""
    if size < 257:
      raise ValueError(f"{size} tokens are too few: 256 bytes and {end} are {257}")
    return cls.of(learn_merges(documents, size - 257), end)

  @classmethod
  def characters(cls, documents: Iterable[str], end: str = END) -> "BytePairEncoding":
    """A token for each character of the documents, and for each byte, as which other characters are read: merges that join the bytes of one, and `end`.

    A character of 3 or 4 bytes is joined from the left, so that what it begins with is a token too.
    """
    letters = sorted({c for d in documents for c in SURROGATE.sub("\ufffd", d)})
    return cls.of(
      list(
        dict.fromkeys(
          (b[:n], b[n : n + 1]) for b in map(str.encode, letters) for n in range(1, len(b))
        )
      ),
      end,
    )

  @classmethod
  def of(cls, merges: list[tuple[bytes, bytes]], end: str = END) -> "BytePairEncoding":
    """With ids in the order of GPT-2's: the bytes, what each merge makes, `end`."""
    tokens = dict.fromkeys([bytes([b]) for b in LETTERS] + [a + b for a, b in merges])
    return cls(merges, {bytes_to_unicode(t): i for i, t in enumerate(tokens)} | {end: len(tokens)})


@functools.total_ordering
class Largest:
  """A pair that sorts before the smaller ones: heapq pops the least."""

  def __init__(self, pair: tuple[bytes, bytes]):
    self.pair = pair

  def __eq__(self, other):
    return self.pair == other.pair

  def __lt__(self, other):
    return self.pair > other.pair


def learn_merges(documents: Iterable[str], count: int) -> list[tuple[bytes, bytes]]:
  """The pairs that byte-pair encoding joins, in order (Sennrich et al. 2016, algorithm 1).

  Each time it is the pair of neighbours that stands most often within the pieces of the text; of several, the largest.
  """
  pieces = collections.Counter(m[0] for d in documents for m in regex.finditer(PIECES, d))
  words, counts = (
    [[bytes([b]) for b in p.encode(errors="replace")] for p in pieces],
    list(pieces.values()),
  )
  total: collections.Counter = collections.Counter()
  where = collections.defaultdict(set)  # the words in which a pair stands, or once stood
  for i, word in enumerate(words):
    for pair in zip(word, word[1:]):
      total[pair] += counts[i]
      where[pair].add(i)
  heap = [(-n, Largest(pair)) for pair, n in total.items()]
  heapq.heapify(heap)
  merges: list[tuple[bytes, bytes]] = []
  while heap and len(merges) < count:
    n, largest = heapq.heappop(heap)
    pair = largest.pair
    if -n != total[pair] or n == 0:
      continue  # an old count: the right one is further down
    merges.append(pair)
    changed: collections.Counter = collections.Counter()
    for i in where.pop(pair):
      old = words[i]
      words[i] = new = joined(old, pair)
      for p in zip(old, old[1:]):
        changed[p] -= counts[i]
      for p in zip(new, new[1:]):
        changed[p] += counts[i]
        where[p].add(i)
    for p, difference in changed.items():
      if difference == 0:
        continue
      total[p] += difference
      heapq.heappush(heap, (-total[p], Largest(p)))
  return merges


def joined(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
  """The word with each occurrence of the pair made one token, from the left."""
  out: list[bytes] = []
  for token in word:
    if out and (out[-1], token) == pair:
      out[-1] += token
    else:
      out.append(token)
  return out


class Stream:
  """Decodes a text that arrives token by token: a character that spans several tokens comes out when it is whole."""

  def __init__(self, tokenizer: Tokenizer):
    self.tokenizer, self.decoder = (
      tokenizer,
      codecs.getincrementaldecoder("utf-8")(errors="replace"),
    )

  def __call__(self, token: int) -> str:
    """The text that this token completes: often one token's, sometimes none, at times several."""
    return self.decoder.decode(self.tokenizer.token(token))
