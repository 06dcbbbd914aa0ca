"""ask.py as a user runs it, on small models; what it makes of an encoder's numbers, on numbers made here."""

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
from tinyformer import checkpoints, cli, tokenization
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What gives the folder of a BERT with a head."""
  made = {}

  def make(head):
    if head not in made:
      made[head] = with_head("bert-a", head, tmp_path_factory.mktemp(head))
      (made[head] / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return made[head]

  return make


def run(capsys, *argv):
  """(exit status, standard output, standard error)"""
  try:
    status = cli.run(lambda: ask.main([str(a) for a in argv]))
  except SystemExit as e:
    status = e.code
  said = capsys.readouterr()
  return status, said.out, said.err


def said(lines):
  return [
    (float(line.split("%")[0]) / 100, line.split("%")[1].strip())
    for line in lines.splitlines()
    if line
  ]


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_a_mask_is_filled_with_what_the_model_finds_likeliest(capsys, folder):
  path = folder("ForMaskedLM")
  status, out, err = run(capsys, "-m", path, "The capital of France is [MASK].")
  ids = [2, 5, 6, 7, 8, 9, 4, 11, 3]
  chances = softmax(checkpoints.load_module(path)(Tensor([ids])).numpy()[0, 6])
  best = np.argsort(-chances)[:5]
  assert (status, err) == (0, "") and said(out) == [
    (pytest.approx(chances[i], abs=6e-4), WORDS[i].removeprefix("##")) for i in best
  ]
  assert run(capsys, "-m", path, "The capital of France is <mask>.")[1] == out  # RoBERTa's spelling
  again = run(capsys, "-m", path, "-k", "1", "[MASK] is [MASK]")[1]
  assert len(said(again)) == 2 and "\n\n" in again


def test_a_text_is_classified_as_the_model_does(capsys, folder):
  path = folder("ForSequenceClassification")
  out = run(capsys, "-m", path, "who lives in rome?")[1]
  chances = softmax(checkpoints.load_module(path)(Tensor([[2, 14, 18, 19, 20, 15, 3]])).numpy()[0])
  assert dict((label, p) for p, label in said(out)) == {
    label: pytest.approx(p, abs=6e-4) for label, p in zip(("calm", "glad", "sad", "wry"), chances)
  }


def test_several_texts_have_an_answer_each_also_from_standard_input(capsys, folder, monkeypatch):
  path, (one, two) = folder("ForSequenceClassification"), ("who lives in rome?", "the capital")
  apart = "\n".join(run(capsys, "-m", path, t)[1] for t in (one, two))
  assert run(capsys, "-m", path, one, two)[1] == apart
  monkeypatch.setattr(
    sys,
    "stdin",
    SimpleNamespace(buffer=io.BytesIO(f"{one}\n\n{two}\n".encode()), isatty=lambda: False),
  )
  assert run(capsys, "-m", path)[1] == apart


def test_sentence_vectors_are_means_and_the_closest_is_oneself(capsys, folder):
  path = folder("Model")
  vector = np.array(run(capsys, "-m", path, "paris")[1].split(), dtype=float)
  np.testing.assert_allclose(
    vector, checkpoints.load_module(path)(Tensor([[2, 10, 3]])).numpy()[0].mean(0), atol=2e-6
  )
  lines = run(capsys, "-m", path, "paris", "rome is", "paris")[1].splitlines()
  assert (
    len(lines) == 3 and lines[1] == "1.0000  paris  |  paris" and not lines[0].startswith("1.0000")
  )


class Said:
  """An Encoder that says what it is told, a row a token of the text without what stands around it."""

  def __init__(self, rows, labels=(), context=64):
    self.rows, self.context, self.model, self.asked = (
      rows,
      context,
      SimpleNamespace(labels=labels),
      [],
    )
    self.tokenizer = WordPiece({w: i for i, w in enumerate(WORDS)})
    (
      self.tokenizer.prefix_ids,
      self.tokenizer.sep_ids,
      self.tokenizer.suffix_ids,
      self.tokenizer.second,
    ) = (
      [2],
      [3],
      [3],
      1,
    )

  def __call__(self, ids, segments=None):
    assert len(ids) <= self.context
    self.asked.append(ids)
    return self.rows(ids, segments)


def test_names_of_several_words_are_one_and_have_their_first_tokens_label():
  labels = ["O", "B-PER", "I-PER", "B-LOC"]
  names = {"ann": 1, "lee": 2, "##s": 0, "rome": 3, "paris": 3}
  encoder = Said(
    lambda ids, _: np.array([np.eye(4)[names.get(WORDS[i], 0)] * 20 for i in ids]), labels
  )
  assert list(ask.tag(encoder, "Ann Lees lives in Rome, Paris.", 5)) == [
    "100.0%  PER  Ann Lees",
    "100.0%  LOC  Rome",
    "100.0%  LOC  Paris",
  ]


def test_an_answer_is_the_best_span_of_the_passage_also_in_a_later_window():
  passage = "Who is the. " * 40 + "Ann  lives in Rome." + " who" * 20

  def rows(ids, segments):
    assert segments[:4] == [0] * 4 and segments[4] == 1
    words = [WORDS[i] for i in ids]
    start = np.array(
      [9.0 if w == "ann" else 8.0 if w == "?" else 0.0 for w in words]
    )  # the question may not answer itself
    end = np.array([9.0 if w == "rome" else 9.0 if w == "?" else 0.0 for w in words])
    return np.stack([start, end], -1)

  encoder = Said(rows, context=100)
  assert next(ask.answer(encoder, "who?", passage, 1)).split("%  ")[1] == "Ann  lives in Rome"
  assert len(encoder.asked) > 2 and all(len(ids) <= 100 for ids in encoder.asked)


def test_an_end_never_stands_before_its_start():
  encoder = Said(
    lambda ids, _: np.stack(
      [
        np.array([9.0 if WORDS[i] == "rome" else 0.0 for i in ids]),
        np.array([9.0 if WORDS[i] == "ann" else 0.0 for i in ids]),
      ],
      -1,
    )
  )
  answers = [line.split("%  ")[1] for line in ask.answer(encoder, "who", "ann lives in rome", 3)]
  assert len(answers) == 3 and all(answers)  # one that ended before it began would be empty


def test_a_question_and_its_passage_get_an_answer(capsys, folder):
  status, out, _ = run(
    capsys,
    "-m",
    folder("ForQuestionAnswering"),
    "-k",
    "2",
    "who lives in rome?",
    "ann lee lives in rome.",
  )
  assert (
    status == 0
    and len(said(out)) == 2
    and all(answer in "ann lee lives in rome." for _, answer in said(out))
  )


def unigram(path, vocab):
  """A tokenizer.json of letters and the blank, as T5's are."""
  pieces = [
    ["<pad>", 0.0],
    ["</s>", 0.0],
    ["<unk>", 0.0],
    ["▁", -2.0],
    *([c, -3.0] for c in "abcdefghijklmnopqrstuvwxyz"),
  ]
  special = [
    {
      "id": i,
      "content": c,
      "special": True,
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
      "normalized": False,
    }
    for i, (c, _) in enumerate(pieces[:3])
  ]
  (path / "tokenizer.json").write_text(
    json.dumps(
      {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
          "type": "Metaspace",
          "replacement": "▁",
          "prepend_scheme": "always",
          "split": True,
        },
        "post_processor": {
          "type": "TemplateProcessing",
          "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
          ],
          "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
          ],
          "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {
          "type": "Metaspace",
          "replacement": "▁",
          "prepend_scheme": "always",
          "split": True,
        },
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
      }
    )
  )


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  path = tmp_path_factory.mktemp("t5") / "t5"
  shutil.copytree(FIXTURES / "t5-a", path)
  unigram(path, 61)
  return path


