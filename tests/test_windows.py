"""Long texts in windows that overlap, and how labels of tokens form entities."""

import argparse
import itertools

import numpy as np
import pytest
from test_ask import WORDS, FakeEncoder

import ask
from tinyformer import cli
from tinyformer.tasks import Entity, InputError
from tinyformer.tasks.question_answering import answer_question
from tinyformer.tasks.token_classification import STRATEGIES, tag_words, without_overlaps
from tinyformer.tasks.windows import windows

LABELS = ["O", "B-PER", "I-PER", "B-LOC"]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 29])
@pytest.mark.parametrize("stride", [0, 3, 7])
def test_windows_cover_a_text_and_have_the_stride_in_common(length, stride):
  found = list(windows(length, 8, stride))
  assert sorted({i for start, end in found for i in range(start, end)}) == list(range(length))
  assert all(end - start == 8 for start, end in found[:-1])
  for (_, end), (next_start, next_end) in itertools.pairwise(found):
    assert end - next_start == stride
    assert end < next_end  # otherwise the second window would be part of the first


def tagger(probabilities, context=64):
  """Return an encoder that gives each word of WORDS its logits, and the others those of O."""
  o = np.array([9.0, 0, 0, 0])

  def output(ids, _):
    words = [WORDS[i] for i in ids]
    return np.array([np.log(probabilities[w]) if w in probabilities else o for w in words])

  return FakeEncoder(output, LABELS, context)


def test_aggregation_strategies_choose_the_label_of_a_word():
  # "Lees" has the tokens lee and ##s.
  encoder = tagger(
    {"ann": [0.1, 0.7, 0.1, 0.1], "lee": [0.5, 0.1, 0.3, 0.1], "##s": [0.05, 0.1, 0.2, 0.65]}
  )

  def tag(strategy):
    entities = tag_words(encoder, "Ann Lees", strategy)
    return [(e.label, e.text, round(e.score, 4)) for e in entities]

  person = ("PER", "Ann", 0.7)
  assert tag("simple") == [person, ("LOC", "s", 0.65)]
  assert tag("first") == tag(None) == [person]
  assert tag("average") == [person, ("LOC", "Lees", 0.375)]
  assert tag("max") == [person, ("LOC", "Lees", 0.65)]


def test_an_entity_ends_before_a_label_that_begins_another_one():
  labels = {"ann": 1, "lee": 2, "paris": 3, "rome": 3}
  encoder = tagger({word: np.eye(4)[i] * 0.9 + 0.025 for word, i in labels.items()})
  entities = tag_words(encoder, "ann lee ann paris rome", "first")
  assert [(e.label, e.text) for e in entities] == [
    ("PER", "ann lee"),
    ("PER", "ann"),
    ("LOC", "paris"),
    ("LOC", "rome"),
  ]


@pytest.mark.parametrize("strategy", [*STRATEGIES, None])
def test_the_entities_of_a_long_text_are_those_of_its_windows(strategy):
  labels = {"ann": 1, "lee": 2, "paris": 3}
  text = "the " * 13 + "ann lee lee lives in paris . " + "is " * 17 + "ann lee"
  probabilities = {word: np.eye(4)[i] * 0.9 + 0.025 for word, i in labels.items()}
  expected = tag_words(tagger(probabilities), text, strategy)
  assert [e.text for e in expected] == ["ann lee lee", "paris", "ann lee"]
  encoder = tagger(probabilities, context=18)
  entities = tag_words(encoder, text, strategy, stride=6)
  assert [e[:4] for e in entities] == [e[:4] for e in expected]
  assert len(encoder.inputs) == 4
  # An entity on the border of two windows is in both, and the longer one is kept.
  assert tag_words(encoder, text, strategy) == entities


def test_of_two_entities_that_overlap_the_longer_or_the_more_probable_is_kept():
  def entity(start, end, score=0.5):
    return Entity("X", "", start, end, score)

  first, middle, last = entity(0, 4), entity(3, 6), entity(5, 9)
  assert without_overlaps([last, first, middle]) == [first, last]
  assert without_overlaps([entity(0, 4, 0.6), entity(0, 4, 0.7)]) == [entity(0, 4, 0.7)]
  assert without_overlaps([entity(0, 4, 0.6), entity(2, 7, 0.1)]) == [entity(2, 7, 0.1)]
  assert without_overlaps([]) == []


def answers(passage, *options, context=64):
  """Return the answers and the number of windows. An answer is from "ann" to "rome"."""

  def output(ids, _):
    words = [WORDS[i] for i in ids]
    return 9.0 * np.array([[w == "ann", w == "rome"] for w in words])

  encoder = FakeEncoder(output, context=context)
  return answer_question(encoder, "who", passage, 1, *options), len(encoder.inputs)


def test_doc_stride_and_max_seq_len_determine_the_windows_of_a_passage():
  passage = "the " * 20 + "ann lives in rome " + "the " * 16
  # Windows of 6 tokens, beside the question and three special tokens.
  [[best], count] = answers(passage, 3, 10)
  assert best.text == "ann lives in rome"
  assert count == 1 + -(-(40 - 6) // 3)
  # Without overlap, no window has all of the answer.
  [[best], count] = answers(passage, 0, 12)
  assert (best.text, count) == ("ann lives in rome", 5)
  [[best], _] = answers("the " * 8 + passage, 0, 14)
  assert best.text != "ann lives in rome"
  assert answers(passage)[1] == 1
  assert answers(passage, context=40)[1] == 2
  assert answers("")[0] == []


def test_an_answer_is_less_probable_if_the_first_token_says_no_answer():
  def score(no_answer):
    def output(ids, _):
      return np.array([[no_answer] * 2 if i == 2 else [0.0, 0.0] for i in ids])

    return answer_question(FakeEncoder(output), "who", "ann lives")[0].score

  assert score(0.0) == pytest.approx(1 / 9)
  assert score(9.0) < 1e-6


def test_a_stride_that_is_not_less_than_a_window_is_refused():
  encoder = tagger({}, context=10)
  with pytest.raises(InputError, match="use a stride from 0 to 7"):
    tag_words(encoder, "the " * 30, "first", 8)
  with pytest.raises(InputError, match="use a stride from 0 to 5"):
    answer_question(encoder, "is", "the " * 30, 1, 6)


def test_an_unknown_strategy_is_refused():
  with pytest.raises(InputError, match="the strategy 'mean' is unknown: use simple, first"):
    tag_words(tagger({}), "the", "mean")


@pytest.mark.parametrize(
  "option, task, message",
  [
    ("stride", "fill-mask", "needs a model for token-classification or question-answering"),
    ("max_seq_len", "token-classification", "--max-seq-len needs a model for question-answering"),
    ("aggregation_strategy", "question-answering", "--aggregation-strategy needs"),
  ],
)
def test_options_for_long_texts_need_their_tasks(option, task, message):
  options = dict.fromkeys(("stride", "max_seq_len", "aggregation_strategy"))
  ask.check_window_options(argparse.Namespace(**options), task)
  with pytest.raises(cli.UsageError, match=message):
    ask.check_window_options(argparse.Namespace(**options | {option: 1}), task)
