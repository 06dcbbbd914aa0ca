"""Pairs of texts, reranking and zero-shot classification, with stand-ins for models."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_ask import WORDS, FakeEncoder

import ask
from models.hf_config import HFConfig
from tinyformer import cli
from tinyformer.cli import pair_tasks
from tinyformer.tasks import InputError, Prediction, RankedText, reranking, text_classification
from tinyformer.tasks.encoder import softmax
from tinyformer.tasks.zero_shot import EntailmentClassifier


class PairEncoder(FakeEncoder):
  """A FakeEncoder whose logits for a pair are `scores` of the words of its second text."""

  def __init__(self, scores, labels, context=64):
    super().__init__(None, labels, context)
    self.scores = scores

  def run_many(self, texts, segments=None):
    for i in reversed(range(len(texts))):
      assert len(texts[i]) <= self.context
      words = [WORDS[t] for t, s in zip(texts[i], segments[i], strict=True) if s == 1]
      self.inputs.append(texts[i])
      yield i, np.array(self.scores(words), np.float32)


def rank(query, texts, **options):
  encoder = PairEncoder(lambda words: [len(words)], ["LABEL_0"], **options)
  return reranking.rank_texts(encoder, query, texts, text_classification.identity)


def test_texts_are_sorted_by_their_scores_and_keep_their_indices():
  texts = ["paris", "the capital of france", "", "rome is"]
  # [SEP] is a token of the second text.
  assert rank("who ?", texts) == [
    RankedText(i, texts[i], n) for i, n in ((1, 5), (3, 3), (0, 2), (2, 1))
  ]


def test_a_query_and_a_text_are_truncated_to_the_context():
  [found] = rank("who ? " * 20, ["paris " * 30], context=23)
  assert found.score == 11  # 10 of the 20 tokens beside the three special ones, and [SEP]
  assert rank("who ?", ["paris " * 30], context=23)[0].score == 19


def entailment(text, labels, names=("contradiction", "neutral", "entailment"), **options):
  def scores(words):
    return [3.0 * ("rome" in words), 9.0, 2.0 * ("paris" in words)]

  encoder = PairEncoder(scores, list(names), options.pop("context", 64))
  return EntailmentClassifier(encoder, labels, "the {} .", **options)(text), encoder


def test_zero_shot_probabilities_are_those_of_entailment():
  predictions, encoder = entailment("ann lives in paris", ["rome", "paris"])
  assert [p.label for p in predictions] == ["paris", "rome"]
  np.testing.assert_allclose([p.score for p in predictions], softmax(np.array([2.0, 0.0])))
  assert [WORDS[i] for i in encoder.inputs[0]][-5:] == ["[SEP]", "the", "paris", ".", "[SEP]"]
  # The neutral logit does not count, and a label is compared with its contradiction.
  predictions, _ = entailment("ann", ["rome", "paris"], multi_label=True)
  expected = [softmax(np.array(pair))[1] for pair in ([0.0, 2.0], [3.0, 0.0])]
  np.testing.assert_allclose([p.score for p in predictions], expected)


@pytest.mark.parametrize("multi_label", [False, True])
def test_each_of_many_texts_has_the_zero_shot_probabilities_that_it_has_alone(multi_label):
  class TextEncoder(PairEncoder):
    """Its logits depend on the text and on the label."""

    def run_many(self, texts, segments):
      for i in reversed(range(len(texts))):
        label = texts[i][-3]
        yield i, np.array([texts[i][1] % 5, 0, label % texts[i][1] + len(texts[i]) / 9], np.float32)

  encoder = TextEncoder(None, ["contradiction", "neutral", "entailment"])
  classify = EntailmentClassifier(encoder, ["rome", "paris", "ann"], "the {} .", multi_label)
  texts = ["ann lives in paris", "who ?", "rome " * 80, "paris ."]
  alone = [classify(text) for text in texts]
  assert len({tuple(predictions) for predictions in alone}) == 4
  assert classify.classify_many(texts) == alone
  assert classify.classify_many([]) == []


def test_zero_shot_classification_truncates_the_text_and_not_the_hypothesis():
  _, encoder = entailment("ann " * 30, ["rome"], context=20)
  [ids] = encoder.inputs
  assert len(ids) == 20
  assert [WORDS[i] for i in ids][-4:] == ["the", "rome", ".", "[SEP]"]


@pytest.mark.parametrize(
  "labels, names, template, message",
  [
    (["a"], ["calm", "sad"], "{}", "no label for entailment (its labels are: calm, sad)"),
    ([], ["entailment", "x"], "{}", "pass at least one"),
    ("a,b", ["entailment", "x"], "{}", "a list of labels"),
    (["a"], ["entailment", "x"], "This is it.", "has no place for the label: add {}"),
    (["a"], ["entailment", "x"], "{0.__class__.x} {", "has no place for the label"),
  ],
)
def test_zero_shot_classification_refuses_what_it_cannot_do(labels, names, template, message):
  encoder = PairEncoder(None, names)
  with pytest.raises(InputError) as error:
    EntailmentClassifier(encoder, labels, template)
  assert message in str(error.value)


@pytest.mark.parametrize(
  "num_labels, config, logit, score",
  [
    (1, {}, 0.0, 0.5),
    (1, {"problem_type": "regression"}, 3.0, 3.0),
    (2, {"problem_type": "multi_label_classification"}, -900.0, 0.0),
    (2, {}, 1.0, 0.5),
  ],
)
def test_the_score_of_a_label_depends_on_the_problem_type(num_labels, config, logit, score):
  function = text_classification.score_function(HFConfig(config), num_labels, None)
  assert function(np.full(num_labels, logit)) == pytest.approx([score] * num_labels)
  # A CrossEncoder's own function is for one label.
  function = text_classification.score_function(HFConfig(config), num_labels, np.tanh)
  assert (function is np.tanh) == (num_labels == 1)


class FakeModel:
  """A text classifier that records what it is asked."""

  task = "text-classification"
  scores_are_probabilities = True

  def classify(self, text, top_k):
    return [Prediction(str(text), 0.25)][:top_k]

  def classify_zero_shot_many(self, texts, labels, template, multi_label):
    hypotheses = [template.format(label) for label in labels]
    return [[Prediction(f"{t} {h} {multi_label}", 0.5) for h in hypotheses] for t in texts]

  def rerank(self, query, texts, top_k=None):
    return [RankedText(i, texts[i], len(query) + i) for i in reversed(range(len(texts)))][:top_k]


def output(*argv):
  """Return the lines that ask.py prints with a FakeModel."""
  args = ask.parse_arguments(["-m", "x", *argv])
  pair_tasks.check_arguments(args)
  return [line for lines in ask.run_task(args, FakeModel(), args.text) for line in lines]


def test_ask_prints_pairs_labels_and_ranked_texts():
  assert output("--pair", "a", "b", "c", "d") == [" 25.0%  ('a', 'b')", " 25.0%  ('c', 'd')"]
  lines = output("--labels", "x, y,", "-k", "1", "a", "b")
  assert lines == [" 50.0%  a This example is x. False", " 50.0%  b This example is x. False"]
  lines = output("--labels", "x", "--multi-label", "--hypothesis-template", "Is {}!", "a")
  assert lines == [" 50.0%  a Is x! True"]
  assert output("--rerank", "who", "-k", "2", "a", "b", "c") == ["5.0000  c", "4.0000  b"]


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--pair", "a"], "--pair needs two texts for each pair, but got 1"),
    (["--pair", "--rerank", "q", "a"], "--pair and --rerank are different tasks"),
    (["--labels", " , ", "a"], "--labels has no label"),
    (["--multi-label", "a"], "--multi-label needs --labels"),
    (["--hypothesis-template", "{}", "a"], "--hypothesis-template needs --labels"),
    (["--pair", "--pair-column", "x", "a", "b"], "--pair-column needs --pair and --input"),
  ],
)
def test_options_for_pairs_that_do_not_fit_are_usage_errors(argv, message):
  with pytest.raises(cli.UsageError, match=message):
    output(*argv)


def test_rows_of_a_file_have_the_scores_of_their_texts():
  args = ask.parse_arguments(["-m", "x", "--rerank", "who", "--input", "a.txt"])
  task = pair_tasks.row_task(args, FakeModel(), {"model": "x"})
  assert task.function([("a",), ("b",), ("c",)]) == [3, 4, 5]
  assert task.settings == {"model": "x", "rerank": "who"}
  args = ask.parse_arguments(["-m", "x", "--labels", "x,y", "-k", "1", "--input", "a.txt"])
  task = pair_tasks.row_task(args, FakeModel(), {})
  assert task.function([("a",)]) == [[Prediction("a This example is x. False", 0.5)]]
  assert task.width == 1


def test_pairs_of_a_file_need_a_text_classifier():
  args = ask.parse_arguments(["-m", "x", "--pair", "--input", "a.csv"])
  with pytest.raises(cli.UsageError, match="not for fill-mask"):
    pair_tasks.row_task(args, SimpleNamespace(task="fill-mask"), {})
