"""BLEU of a corpus (Papineni et al. 2002), counted as sacrebleu does by default, so that the numbers can be compared (Post 2018): tokens of mteval-v13a, large and small letters apart."""

import math
import re
from collections import Counter
from collections.abc import Sequence

STEPS = (
  (r"([{-~\[-` -&(-+:-@/])", r" \1 "),
  (r"([^0-9])([.,])", r"\1 \2 "),
  (r"([.,])([^0-9])", r" \1 \2"),
  (r"([0-9])(-)", r"\1 \2 "),
)


def words(line: str) -> list[str]:
  """Punctuation by itself, but for the point and the comma within a number."""
  line = line.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
  for escaped, plain in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
    line = line.replace(escaped, plain)
  line = f" {line} "
  for pattern, new in STEPS:
    line = re.sub(pattern, new, line)
  return line.split()


def grams(tokens: Sequence[str], n: int) -> Counter:
  return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
  """0 to 100, of translations with a reference each. Where no n words in a row are right, 1/2, 1/4 ... stand for that 0. Raises ValueError for other numbers of them."""
  if len(translations) != len(references):
    raise ValueError(
      f"{len(translations):,} translations cannot be held against {len(references):,} references"
    )
  pairs = [(words(t), words(r)) for t, r in zip(translations, references)]
  length, wanted = (sum(len(pair[i]) for pair in pairs) for i in range(2))
  logs, half, any_right = 0.0, 1.0, False
  for n in range(1, 5):
    right, total = (
      sum((grams(t, n) & grams(r, n)).total() for t, r in pairs),
      sum(max(0, len(t) - n + 1) for t, _ in pairs),
    )
    any_right |= right > 0
    if not total or not any_right:
      return 0.0
    if not right:
      half /= 2
    logs += math.log((right or half) / total)
  return 100 * math.exp(logs / 4 + min(0.0, 1 - wanted / length))
