"""ask.py as users run it, with small models, and its functions with a fake encoder."""

import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, with_head
from tinygrad import Tensor

import ask
import gpt
from tinyformer import checkpoints, cli, tokenization
from tinyformer.generation import GenerationConfig, generate_seq2seq
from tinyformer.tasks.question_answering import answer_question
from tinyformer.tasks.token_classification import tag_words
from tinyformer.tokenization.wordpiece import WordPiece

WORDS = [
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  "the",
  "capital",
  "of",
  "france",
  "is",
  "paris",
  ".",
  ",",
  "##s",
  "who",
  "?",
  "ann",
  "lee",
  "lives",
  "in",
  "rome",
  *"abcdefghijklmnopqrstuvwxyz",
]
WORDS += [f"w{i}" for i in range(61 - len(WORDS))]


def small_berts(tmp_path_factory):
  """Return a function: a head's name -> the folder of a small BERT with this head."""
  folders = {}

  def make(head):
    if head not in folders:
      folders[head] = with_head("bert-a", head, tmp_path_factory.mktemp(head))
      (folders[head] / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folders[head]

  return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return small_berts(tmp_path_factory)


def run(capsys, *argv):
  """Run ask.py; return its exit status, standard output and standard error."""
  try:
    status = cli.run(lambda: ask.main([str(argument) for argument in argv]))
  except SystemExit as e:
    status = e.code
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def parse(output):
  """Return (probability, name) of each line of an output."""
  pairs = [line.split("%") for line in output.splitlines() if line]
  return [(float(pair[0]) / 100, pair[1].strip()) for pair in pairs]


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_fill_mask_prints_the_most_probable_tokens(capsys, folder):
  path = folder("ForMaskedLM")
  status, out, err = run(capsys, "-m", path, "The capital of France is [MASK].")
  ids = [2, 5, 6, 7, 8, 9, 4, 11, 3]
  probabilities = softmax(checkpoints.load_module(path)(Tensor([ids])).numpy()[0, 6])
  assert (status, err) == (0, "")
  assert parse(out) == [
    (pytest.approx(probabilities[i], abs=6e-4), WORDS[i].removeprefix("##"))
    for i in np.argsort(-probabilities)[:5]
  ]
  # <mask> is RoBERTa's mask token.
  assert run(capsys, "-m", path, "The capital of France is <mask>.")[1] == out
  two_masks = run(capsys, "-m", path, "-k", "1", "[MASK] is [MASK]")[1]
  assert len(parse(two_masks)) == 2
  assert "\n\n" in two_masks


def test_text_classification_prints_the_models_probabilities(capsys, folder):
  path = folder("ForSequenceClassification")
  out = run(capsys, "-m", path, "who lives in rome?")[1]
  ids = [2, 14, 18, 19, 20, 15, 3]
  probabilities = softmax(checkpoints.load_module(path)(Tensor([ids])).numpy()[0])
  expected = dict(zip(("calm", "glad", "sad", "wry"), probabilities, strict=True))
  actual = {label: probability for probability, label in parse(out)}
  assert actual == {label: pytest.approx(p, abs=6e-4) for label, p in expected.items()}


def test_each_text_has_its_own_output_also_from_standard_input(capsys, folder, monkeypatch):
  path = folder("ForSequenceClassification")
  texts = ("who lives in rome?", "the capital")
  expected = "\n".join(run(capsys, "-m", path, text)[1] for text in texts)
  assert run(capsys, "-m", path, *texts)[1] == expected
  data = "\n\n".join(texts) + "\n"
  monkeypatch.setattr(
    sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.encode()), isatty=lambda: False)
  )
  assert run(capsys, "-m", path)[1] == expected


