import json

import pytest

from tinyformer import tokenization
from tinyformer.tokenization.gpt1_bpe import WordPairs

VOCAB = {
  p: i
  for i, p in enumerate(
    ["<unk>", *"abcdeh", "a</w>", "e</w>", "h</w>", "th", "the</w>", "be", "t", ".</w>"]
  )
}
MERGES = [("t", "h"), ("th", "e</w>"), ("b", "e")]


@pytest.fixture
def tokenizer():
  return WordPairs(VOCAB, MERGES, {"<unk>": 0})


def pieces(t, tokenizer):
  return [next(p for p, i in VOCAB.items() if i == n) for n in tokenizer.encode(t)]


def test_a_words_last_piece_is_another_than_the_same_within_a_word(tokenizer):
  assert pieces("The bea.", tokenizer) == ["the</w>", "be", "a</w>", ".</w>"]  # in small letters


def test_a_letter_that_is_no_piece_is_unknown(tokenizer):
  assert pieces("béz the", tokenizer) == ["be", "<unk>", "the</w>"]


def test_words_stand_between_blanks(tokenizer):
  assert (
    tokenizer.decode(tokenizer.encode("the  bea the")) == "the bea the"
    and tokenizer.continuation_joiner == " "
  )


def test_spans_are_those_of_the_text(tokenizer):
  assert [t for _, *t in tokenizer.encode_with_offsets("Thé bea")] == [[0, 3], [4, 6], [6, 7]]


@pytest.mark.parametrize("whole", [True, False])
def test_it_is_read_from_either_files(tmp_path, tokenizer, whole):
  if whole:
    (tmp_path / "tokenizer.json").write_text(
      json.dumps(
        {
          "model": {"vocab": VOCAB, "merges": MERGES},
          "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        }
      )
    )
  else:
    (tmp_path / "config.json").write_text('{"model_type": "openai-gpt"}')
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_text(
      "#version: 0.2\n" + "\n".join(map(" ".join, MERGES)) + "\n"
    )
  assert tokenization.load(tmp_path).encode("the bea") == tokenizer.encode("the bea")
