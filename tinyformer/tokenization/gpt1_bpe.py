"""The tokenizer of GPT-1: BPE on the characters of lowercase words (Radford et al. 2018, sec. 4.1).

The last token of each word ends in </w>.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyformer.tokenization.base import (
  TokenizerFiles,
  file_errors,
  read_merges_txt,
  read_vocab_json,
)
from tinyformer.tokenization.sentencepiece import apply_merges
from tinyformer.tokenization.wordpiece import WordPiece

UNKNOWN = "<unk>"
END_OF_WORD = "</w>"


class GPT1Tokenizer(WordPiece):
  """BPE on the words of BERT's pre-tokenizer, as transformers applies it without spaCy and ftfy.

  merges: the pairs of symbols to merge, in order of priority. An unknown character becomes <unk>.
  """

  # Generated text begins with a new word.
  continuation_joiner = " "

  def __init__(
    self, vocab: dict[str, int], merges: list[tuple[str, ...]], specials: dict[str, int]
  ):
    super().__init__(vocab, unk_token=UNKNOWN, specials=specials)
    self.ranks = {pair: float(rank) for rank, pair in enumerate(merges)}
    self.tokens = dict(self.tokens) | {
      i: token.replace(END_OF_WORD, " ").encode()
      for token, i in vocab.items()
      if token not in specials
    }

  @classmethod
  def load(cls, folder: str | Path) -> "GPT1Tokenizer":
    """Load the tokenizer from vocab.json and merges.txt.

    Raises FileNotFoundError if there are no such files, and ValueError if they are damaged.
    """
    files = TokenizerFiles(folder)
    path = files.folder / "vocab.json"
    with file_errors(path):
      vocab = read_vocab_json(path)
      unk_id = vocab[UNKNOWN]
    path = files.folder / "merges.txt"
    with file_errors(path):
      merges = read_pairs(read_merges_txt(path))
      return cls(vocab, merges, files.special_ids(vocab) | {UNKNOWN: unk_id})

  def tokenize_word(self, word: str) -> list[tuple[str, int]]:
    """Return the tokens of a word, each with its number of characters."""
    symbols = [*word[:-1], word[-1] + END_OF_WORD]
    tokens = apply_merges(symbols, lambda a, b: self.ranks.get((a, b)))
    return [
      (token if token in self.vocab else self.unk_token, len(token.removesuffix(END_OF_WORD)))
      for token in tokens
    ]

  def decode(self, ids: Iterable[int]) -> str:
    """Return the text of token IDs, without special tokens and without a space at the end."""
    return super().decode(ids).removesuffix(" ")


def read_pairs(merges: Sequence[str | Sequence[str]]) -> list[tuple[str, ...]]:
  """Return merges as pairs. Each merge is a pair, or a string with a space between two tokens."""
  pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
  if invalid := [pair for pair in pairs if len(pair) != 2]:
    raise ValueError(
      f"the merge {' '.join(invalid[0])!r:.80} must be two tokens with a space between"
    )
  return pairs