def test_an_embedding_is_the_mean_hidden_state_and_equal_texts_have_similarity_1(capsys, folder):
  path = folder("Model")
  embedding = np.array(run(capsys, "-m", path, "paris")[1].split(), dtype=float)
  expected = checkpoints.load_module(path)(Tensor([[2, 10, 3]])).numpy()[0].mean(0)
  np.testing.assert_allclose(embedding, expected, atol=2e-6)
  lines = run(capsys, "-m", path, "paris", "rome is", "paris")[1].splitlines()
  assert len(lines) == 3
  assert lines[1] == "1.0000  paris  |  paris"
  assert not lines[0].startswith("1.0000")


class FakeEncoder:
  """Replace an Encoder: `output` computes the rows from the token IDs and the segments."""

  def __init__(self, output, labels=(), context=64):
    self.output = output
    self.context = context
    self.module = SimpleNamespace(labels=labels)
    self.inputs = []
    self.tokenizer = WordPiece({word: i for i, word in enumerate(WORDS)})
    self.tokenizer.prefix_ids = [2]
    self.tokenizer.sep_ids = [3]
    self.tokenizer.suffix_ids = [3]
    self.tokenizer.second = 1

  def __call__(self, ids, segments=None):
    assert len(ids) <= self.context
    self.inputs.append(ids)
    return self.output(ids, segments)


def test_an_entity_of_several_words_is_one_and_a_word_has_its_first_tokens_label():
  labels = ["O", "B-PER", "I-PER", "B-LOC"]
  label_ids = {"ann": 1, "lee": 2, "##s": 0, "rome": 3, "paris": 3}

  def output(ids, _):
    return np.array([np.eye(4)[label_ids.get(WORDS[i], 0)] * 20 for i in ids])

  encoder = FakeEncoder(output, labels)
  text = "Ann Lees lives in Rome, Paris."
  entities = tag_words(encoder, text)
  assert [(e.label, e.text) for e in entities] == [
    ("PER", "Ann Lees"),
    ("LOC", "Rome"),
    ("LOC", "Paris"),
  ]
  assert all(text[e.start : e.end] == e.text and e.score > 0.999 for e in entities)


def test_the_best_answer_is_found_in_a_later_window_of_the_passage():
  passage = "Who is the. " * 40 + "Ann  lives in Rome." + " who" * 20

  def output(ids, segments):
    assert segments[:4] == [0] * 4
    assert segments[4] == 1
    words = [WORDS[i] for i in ids]
    # The question, which ends with "?", must not be part of an answer.
    start = np.array([9.0 if w == "ann" else 8.0 if w == "?" else 0.0 for w in words])
    end = np.array([9.0 if w in ("rome", "?") else 0.0 for w in words])
    return np.stack([start, end], -1)

  encoder = FakeEncoder(output, context=100)
  [best] = answer_question(encoder, "who?", passage, 1)
  assert best.text == "Ann  lives in Rome" == passage[best.start : best.end]
  assert len(encoder.inputs) > 2
  assert all(len(ids) <= 100 for ids in encoder.inputs)


def test_an_answer_does_not_end_before_it_starts():
  def output(ids, _):
    start = np.array([9.0 if WORDS[i] == "rome" else 0.0 for i in ids])
    end = np.array([9.0 if WORDS[i] == "ann" else 0.0 for i in ids])
    return np.stack([start, end], -1)

  answers = answer_question(FakeEncoder(output), "who", "ann lives in rome", 3)
  assert len(answers) == 3
  # An answer that ends before it starts would be empty.
  assert all(a.text for a in answers)


def test_answers_are_parts_of_the_passage(capsys, folder):
  passage = "ann lee lives in rome."
  path = folder("ForQuestionAnswering")
  status, out, _ = run(capsys, "-m", path, "-k", "2", "who lives in rome?", passage)
  assert status == 0
  assert len(parse(out)) == 2
  assert all(answer in passage for _, answer in parse(out))


