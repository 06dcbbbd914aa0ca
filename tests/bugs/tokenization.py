"""Bugs planted in tinyformer/tokenization; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "a text not begun with a blank",
    "tinyformer/tokenization/sentencepiece.py",
    "Model.prepare",
    '*([normalizers.prepend("▁")] if self.dummy else []), ',
    "",
    "sentencepiece",
  ),
  Bug(
    "unknown neighbours not one token",
    "tinyformer/tokenization/sentencepiece.py",
    "SentencePiece.tokenize",
    "spans.pop()[1] if fused else s.starts[a]",
    "s.starts[a]",
    "sentencepiece",
  ),
  Bug(
    "the least likely cut",
    "tinyformer/tokenization/sentencepiece.py",
    "viterbi",
    "rounded(best[i] + score)) > best[j]",
    "rounded(best[i] + score)) > -best[j]",
    "sentencepiece",
  ),
  Bug(
    "the second sentence in the first's segment",
    "tinyformer/tokenization/base.py",
    "Tokenizer.pair",
    "[self.second] * len(second)",
    "[0] * len(second)",
    "wordpiece",
  ),
  Bug(
    "characters split in bytes",
    "tinyformer/tokenization/byte_level_bpe.py",
    "BytePairEncoding.characters",
    "for b in map(str.encode, letters) for n in range(1, len(b))",
    "for b in map(str.encode, letters) for n in range(1, len(b) - 1)",
    "byte_level_bpe",
  ),
  Bug(
    "merges of the smallest pair first",
    "tinyformer/tokenization/byte_level_bpe.py",
    "Largest.__lt__",
    "return self.pair > other.pair",
    "return self.pair < other.pair",
    "byte_level_bpe",
  ),
]
