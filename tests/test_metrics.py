"""BLEU: tokenization, precisions, smoothing and brevity penalty, compared with sacrebleu."""

import math

import numpy as np
import pytest

from tinyformer.training.metrics import bleu, words

SENTENCES = [
  "A man in a blue shirt is standing on a ladder cleaning a window.",
  'Two men are at the stove preparing food, "quickly".',
  "It costs $3,000.50 - or 1-2 &amp; more!",
  "People are fixing the roof of a house.",
  "a",
  "",
  "A dog.Runs (fast); it's 5,5-ish <skipped>...",
  "¿Qué? Ça va — naïve 東京。",
]


def random_corpus(count: int, seed: int) -> list[str]:
  """Return `count` lines: the SENTENCES in order, with 40% of them replaced by random words.

  Two of these corpora have matches of every n-gram order.
  """
  rng = np.random.default_rng(seed)
  vocabulary = [word for sentence in SENTENCES for word in sentence.split(" ")]
  return [
    " ".join(rng.choice(vocabulary, rng.integers(0, 15)))
    if rng.random() < 0.4
    else SENTENCES[i % len(SENTENCES)]
    for i in range(count)
  ]


def test_punctuation_is_split_off_except_inside_numbers():
  expected = "It costs $ 3,000.50 , 1 - 2 ( or & more ) ."
  assert words("It costs $3,000.50, 1-2 (or &amp;more).") == expected.split(" ")


def test_bleu_is_100_for_the_references_and_0_without_a_matching_word():
  assert bleu(SENTENCES, SENTENCES) == pytest.approx(100)
  assert bleu(["nothing right here"] * 8, SENTENCES) == 0
  assert bleu([""] * 8, SENTENCES) == 0


def test_bleu_equals_the_formula_of_papineni_et_al():
  """3 of 4 words match, 1 of 3 bigrams, 0 of 2 trigrams (counted as 1/2) and 0 of 1 4-grams (1/4).

  The translation is two words shorter than the reference.
  """
  precisions = 3 / 4 * 1 / 3 * 0.5 / 2 * 0.25 / 1
  expected = 100 * precisions**0.25 * math.exp(1 - 6 / 4)
  assert bleu(["the cat sat mat"], ["the cat is on the mat"]) == pytest.approx(expected)


def test_word_counts_are_clipped_to_the_counts_of_the_reference():
  precisions = 2 / 7 * 0.5 / 6 * 0.25 / 5 * 0.125 / 4
  actual = bleu(["the the the the the the the"], ["the cat is on the mat now"])
  assert actual == pytest.approx(100 * precisions**0.25)


def test_different_numbers_of_translations_and_references_are_an_error():
  with pytest.raises(ValueError, match="cannot compare 2 translations with 1 references"):
    bleu(["a", "b"], ["a"])


def test_bleu_equals_sacrebleu():
  sacrebleu = pytest.importorskip(
    "sacrebleu", reason="sacrebleu is not installed: run pip install -e '.[reference]'"
  )
  for seed in range(40):
    translations = random_corpus(1 + seed, seed)
    references = random_corpus(1 + seed, 100 + seed)
    expected = sacrebleu.corpus_bleu(translations, [references]).score
    assert bleu(translations, references) == pytest.approx(expected, abs=1e-9)
