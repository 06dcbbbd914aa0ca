"""Byte-level byte-pair encoding, the tokenizer of GPT-2 and LLaMA 3, and the training of merges."""

import codecs
import collections
import functools
import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import regex
import tiktoken

from tinyformer.files import atomic_write
from tinyformer.tokenization.base import (
  SURROGATE,
  Tokenizer,
  TokenizerFiles,
  file_errors,
  read_merges_txt,
  read_vocab_json,
)
from tinyformer.tokenization.byte_letters import (
  LETTERS,
  all_to_bytes,
  all_to_unicode,
  bytes_to_unicode,
)
from tinyformer.tokenization.normalizers import NormalizedString

# GPT-2's pre-tokenizer (Radford et al. 2019, sec. 2.2). No token crosses two matches.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# tiktoken overflows its stack on long white space before a word. A split at this pattern lies
# between two matches of the pre-tokenizer, so the tokens do not change.
LONG_WHITESPACE = regex.compile(r"((?<!\s)\s{5000,}(?=\s\S))")
END = "<|endoftext|>"


def parse_merges(merges: Iterable[str | Sequence[str]]) -> list[tuple[bytes, bytes]]:
  """Return merges as pairs of bytes. A merge is a pair, or a string with a space between tokens.

  Raises ValueError if a merge is not a pair of tokens.
  """
  spellings: list[str] = []
  for merge in merges:
    tokens = merge.split(" ") if isinstance(merge, str) else merge
    if len(tokens) != 2:
      raise ValueError(f"the merge {merge!r:.80} must be two tokens with a space between")
    spellings += tokens
  parts = all_to_bytes(spellings)
  return list(zip(parts[::2], parts[1::2], strict=True))


def merge_lines(merges: Iterable[tuple[bytes, bytes]]) -> list[str]:
  """Return each merge as a string with a space between its tokens."""
  return [f"{bytes_to_unicode(a)} {bytes_to_unicode(b)}" for a, b in merges]


def rank_merges(merges: Iterable[tuple[bytes, bytes]]) -> dict[bytes, int]:
  """Return the rank of each token: first the 256 bytes, then the result of each merge.

  Raises ValueError if a merge needs a token that no earlier merge produces.
  """
  ranks = {bytes([b]): rank for rank, b in enumerate(LETTERS)}
  for a, b in merges:
    if a not in ranks or b not in ranks:
      raise ValueError(
        f"the merge {bytes_to_unicode(a)} {bytes_to_unicode(b)} needs a token that no earlier"
        " merge produces; check the order of the merges"
      )
    ranks.setdefault(a + b, len(ranks))
  return ranks


