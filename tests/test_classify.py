import numpy as np
import pytest

from experiments.classify import GUESSED, Task, counted, encode, lines, masked, questions, reviews
from tinyformer import cli
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding


def test_counted_words_find_the_word_that_tells():
  """Also one among many that do not, and for three classes; a word that one sentence alone has counts for nothing."""
  draw, tell = np.random.default_rng(0), ["good", "bad", "odd"]

  def made(count: int):
    labels = draw.integers(0, 3, count)
    return [
      " ".join([tell[y], *draw.choice([f"w{i}" for i in range(30)], 6)]) for y in labels
    ], labels

  (learn, learned), (test, wanted) = made(300), made(100)
  assert (counted(Task(learn, learned, test, wanted, 0, 0)) == wanted).all()
  assert (
    counted(Task(learn, draw.permutation(learned), test, wanted, 0, 0)) == wanted
  ).mean() < 0.6


def test_of_unknown_words_the_commonest_class_is_said():
  task = Task(
    ["a b", "a b", "c d", "a c", "b d"],
    np.array([1, 1, 0, 1, 1]),
    ["x y", "c d"],
    np.array([1, 0]),
    0,
    0,
  )
  assert counted(task)[0] == 1


def test_sentences_become_rows_with_a_place_for_the_class_first():
  tokenizer = BytePairEncoding.train(["a b"], 257)
  ids = encode(tokenizer, ["ab", "abcdefgh"], 5)
  end, pad = len(tokenizer) - 1, len(tokenizer) + 1
  assert ids.tolist() == [[end, *tokenizer.encode(" ab"), pad], [end, *tokenizer.encode(" abc")]]


def test_masked_words_are_where_they_are_said_to_be_and_padding_is_none():
  vocab, length = 50, 20
  ids = np.full((200, length), vocab + 1, np.int32)
  draw = np.random.default_rng(0)
  for row, n in zip(ids, draw.integers(2, length + 1, 200)):
    row[:n] = [vocab - 1, *draw.integers(0, vocab - 1, n - 1)]
  ff_dim, places, was = masked(ids, vocab, np.random.default_rng(1))
  there = was >= 0
  assert (np.take_along_axis(ids, places, 1)[there] == was[there]).all() and (
    was[there] < vocab - 1
  ).all()
  assert (there.sum(1) == np.minimum((ids < vocab - 1).sum(1), GUESSED)).all()
  changed = np.zeros(ids.shape, bool)
  np.put_along_axis(changed, places, there, 1)
  assert (ff_dim == ids)[~changed].all()
  new = np.take_along_axis(ff_dim, places, 1)[there]
  assert (
    0.75 < (new == vocab).mean() < 0.85
    and 0.07 < (new == was[there]).mean() < 0.14
    and (new <= vocab).all()
  )


def data(folder, count: int = 40):
  (folder / "rt-polarity").mkdir()
  (folder / "trec").mkdir()
  for name in ("neg", "pos"):
    (folder / "rt-polarity" / f"rt-polarity.{name}").write_bytes(
      "".join(f"{name} É {i} \n" for i in range(count)).encode("latin-1")
    )
  (folder / "trec" / "TREC.train.all").write_text("0 How ?\n5 When is It ?\n")
  (folder / "trec" / "TREC.test.all").write_text("3 Who ?\n")
  return folder


def test_reviews_are_split_once_and_for_all(tmp_path):
  task = reviews(data(tmp_path))
  assert len(task.learn) == 72 and len(task.test) == 8 and not set(task.learn) & set(task.test)
  assert all(
    text.startswith(("neg é", "pos é")[y])
    for texts, labels in ((task.learn, task.learn_labels), (task.test, task.test_labels))
    for text, y in zip(texts, labels)
  )
  assert reviews(tmp_path).test == task.test


def test_questions_have_their_own_test(tmp_path):
  task = questions(data(tmp_path))
  assert (
    task.learn == ["how ?", "when is it ?"]
    and task.learn_labels.tolist() == [0, 5]
    and task.test == ["who ?"]
    and task.test_labels.tolist() == [3]
  )


def test_data_that_are_absent_are_named_with_what_belongs_there(tmp_path):
  with pytest.raises(cli.Usage, match="rt-polarity.pos.*TREC.train.all"):
    lines(tmp_path / "rt-polarity" / "rt-polarity.neg")