def test_an_encoder_decoder_writes_its_answer(capsys, t5):
  from tinyformer.generation.engine import generate_seq2seq
  from tinyformer.generation.generation_config import GenerationConfig

  status, out, err = run(capsys, "-m", t5, "-n", "9", "-b", "2", "a red house")
  tokenizer = tokenization.load_tokenizer(t5)
  want = generate_seq2seq(
    checkpoints.load_module(t5),
    tokenizer.single(tokenizer.encode("a red house")),
    GenerationConfig.read(t5)._replace(num_beams=2),
    9,
  )
  assert status == 0 and out == tokenizer.decode(want) + "\n", err


def test_a_picture_is_named(capsys, tmp_path):
  image = pytest.importorskip("PIL.Image")
  shutil.copytree(FIXTURES / "vit-a", tmp_path / "vit")
  (tmp_path / "vit" / "preprocessor_config.json").write_text(
    json.dumps({"size": {"height": 12, "width": 12}})
  )
  image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(
    tmp_path / "cat.png"
  )
  status, out, err = run(capsys, "-m", tmp_path / "vit", "-k", "9", tmp_path / "cat.png")
  assert (
    status == 0
    and sorted(label for _, label in said(out)) == ["cross", "dot", "field", "line", "none"]
    and sum(p for p, _ in said(out)) == pytest.approx(1, abs=3e-3)
  ), err
  status, _, err = run(capsys, "-m", tmp_path / "vit", tmp_path / "dog.png")
  assert status == 1 and "dog.png" in err and err.count("\n") == 1


@pytest.mark.parametrize(
  "head, argv, message",
  [
    ("ForMaskedLM", ["no mask here"], r"the text has no [MASK] to fill in"),
    ("ForMaskedLM", ["the " * 40 + "[MASK]"], "43 tokens, this model reads 32"),
    ("ForQuestionAnswering", ["who?"], "a question from a passage"),
    ("ForMaskedLM", [" "], "the text is empty"),
  ],
)
def test_bad_input_is_a_line_and_exit_status_2(capsys, folder, head, argv, message):
  status, out, err = run(capsys, "-m", folder(head), *argv)
  assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_each_command_names_the_other(capsys, folder):
  status, _, err = run(capsys, "-m", ROOT / "weights" / "tiny", "Once")
  assert status == 2 and "gpt.py runs it" in err
  import gpt

  assert (
    cli.run(lambda: gpt.main(["-m", str(folder("ForMaskedLM")), "-p", "x"])) == 2
    and "ask.py runs it" in capsys.readouterr().err
  )


def test_it_runs_as_a_program(folder):
  done = subprocess.run(
    [sys.executable, ROOT / "ask.py", "-m", folder("ForSequenceClassification"), "-"],
    input="the capital",
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and len(said(done.stdout)) == 4 and not done.stderr
