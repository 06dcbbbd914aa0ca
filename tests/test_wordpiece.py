"""Test WordPiece: BERT's normalization, the longest-match algorithm, and loading from files."""

import json

import pytest

from tinyformer import tokenization
from tinyformer.tokenization.wordpiece import WordPiece

TOKENS = [
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  "un",
  "##aff",
  "##able",
  "##a",
  "the",
  "cafe",
  "café",
  "The",
  ",",
  "[",
  "]",
  "mask",
  "!",
  "中",
  "国",
  "$",
  "i",
  "##̇",
]
VOCAB = {token: i for i, token in enumerate(TOKENS)}


def encode(text, special=(), **options):
  return [TOKENS[i] for i in WordPiece(VOCAB, **options).encode(text, special)]


def test_a_word_becomes_its_longest_tokens_from_left_to_right():
  assert encode("unaffable, the!") == ["un", "##aff", "##able", ",", "the", "!"]


def test_a_word_that_no_tokens_form_is_one_unknown_token():
  assert encode("unaffx the x" + "a" * 101) == ["[UNK]", "the", "[UNK]"]


def test_a_lowercase_vocabulary_lowercases_and_strips_accents():
  assert encode("The CAFÉ cafe\u0301") == ["the", "cafe", "cafe"]
  assert encode("The café", lowercase=False) == ["The", "café"]
  assert encode("café", strip_accents=False) == ["café"]


def test_control_characters_are_removed_and_chinese_characters_are_words():
  assert encode("the\u00a0\t\u200b中国\0\ufffd$the\n") == ["the", "中", "国", "$", "the"]


def test_a_special_token_is_text_unless_requested():
  assert encode("the [MASK]!") == ["the", "[", "mask", "]", "!"]
  assert encode("the [MASK]!", ["[MASK]"]) == ["the", "[MASK]", "!"]


def test_vocab_txt_and_tokenizer_config_json_load(tmp_path):
  with pytest.raises(FileNotFoundError):
    WordPiece.load(tmp_path)
  (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
  tokenizer = WordPiece.load(tmp_path)
  assert tokenizer.encode("The café") == [VOCAB["the"], VOCAB["cafe"]]
  assert len(tokenizer) == len(TOKENS)
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  assert WordPiece.load(tmp_path).encode("The café") == [VOCAB["The"], VOCAB["café"]]
  (tmp_path / "vocab.txt").write_text("the\n")
  message = r"vocab\.txt: the vocabulary does not contain the unknown token \[UNK\]"
  with pytest.raises(ValueError, match=message):
    WordPiece.load(tmp_path)


def test_decoding_joins_the_tokens_of_a_word():
  ids = [VOCAB[token] for token in ["the", "un", "##aff", "##able", ","]]
  assert WordPiece(VOCAB).decode(ids) == "the unaffable ,"


def test_offsets_refer_to_the_original_text():
  text = " \0Un\u200baffable CAFE\u0301中$x [MASK]"
  spans = WordPiece(VOCAB).encode_with_offsets(text, ["[MASK]"])
  assert [(TOKENS[i], text[start:end]) for i, start, end in spans] == [
    ("un", "Un"),
    ("##aff", "aff"),
    ("##able", "able"),
    ("cafe", "CAFE"),
    ("中", "中"),
    ("$", "$"),
    ("[UNK]", "x"),
    ("[MASK]", "[MASK]"),
  ]


def test_bert_adds_cls_and_sep(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(TOKENS), encoding="utf-8")
  tokenizer = tokenization.load_tokenizer(tmp_path)
  cls, sep = VOCAB["[CLS]"], VOCAB["[SEP]"]
  assert tokenizer.single([9]) == [cls, 9, sep]
  assert tokenizer.pair([9], [13]) == ([cls, 9, sep, 13, sep], [0, 0, 0, 1, 1])
  assert tokenizer.mask == (VOCAB["[MASK]"], "[MASK]")
  assert tokenizer.pad == VOCAB["[PAD]"]
  assert tokenizer.end is None
  assert tokenizer.decode([cls, VOCAB["the"], VOCAB[","], sep, VOCAB["[PAD]"]]) == "the ,"


def test_tokenizer_json_loads(tmp_path):
  content = {
    "model": {"vocab": VOCAB, "unk_token": "[UNK]"},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    "normalizer": {
      "type": "BertNormalizer",
      "clean_text": True,
      "handle_chinese_chars": True,
      "strip_accents": None,
      "lowercase": False,
    },
  }
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  tokenizer = tokenization.load_tokenizer(tmp_path)
  assert tokenizer.encode("The café") == [VOCAB["The"], VOCAB["café"]]
  assert tokenizer.pair([9], [13]) == ([2, 9, 3, 13, 3], [0, 0, 0, 1, 1])
  content |= {"pre_tokenizer": {"type": "Pieces"}}
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"tokenizer\.json: pre_tokenizer Pieces is not supported"):
    tokenization.load_tokenizer(tmp_path)