class BytePairEncoding(Tokenizer):
  """Byte-level BPE (Sennrich et al. 2016; on bytes: Radford et al. 2019, sec. 2.2).

  merges: the pairs of tokens to merge, in order of priority.
  vocab: the ID of each token. Tokens that no merge produces are special tokens.
  specials: more special tokens.
  Raises ValueError if the vocabulary has no ID for a byte or the result of a merge, or if a merge
  needs a token that no earlier merge produces.
  """

  def __init__(
    self,
    merges: Sequence[tuple[bytes, bytes]],
    vocab: dict[str, int],
    specials: dict[str, int] | None = None,
  ):
    self.merges = list(merges)
    self.vocab = vocab
    specials = specials or {}
    self.ranks = rank_merges(self.merges)
    spellings = all_to_unicode(list(self.ranks))
    if missing := [spelling for spelling in spellings if spelling not in vocab]:
      raise ValueError(f"the vocabulary has no ID for the token {missing[0]!r:.80}; add the token")
    # tiktoken's IDs are ranks. Those of RoBERTa, for example, are not.
    self.id_of_rank = [vocab[spelling] for spelling in spellings]
    tokens = dict(zip(self.id_of_rank, self.ranks, strict=True))
    special_ids = {token: i for token, i in vocab.items() if i not in tokens} | specials
    super().__init__(tokens, special_ids)

  @functools.cached_property
  def encoding(self) -> tiktoken.Encoding:
    """tiktoken's encoder, whose token IDs are ranks."""
    return tiktoken.Encoding(
      "bpe", pat_str=GPT2_PATTERN, mergeable_ranks=self.ranks, special_tokens={}
    )

  def encode_ordinary(self, text: str) -> list[int]:
    """Return the token IDs of a text without special tokens."""
    parts = LONG_WHITESPACE.split(text)
    ranks = [rank for part in parts for rank in self.encoding.encode_ordinary(part)]
    return [self.id_of_rank[rank] for rank in ranks]

  def tokenize(self, text: NormalizedString) -> Iterator[tuple[int, int, int]]:
    """Yield (ID, start, end) of each token of a text without special tokens."""
    character_of_byte = [n for n, c in enumerate(text.text) for _ in c.encode()]
    end = 0
    for token_id in self.encode_ordinary(text.text):
      start = end
      end += len(self.tokens[token_id])
      first = character_of_byte[start]
      last = character_of_byte[end - 1]
      yield token_id, text.starts[first], text.ends[last]

  def encode(self, text: str, special: Sequence[str] = ()) -> list[int]:
    """Return the token IDs of a text, as `encode_with_offsets` does, but faster."""
    text = SURROGATE.sub("\ufffd", text)
    ids: list[int] = []
    for start, end, special_id in self.split_specials(text, special):
      if special_id is None:
        ids += self.encode_ordinary(text[start:end])
      else:
        ids.append(special_id)
    return ids

  @classmethod
  def load(cls, folder: str | Path) -> "BytePairEncoding":
    """Load the tokenizer from vocab.json and merges.txt.

    Raises FileNotFoundError if there are no such files, and ValueError if they are damaged.
    """
    files = TokenizerFiles(folder)
    vocab = read_vocab_json(files.folder / "vocab.json")
    path = files.folder / "merges.txt"
    with file_errors(path):
      tokenizer = cls(parse_merges(read_merges_txt(path)), vocab)
    # RoBERTa and BART have <s> and </s>. GPT-2 does not.
    is_roberta = "<s>" in tokenizer.specials and "</s>" in tokenizer.specials
    tokenizer.load_special_tokens(files, "<s> A </s> </s> B </s>" if is_roberta else "A B")
    tokenizer.load_added_tokens(files)
    return tokenizer

  def save(self, folder: str | Path) -> None:
    """Write vocab.json and merges.txt in the format of transformers.

    Neither is changed if one of them cannot be written.
    """
    folder = Path(folder)
    vocab = json.dumps(self.vocab, ensure_ascii=False)
    merges = "\n".join(["#version: 0.2", *merge_lines(self.merges)]) + "\n"
    with (
      atomic_write(folder / "vocab.json") as vocab_part,
      atomic_write(folder / "merges.txt") as merges_part,
    ):
      vocab_part.write_text(vocab, encoding="utf-8")
      merges_part.write_text(merges, encoding="utf-8")

  def to_json(self) -> dict[str, Any]:
    """Return the content of a tokenizer.json for the same tokens, without a prefix and a suffix.

    Source: https://huggingface.co/docs/tokenizers/pipeline
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
      "version": "1.0",
      "truncation": None,
      "padding": None,
      "added_tokens": [
        {"id": i, "content": token} | added | {"special": True}
        for token, i in sorted(self.specials.items(), key=lambda item: item[1])
      ],
      "normalizer": None,
      "pre_tokenizer": byte_level | {"use_regex": True},
      "post_processor": byte_level | {"use_regex": True},
      "decoder": byte_level | {"use_regex": True},
      "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": self.vocab,
        "merges": merge_lines(self.merges),
      },
    }

  @classmethod
  def train(cls, documents: Iterable[str], vocab_size: int, end: str = END) -> "BytePairEncoding":
    """Train a tokenizer with `vocab_size` tokens: the 256 bytes, the learned merges, and EOS.

    The vocabulary is smaller if the documents do not have enough pairs to merge.
    Raises ValueError if `vocab_size` is less than 257.
    """
    if vocab_size < 257:
      raise ValueError(f"vocab_size {vocab_size} is too small: use at least 257, 256 bytes and EOS")
    return cls.from_merges(learn_merges(documents, vocab_size - 257), end)

  @classmethod
  def characters(cls, documents: Iterable[str], end: str = END) -> "BytePairEncoding":
    """Return a tokenizer with one token for each character of the documents.

    Each character's bytes are merged from left to right. A prefix of a character of 3 or 4 bytes
    is therefore also a token. Other characters are encoded as bytes.
    """
    characters = sorted({c for text in documents for c in SURROGATE.sub("\ufffd", text)})
    merges: dict[tuple[bytes, bytes], None] = {}
    for character in characters:
      encoded = character.encode()
      for n in range(1, len(encoded)):
        merges[encoded[:n], encoded[n : n + 1]] = None
    return cls.from_merges(list(merges), end)

  @classmethod
  def from_merges(cls, merges: list[tuple[bytes, bytes]], end: str = END) -> "BytePairEncoding":
    """Return a tokenizer with IDs in GPT-2's order: the bytes, the result of each merge, EOS."""
    tokens = [bytes([b]) for b in LETTERS] + [a + b for a, b in merges]
    unique = dict.fromkeys(tokens)
    vocab = {bytes_to_unicode(token): i for i, token in enumerate(unique)}
    return cls(merges, vocab | {end: len(unique)})


