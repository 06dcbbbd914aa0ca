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


def made(count: int, seed: int) -> list[str]:
  """Sentences with some of the words of others: every number of words in a row is right now and then."""
  draw, vocabulary = np.random.default_rng(seed), [w for s in SENTENCES for w in s.split(" ")]
  return [
    " ".join(draw.choice(vocabulary, draw.integers(0, 15)))
    if draw.random() < 0.4
    else SENTENCES[i % len(SENTENCES)]
    for i in range(count)
  ]


def test_punctuation_is_apart_but_within_numbers():
  assert words("It costs $3,000.50, 1-2 (or &amp;more).") == [
    "It",
    "costs",
    "$",
    "3,000.50",
    ",",
    "1",
    "-",
    "2",
    "(",
    "or",
    "&",
    "more",
    ")",
    ".",
  ]


def test_a_corpus_that_is_its_reference_scores_100_and_one_without_a_right_word_0():
  assert bleu(SENTENCES, SENTENCES) == pytest.approx(100)
  assert bleu(["nothing right here"] * 8, SENTENCES) == 0 == bleu([""] * 8, SENTENCES)


def test_bleu_is_papineni_s_formula():
  """3 of 4 words, 1 of 3 pairs, no 3 in a row of 2, for which 1/2 stands, and no 4 of 1, 1/4; two words too short."""
  assert bleu(["the cat sat mat"], ["the cat is on the mat"]) == pytest.approx(
    100 * (3 / 4 * 1 / 3 * 0.5 / 2 * 0.25 / 1) ** 0.25 * math.exp(1 - 6 / 4)
  )


def test_a_word_counts_no_oftener_than_the_reference_has_it():
  assert bleu(["the the the the the the the"], ["the cat is on the mat now"]) == pytest.approx(
    100 * (2 / 7 * 0.5 / 6 * 0.25 / 5 * 0.125 / 4) ** 0.25
  )


def test_as_many_translations_as_references_are_wanted():
  with pytest.raises(ValueError, match="2 translations cannot be held against 1 references"):
    bleu(["a", "b"], ["a"])


def test_bleu_is_sacrebleu_s():
  sacrebleu = pytest.importorskip(
    "sacrebleu", reason="sacrebleu is not installed: pip install -e '.[reference]' brings it"
  )
  for seed in range(40):
    translations, references = made(1 + seed, seed), made(1 + seed, 100 + seed)
    assert bleu(translations, references) == pytest.approx(
      sacrebleu.corpus_bleu(translations, [references]).score, abs=1e-9
    )
