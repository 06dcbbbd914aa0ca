"""Corpus BLEU (Papineni et al. 2002), with the same results as sacrebleu's default (Post 2018).

The default is case-sensitive, with the tokenization of mteval-v13a and exponential smoothing.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4
# Patterns and replacements of mteval-v13a: they put spaces around punctuation.
TOKENIZATION_RULES = (
  (r"([{-~\[-` -&(-+:-@/])", r" \1 "),
  (r"([^0-9])([.,])", r"\1 \2 "),
  (r"([.,])([^0-9])", r" \1 \2"),
  (r"([0-9])(-)", r"\1 \2 "),
)


def words(line: str) -> list[str]:
  """Split a line into words and punctuation marks, as mteval-v13a does.

  Periods and commas inside numbers are not split off.
  """
  line = line.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
  for escaped, plain in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
    line = line.replace(escaped, plain)
  line = f" {line} "
  for pattern, replacement in TOKENIZATION_RULES:
    line = re.sub(pattern, replacement, line)
  return line.split()


def ngrams(tokens: Sequence[str], n: int) -> Counter:
  """Return the n-grams of the tokens, with their counts."""
  return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
  """Return the BLEU score of a corpus, from 0 to 100, with one reference per translation.

  N-gram orders without a match count 1/2, 1/4, ... matches (exponential smoothing). Raises
  ValueError if the numbers of translations and references differ.
  """
  if len(translations) != len(references):
    raise ValueError(
      f"cannot compare {len(translations):,} translations with {len(references):,} references: "
      "pass one reference per translation"
    )
  pairs = [(words(t), words(r)) for t, r in zip(translations, references, strict=True)]
  length = sum(len(t) for t, _ in pairs)
  reference_length = sum(len(r) for _, r in pairs)
  log_precisions = 0.0
  smoothed_matches = 1.0
  any_match = False
  for n in range(1, MAX_ORDER + 1):
    # A Counter intersection clips each count to the reference's count.
    matches = sum((ngrams(t, n) & ngrams(r, n)).total() for t, r in pairs)
    total = sum(max(0, len(t) - n + 1) for t, _ in pairs)
    any_match |= matches > 0
    if not total or not any_match:
      return 0.0
    if not matches:
      smoothed_matches /= 2
    log_precisions += math.log((matches or smoothed_matches) / total)
  log_brevity_penalty = min(0.0, 1 - reference_length / length)
  return 100 * math.exp(log_precisions / MAX_ORDER + log_brevity_penalty)