@functools.total_ordering
class ReverseOrder:
  """A pair in descending order, because heapq pops the smallest item first."""

  def __init__(self, pair: tuple[bytes, bytes]):
    self.pair = pair

  def __eq__(self, other):
    return self.pair == other.pair

  def __lt__(self, other):
    return self.pair > other.pair


def learn_merges(documents: Iterable[str], num_merges: int) -> list[tuple[bytes, bytes]]:
  """Return the merges that BPE learns from documents, in order of priority.

  Each step merges the most frequent pair of adjacent tokens. Of several pairs, it merges the
  largest. Pairs do not cross the boundaries of GPT-2's pre-tokenizer.
  Source: Sennrich et al. 2016, algorithm 1.
  """
  matches = (match[0] for text in documents for match in regex.finditer(GPT2_PATTERN, text))
  frequencies = collections.Counter(matches)
  words = [[bytes([b]) for b in word.encode(errors="replace")] for word in frequencies]
  counts = list(frequencies.values())
  pair_counts: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
  # The indices of all words that contain a pair, or contained it before a merge.
  words_with = collections.defaultdict(set)
  for i, word in enumerate(words):
    for pair in itertools.pairwise(word):
      pair_counts[pair] += counts[i]
      words_with[pair].add(i)
  heap = [(-count, ReverseOrder(pair)) for pair, count in pair_counts.items()]
  heapq.heapify(heap)
  merges: list[tuple[bytes, bytes]] = []
  while heap and len(merges) < num_merges:
    negative_count, item = heapq.heappop(heap)
    best = item.pair
    if negative_count == 0 or -negative_count != pair_counts[best]:
      # The count is out of date. The heap also contains the current count.
      continue
    merges.append(best)
    changes: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
    for i in words_with.pop(best):
      old = words[i]
      new = merge_pair(old, best)
      words[i] = new
      for pair in itertools.pairwise(old):
        changes[pair] -= counts[i]
      for pair in itertools.pairwise(new):
        changes[pair] += counts[i]
        words_with[pair].add(i)
    for pair, change in changes.items():
      if change != 0:
        pair_counts[pair] += change
        heapq.heappush(heap, (-pair_counts[pair], ReverseOrder(pair)))
  return merges


def merge_pair(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
  """Return the word with each occurrence of the pair merged into one token, from left to right."""
  merged: list[bytes] = []
  for token in word:
    if merged and (merged[-1], token) == pair:
      merged[-1] += token
    else:
      merged.append(token)
  return merged


class Stream:
  """Decode a text token by token.

  A character that consists of several tokens is returned when its last token arrives.
  """

  def __init__(self, tokenizer: Tokenizer):
    self.tokenizer = tokenizer
    self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

  def __call__(self, token: int) -> str:
    """Return the text that is complete after this token, or an empty string."""
    return self.decoder.decode(self.tokenizer.token(token))
