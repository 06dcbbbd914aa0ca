"""Text to token ids and back, by byte-level byte-pair encoding; and learning such an encoding from a text."""
import codecs, collections, functools, heapq, json
from pathlib import Path
from collections.abc import Iterable, Sequence
import numpy as np
import regex, tiktoken

# How GPT-2 cuts a text before it merges (Radford et al. 2019, sec. 2.2): no token spans two of these.
PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# tiktoken's matcher overflows its stack where much white space stands before a word; a cut here falls between two pieces.
LONG_SPACE = regex.compile(r"((?<!\s)\s{5000,}(?=\s\S))")
END = "<|endoftext|>"

# The printable character that stands for each byte in vocab.json and merges.txt, in the order of GPT-2's first 256 ids.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
LETTERS = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in PRINTABLE)}
BYTES = {letter: b for b, letter in LETTERS.items()}

def spell(token:bytes) -> str:
  """A token as vocab.json and merges.txt write it."""
  return "".join(map(LETTERS.__getitem__, token))

def unspell(token:str) -> bytes:
  """The bytes of a token of vocab.json. Raises KeyError for a character that stands for no byte."""
  return bytes(map(BYTES.__getitem__, token))

class BytePairEncoding:
  """Byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2): merges, in their order; vocab, each token's id.

  A token of the vocabulary that no merge makes, such as <|endoftext|>, is a control: it is written by id alone and never read from text.
  Raises ValueError if a byte or a merge has no id, or a merge joins what is no token.
  """
  def __init__(self, merges:Sequence[tuple[bytes, bytes]], vocab:dict[str, int]):
    self.merges, self.vocab = list(merges), vocab
    ranks = {bytes([b]): i for i, b in enumerate(LETTERS)}
    for a, b in self.merges:
      if a not in ranks or b not in ranks: raise ValueError(f"the merge {spell(a)} {spell(b)} joins what is not yet a token")
      ranks.setdefault(a + b, len(ranks))
    if missing := [t for t in ranks if spell(t) not in vocab]: raise ValueError(f"the vocabulary has no id for {spell(missing[0])!r}")
    self.ids = np.array([vocab[spell(t)] for t in ranks])   # tiktoken's ids are ranks; RoBERTa's, for one, are not
    self.bytes_of = {vocab[spell(t)]: t for t in ranks}
    self.controls = {token: i for token, i in vocab.items() if i not in self.bytes_of}
    self.bytes_of |= {i: token.encode() for token, i in self.controls.items()}
    self.encoding = tiktoken.Encoding("bpe", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={})

  def __len__(self) -> int: return max(self.bytes_of) + 1

  @property
  def end(self) -> int|None:
    """The id that ends a text, if there is one."""
    return self.controls.get(END)

  def encode(self, text:str) -> list[int]:
    """Token ids of any string; lone surrogates become U+FFFD."""
    ranks = [r for part in LONG_SPACE.split(text) for r in self.encoding.encode_ordinary(part)]
    return self.ids[ranks].tolist() if ranks else []

  def encode_documents(self, documents:Iterable[str]) -> np.ndarray:
    """The ids of every document, each closed by the id that ends a text, one after the other."""
    end = [] if self.end is None else [self.end]
    return np.concatenate([np.array(self.encode(d) + end, dtype=np.int32) for d in documents])

  def decode(self, ids:Iterable[int]) -> str:
    """The text of ids; bytes that are no UTF-8 become U+FFFD. Raises ValueError for an id that is no token."""
    return b"".join(map(self.token, ids)).decode(errors="replace")

  def token(self, i:int) -> bytes:
    """The bytes of one token, which may be a part of a character. Raises ValueError for an id that is no token."""
    if i not in self.bytes_of: raise ValueError(f"{i} is not the id of a token: there are {len(self.bytes_of)}")
    return self.bytes_of[i]

  @classmethod
  def load(cls, folder:str|Path) -> "BytePairEncoding":
    """Reads vocab.json and merges.txt. Raises FileNotFoundError, or ValueError if they do not fit together."""
    path = Path(folder) / "vocab.json"
    try:
      vocab = json.loads(path.read_text(encoding="utf-8"))
      if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()): raise ValueError("not a table of ids")
      path = Path(folder) / "merges.txt"
      lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
      if strange := [line for line in lines if line.count(" ") != 1]: raise ValueError(f"{strange[0]!r} is no pair of tokens")
      return cls([(unspell(a), unspell(b)) for a, b in (line.split(" ") for line in lines)], vocab)
    except KeyError as e: raise ValueError(f"{path}: {e.args[0]!r} stands for no byte") from e
    except ValueError as e: raise ValueError(f"{path}: {e}") from e

  def save(self, folder:str|Path) -> None:
    """Writes vocab.json and merges.txt, as transformers reads them."""
    (Path(folder) / "vocab.json").write_text(json.dumps(self.vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{spell(a)} {spell(b)}" for a, b in self.merges)]
    (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

  @classmethod
  def train(cls, documents:Iterable[str], size:int, end:str=END) -> "BytePairEncoding":
    """Learns `size` tokens: the 256 bytes, merges of the commonest pair, and `end`. Fewer where the text has no more pairs."""
    if size < 257: raise ValueError(f"{size} tokens are too few: 256 bytes and {end} are {257}")
    merges = learn_merges(documents, size - 257)
    tokens = dict.fromkeys([bytes([b]) for b in LETTERS] + [a + b for a, b in merges])
    return cls(merges, {spell(t): i for i, t in enumerate(tokens)} | {end: len(tokens)})

@functools.total_ordering
class Largest:
  """A pair that sorts before the smaller ones: heapq pops the least."""
  def __init__(self, pair:tuple[bytes, bytes]): self.pair = pair
  def __eq__(self, other): return self.pair == other.pair
  def __lt__(self, other): return self.pair > other.pair

def learn_merges(documents:Iterable[str], count:int) -> list[tuple[bytes, bytes]]:
  """The pairs that byte-pair encoding joins, in order (Sennrich et al. 2016, algorithm 1).

  Each time it is the pair of neighbours that stands most often within the pieces of the text; of several, the largest.
  """
  pieces = collections.Counter(m[0] for d in documents for m in regex.finditer(PIECES, d))
  words, counts = [[bytes([b]) for b in p.encode(errors="replace")] for p in pieces], list(pieces.values())
  total:collections.Counter = collections.Counter()
  where = collections.defaultdict(set)   # the words in which a pair stands, or once stood
  for i, word in enumerate(words):
    for pair in zip(word, word[1:]):
      total[pair] += counts[i]
      where[pair].add(i)
  heap = [(-n, Largest(pair)) for pair, n in total.items()]
  heapq.heapify(heap)
  merges:list[tuple[bytes, bytes]] = []
  while heap and len(merges) < count:
    n, largest = heapq.heappop(heap)
    pair = largest.pair
    if -n != total[pair] or n == 0: continue   # an old count: the right one is further down
    merges.append(pair)
    changed:collections.Counter = collections.Counter()
    for i in where.pop(pair):
      old = words[i]
      words[i] = new = joined(old, pair)
      for p in zip(old, old[1:]): changed[p] -= counts[i]
      for p in zip(new, new[1:]):
        changed[p] += counts[i]
        where[p].add(i)
    for p, difference in changed.items():
      if difference == 0: continue
      total[p] += difference
      heapq.heappush(heap, (-total[p], Largest(p)))
  return merges

def joined(word:list[bytes], pair:tuple[bytes, bytes]) -> list[bytes]:
  """The word with each occurrence of the pair made one token, from the left."""
  out:list[bytes] = []
  for token in word:
    if out and (out[-1], token) == pair: out[-1] += token
    else: out.append(token)
  return out

class Stream:
  """Decodes a text that arrives token by token: a character that spans several tokens comes out when it is whole."""
  def __init__(self, tokenizer:BytePairEncoding):
    self.tokenizer, self.decoder = tokenizer, codecs.getincrementaldecoder("utf-8")(errors="replace")

  def __call__(self, token:int) -> str:
    """The text that this token completes: often one token's, sometimes none, at times several."""
    return self.decoder.decode(self.tokenizer.token(token))
