"""Bugs planted in tinyformer/tokenization; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "SentencePiece does not insert a space before the text",
    "tinyformer/tokenization/sentencepiece.py",
    "Model.prepare",
    'steps.append(normalizers.prepend("▁"))',
    "pass",
    "sentencepiece",
  ),
  Bug(
    "adjacent unknown tokens start at the last of them",
    "tinyformer/tokenization/sentencepiece.py",
    "SentencePiece.tokenize",
    "spans.pop()[1] if after_unknown else part.starts[start]",
    "part.starts[start]",
    "sentencepiece",
  ),
  Bug(
    "Viterbi does not find the segmentation with the highest score",
    "tinyformer/tokenization/sentencepiece.py",
    "viterbi",
    "round_sum(best[start] + score)) > best[end]",
    "round_sum(best[start] + score)) > -best[end]",
    "sentencepiece",
  ),
  Bug(
    "the second text has the segment of the first text",
    "tinyformer/tokenization/base.py",
    "Tokenizer.pair",
    "[self.second] * len(second)",
    "[0] * len(second)",
    "wordpiece",
  ),
  Bug(
    "a character vocabulary lacks the merge of the last byte of each character",
    "tinyformer/tokenization/byte_level_bpe.py",
    "BytePairEncoding.characters",
    "for n in range(1, len(encoded))",
    "for n in range(1, len(encoded) - 1)",
    "byte_level_bpe",
  ),
  Bug(
    "BPE training merges the smallest of several most frequent pairs",
    "tinyformer/tokenization/byte_level_bpe.py",
    "ReverseOrder.__lt__",
    "return self.pair > other.pair",
    "return self.pair < other.pair",
    "byte_level_bpe",
  ),
]
