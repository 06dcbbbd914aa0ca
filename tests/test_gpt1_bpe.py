"""Test GPT-1's tokenizer: BPE on the characters of words, with </w> at the end of each word."""

import json

import pytest

from tinyformer import tokenization
from tinyformer.tokenization.gpt1_bpe import GPT1Tokenizer

TOKENS = ["<unk>", *"abcdeh", "a</w>", "e</w>", "h</w>", "th", "the</w>", "be", "t", ".</w>"]
VOCAB = {token: i for i, token in enumerate(TOKENS)}
MERGES = [("t", "h"), ("th", "e</w>"), ("b", "e")]


@pytest.fixture
def tokenizer():
  return GPT1Tokenizer(VOCAB, MERGES, {"<unk>": 0})


def encode(text, tokenizer):
  return [TOKENS[i] for i in tokenizer.encode(text)]


def test_the_last_token_of_a_lowercased_word_ends_in_the_word_suffix(tokenizer):
  assert encode("The bea.", tokenizer) == ["the</w>", "be", "a</w>", ".</w>"]


def test_the_first_merge_of_the_list_is_applied_first():
  tokens = ["<unk>", "a", "b", "ab", "c</w>", "bc</w>"]
  vocab = {token: i for i, token in enumerate(tokens)}
  for merges, expected in (
    ([("b", "c</w>"), ("a", "b")], ["a", "bc</w>"]),
    ([("a", "b"), ("b", "c</w>")], ["ab", "c</w>"]),
  ):
    ids = GPT1Tokenizer(vocab, merges, {"<unk>": 0}).encode("abc")
    assert [tokens[i] for i in ids] == expected


def test_an_unknown_character_becomes_the_unknown_token(tokenizer):
  assert encode("béz the", tokenizer) == ["be", "<unk>", "the</w>"]


def test_decoding_separates_words_by_spaces(tokenizer):
  assert tokenizer.decode(tokenizer.encode("the  bea the")) == "the bea the"
  assert tokenizer.continuation_joiner == " "


def test_offsets_refer_to_the_original_text(tokenizer):
  spans = tokenizer.encode_with_offsets("Thé bea")
  assert [(start, end) for _, start, end in spans] == [(0, 3), (4, 6), (6, 7)]


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json"])
def test_both_file_layouts_load(tmp_path, tokenizer, layout):
  if layout == "tokenizer.json":
    content = {
      "model": {
        "type": "BPE",
        "vocab": VOCAB,
        "merges": MERGES,
        "unk_token": "<unk>",
        "end_of_word_suffix": "</w>",
      },
      "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
      "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
      "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
      },
      "pre_tokenizer": {"type": "BertPreTokenizer"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  else:
    (tmp_path / "config.json").write_text('{"model_type": "openai-gpt"}')
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    lines = ["#version: 0.2", *map(" ".join, MERGES)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n")
  loaded = tokenization.load_tokenizer(tmp_path)
  for text in ("the bea", "Thé  bez the"):
    assert loaded.encode_with_offsets(text) == tokenizer.encode_with_offsets(text)
    assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
  assert loaded.continuation_joiner == " "
