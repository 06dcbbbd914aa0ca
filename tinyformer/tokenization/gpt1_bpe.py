"""The first GPT's tokens: BERT's words, in small letters, made of letters by byte-pair merges; a word's last piece ends in </w> (Radford et al. 2018, sec. 4.1)."""

import json
from collections.abc import Iterable
from pathlib import Path

from tinyformer.tokenization.base import Files, file_errors
from tinyformer.tokenization.sentencepiece import merge
from tinyformer.tokenization.wordpiece import WordPiece

END = "</w>"


class WordPairs(WordPiece):
  """merges: the pairs that are joined, in their order. A letter that is no piece is unknown. As transformers has it where spaCy and ftfy are not installed."""

  continuation_joiner = " "  # a text that goes on begins a word

  def __init__(
    self, vocab: dict[str, int], merges: list[tuple[str, ...]], specials: dict[str, int]
  ):
    super().__init__(vocab, unknown="<unk>", specials=specials)
    self.ranks = {pair: float(n) for n, pair in enumerate(merges)}
    self.tokens |= {
      i: piece.replace(END, " ").encode() for piece, i in vocab.items() if piece not in specials
    }

  @classmethod
  def load(cls, folder: str | Path) -> "WordPairs":
    """From tokenizer.json, or else vocab.json and merges.txt. Raises FileNotFoundError, or ValueError for damaged files."""
    files = Files(folder)
    with file_errors(path := files.folder / ("tokenizer.json" if files.full else "vocab.json")):
      vocab = (
        files.full["model"]["vocab"] if files.full else json.loads(path.read_text(encoding="utf-8"))
      )
      unknown = vocab["<unk>"]
    with file_errors(path if files.full else (path := files.folder / "merges.txt")):
      lines = (
        files.full["model"]["merges"]
        if files.full
        else [
          line
          for line in path.read_text(encoding="utf-8").split("\n")
          if line and not line.startswith("#version")
        ]
      )
      pairs = [tuple(line.split(" ")) if isinstance(line, str) else tuple(line) for line in lines]
      if strange := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"{' '.join(strange[0])!r} is no pair of tokens")
      return cls(vocab, pairs, files.specials(vocab) | {"<unk>": unknown})

  def pieces(self, word: str) -> list[tuple[str, int]]:
    pieces = merge([*word[:-1], word[-1] + END], lambda a, b: self.ranks.get((a, b)))
    return [
      (piece if piece in self.vocab else self.unknown, len(piece.removesuffix(END)))
      for piece in pieces
    ]

  def decode(self, ids: Iterable[int]) -> str:
    return super().decode(ids).removesuffix(" ")
