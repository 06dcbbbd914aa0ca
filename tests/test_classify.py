"""experiments/classify.py: data, tokenization, masking and the bag of words."""

import numpy as np
import pytest

from experiments.classify import (
  NUM_MASKED,
  Task,
  encode,
  load_questions,
  load_reviews,
  mask_tokens,
  predict_bag_of_words,
  read_lines,
)
from tinyformer import cli
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding


def test_bag_of_words_finds_the_informative_words_of_three_classes():
  """With shuffled labels, the accuracy drops."""
  rng = np.random.default_rng(0)
  class_words = ["good", "bad", "odd"]
  noise_words = [f"w{i}" for i in range(30)]

  def examples(count: int):
    labels = rng.integers(0, 3, count)
    return [" ".join([class_words[y], *rng.choice(noise_words, 6)]) for y in labels], labels

  train, train_labels = examples(300)
  test, test_labels = examples(100)
  predictions = predict_bag_of_words(Task(train, train_labels, test, test_labels, 0, 0))
  assert (predictions == test_labels).all()
  shuffled_labels = rng.permutation(train_labels)
  predictions = predict_bag_of_words(Task(train, shuffled_labels, test, test_labels, 0, 0))
  assert (predictions == test_labels).mean() < 0.6


def test_bag_of_words_predicts_the_most_frequent_class_for_unknown_words():
  train = ["a b", "a b", "c d", "a c", "b d"]
  train_labels = np.array([1, 1, 0, 1, 1])
  task = Task(train, train_labels, ["x y", "c d"], np.array([1, 0]), 0, 0)
  assert predict_bag_of_words(task)[0] == 1


def test_encoded_sentences_begin_with_the_class_token_and_are_truncated_or_padded():
  tokenizer = BytePairEncoding.train(["a b"], 257)
  ids = encode(tokenizer, ["ab", "abcdefgh"], 5)
  class_token, padding = len(tokenizer) - 1, len(tokenizer) + 1
  assert ids.tolist() == [
    [class_token, *tokenizer.encode(" ab"), padding],
    [class_token, *tokenizer.encode(" abc")],
  ]


def test_masking_changes_only_the_selected_tokens_and_never_padding():
  vocab_size, length = 50, 20
  ids = np.full((200, length), vocab_size + 1, np.int32)
  rng = np.random.default_rng(0)
  for row, n in zip(ids, rng.integers(2, length + 1, 200), strict=True):
    row[:n] = [vocab_size - 1, *rng.integers(0, vocab_size - 1, n - 1)]
  masked_ids, positions, targets = mask_tokens(ids, vocab_size, np.random.default_rng(1))
  selected = targets >= 0
  assert (np.take_along_axis(ids, positions, 1)[selected] == targets[selected]).all()
  assert (targets[selected] < vocab_size - 1).all()
  num_tokens = (ids < vocab_size - 1).sum(1)
  assert (selected.sum(1) == np.minimum(num_tokens, NUM_MASKED)).all()
  may_change = np.zeros(ids.shape, bool)
  np.put_along_axis(may_change, positions, selected, 1)
  assert (masked_ids == ids)[~may_change].all()
  replacements = np.take_along_axis(masked_ids, positions, 1)[selected]
  assert 0.75 < (replacements == vocab_size).mean() < 0.85
  assert 0.07 < (replacements == targets[selected]).mean() < 0.14
  assert (replacements <= vocab_size).all()


def write_data(folder, count: int = 40):
  """Write small files in the formats of both data sets; return the folder."""
  (folder / "rt-polarity").mkdir()
  (folder / "trec").mkdir()
  for name in ("neg", "pos"):
    text = "".join(f"{name} É {i} \n" for i in range(count))
    (folder / "rt-polarity" / f"rt-polarity.{name}").write_bytes(text.encode("latin-1"))
  (folder / "trec" / "TREC.train.all").write_text("0 How ?\n5 When is It ?\n")
  (folder / "trec" / "TREC.test.all").write_text("3 Who ?\n")
  return folder


def test_the_split_of_the_reviews_is_disjoint_and_constant(tmp_path):
  task = load_reviews(write_data(tmp_path))
  assert len(task.train) == 72
  assert len(task.test) == 8
  assert not set(task.train) & set(task.test)
  for texts, labels in ((task.train, task.train_labels), (task.test, task.test_labels)):
    for text, label in zip(texts, labels, strict=True):
      assert text.startswith(("neg é", "pos é")[label])
  assert load_reviews(tmp_path).test == task.test


def test_questions_use_the_official_test_set(tmp_path):
  task = load_questions(write_data(tmp_path))
  assert task.train == ["how ?", "when is it ?"]
  assert task.train_labels.tolist() == [0, 5]
  assert task.test == ["who ?"]
  assert task.test_labels.tolist() == [3]


def test_missing_data_raise_an_error_that_names_the_expected_files(tmp_path):
  with pytest.raises(cli.UsageError, match=r"rt-polarity\.pos.*TREC\.train\.all"):
    read_lines(tmp_path / "rt-polarity" / "rt-polarity.neg")