def unigram(path, _vocab_size):
  """Write a tokenizer.json like T5's, whose tokens are letters and the space."""
  special = ["<pad>", "</s>", "<unk>"]
  scores = [(token, 0.0) for token in special]
  scores += [("▁", -2.0), *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  metaspace = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "always",
    "split": True,
  }
  a = {"Sequence": {"id": "A", "type_id": 0}}
  b = {"Sequence": {"id": "B", "type_id": 0}}
  end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
  tokenizer = {
    "version": "1.0",
    "added_tokens": [
      {"id": i, "content": token, "special": True, **flags} for i, token in enumerate(special)
    ],
    "normalizer": None,
    "pre_tokenizer": metaspace,
    "post_processor": {
      "type": "TemplateProcessing",
      "single": [a, end],
      "pair": [a, end, b, end],
      "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    },
    "decoder": metaspace,
    "model": {"type": "Unigram", "unk_id": 2, "vocab": scores, "byte_fallback": False},
  }
  (path / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  path = tmp_path_factory.mktemp("t5") / "t5"
  shutil.copytree(FIXTURES / "t5-a", path)
  unigram(path, 61)
  return path


def test_an_encoder_decoder_prints_the_generated_text(capsys, t5):
  status, out, err = run(capsys, "-m", t5, "-n", "9", "-b", "2", "a red house")
  tokenizer = tokenization.load_tokenizer(t5)
  ids = tokenizer.single(tokenizer.encode("a red house"))
  config = GenerationConfig.read(t5)._replace(num_beams=2)
  expected = generate_seq2seq(checkpoints.load_module(t5), ids, config, 9)
  assert status == 0, err
  assert out == tokenizer.decode(expected) + "\n"


def test_image_classification_prints_the_labels_of_a_picture(capsys, tmp_path):
  image = pytest.importorskip("PIL.Image")
  model = tmp_path / "vit"
  shutil.copytree(FIXTURES / "vit-a", model)
  preprocessor = {"size": {"height": 12, "width": 12}}
  (model / "preprocessor_config.json").write_text(json.dumps(preprocessor))
  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
  image.fromarray(pixels).save(tmp_path / "cat.png")
  status, out, err = run(capsys, "-m", model, "-k", "9", tmp_path / "cat.png")
  assert status == 0, err
  assert sorted(label for _, label in parse(out)) == ["cross", "dot", "field", "line", "none"]
  assert sum(probability for probability, _ in parse(out)) == pytest.approx(1, abs=3e-3)
  status, _, err = run(capsys, "-m", model, tmp_path / "dog.png")
  assert status == 1
  assert "dog.png" in err
  assert err.count("\n") == 1


@pytest.mark.parametrize(
  "head, argv, message",
  [
    ("ForMaskedLM", ["no mask here"], "the text has no [MASK] to fill in"),
    ("ForMaskedLM", ["the " * 40 + "[MASK]"], "43 tokens, more than this model's context of 32"),
    ("ForQuestionAnswering", ["who?"], "a question about a passage, but got 1 text"),
    ("ForMaskedLM", [" "], "the text is empty"),
  ],
)
def test_invalid_input_is_a_usage_error_of_one_line(capsys, folder, head, argv, message):
  status, out, err = run(capsys, "-m", folder(head), *argv)
  assert (status, out) == (2, "")
  assert message in err
  assert err.count("\n") == 1


def test_ask_and_gpt_each_refer_to_the_other_for_its_models(capsys, folder):
  status, _, err = run(capsys, "-m", ROOT / "weights" / "tiny", "Once")
  assert status == 2
  assert "use gpt.py" in err
  assert cli.run(lambda: gpt.main(["-m", str(folder("ForMaskedLM")), "-p", "x"])) == 2
  assert "use ask.py" in capsys.readouterr().err


def test_ask_runs_as_a_program(folder):
  result = subprocess.run(
    [sys.executable, ROOT / "ask.py", "-m", folder("ForSequenceClassification"), "-"],
    input="the capital",
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0
  assert len(parse(result.stdout)) == 4
  assert not result.stderr
