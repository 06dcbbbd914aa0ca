import json

import pytest

from tinyformer import tokenization
from tinyformer.tokenization.wordpiece import WordPiece

PIECES = [
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
VOCAB = {piece: i for i, piece in enumerate(PIECES)}


def pieces(text, special=(), **options):
  return [PIECES[i] for i in WordPiece(VOCAB, **options).encode(text, special)]


def test_words_are_cut_into_the_longest_pieces():
  assert pieces("unaffable, the!") == ["un", "##aff", "##able", ",", "the", "!"]


def test_a_word_that_cannot_be_cut_is_unknown_as_a_whole():
  assert pieces("unaffx the x" + "a" * 101) == ["[UNK]", "the", "[UNK]"]


def test_capitals_and_accents_go_if_the_vocabulary_is_of_small_letters():
  assert pieces("The CAFÉ cafe\u0301") == ["the", "cafe", "cafe"]
  assert pieces("The café", lower=False) == ["The", "café"] and pieces("café", accents=True) == [
    "café"
  ]


def test_blanks_control_characters_and_chinese():
  assert pieces("the\u00a0\t\u200b中国\0\ufffd$the\n") == ["the", "中", "国", "$", "the"]


def test_a_special_piece_is_text_unless_it_is_asked_for():
  assert pieces("the [MASK]!") == ["the", "[", "mask", "]", "!"] and pieces(
    "the [MASK]!", ["[MASK]"]
  ) == ["the", "[MASK]", "!"]


def test_it_is_read_from_a_folder(tmp_path):
  with pytest.raises(FileNotFoundError):
    WordPiece.load(tmp_path)
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
  assert WordPiece.load(tmp_path).encode("The café") == [9, 10] and len(
    WordPiece.load(tmp_path)
  ) == len(PIECES)
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  assert WordPiece.load(tmp_path).encode("The café") == [12, 11]
  (tmp_path / "vocab.txt").write_text("the\n")
  with pytest.raises(ValueError, match=r"vocab.txt: the vocabulary has no \[UNK\]"):
    WordPiece.load(tmp_path)


def test_it_is_put_together_again():
  assert WordPiece(VOCAB).decode([9, 5, 6, 7, 13]) == "the unaffable ,"


def test_spans_are_the_characters_that_pieces_came_from():
  t = " \0Un\u200baffable CAFE\u0301中$x [MASK]"
  spans = WordPiece(VOCAB).encode_with_offsets(t, ["[MASK]"])
  assert [(PIECES[i], t[a:b]) for i, a, b in spans] == [
    ("un", "Un"),
    ("##aff", "aff"),
    ("##able", "able"),
    ("cafe", "CAFE"),
    ("中", "中"),
    ("$", "$"),
    ("[UNK]", "x"),
    ("[MASK]", "[MASK]"),
  ]


def test_what_stands_around_texts(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
  tokenizer = tokenization.load(tmp_path)
  assert tokenizer.single([9]) == [2, 9, 3] and tokenizer.pair([9], [13]) == (
    [2, 9, 3, 13, 3],
    [0, 0, 0, 1, 1],
  )
  assert (tokenizer.mask, tokenizer.pad, tokenizer.end) == (
    (4, "[MASK]"),
    0,
    None,
  ) and tokenizer.decode([2, 9, 13, 3, 0]) == "the ,"


def test_it_is_read_from_tokenizer_json(tmp_path):
  full = {
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
  (tmp_path / "tokenizer.json").write_text(json.dumps(full))
  tokenizer = tokenization.load(tmp_path)
  assert tokenizer.encode("The café") == [12, 11] and tokenizer.pair([9], [13]) == (
    [2, 9, 3, 13, 3],
    [0, 0, 0, 1, 1],
  )
  (tmp_path / "tokenizer.json").write_text(
    json.dumps(full | {"pre_tokenizer": {"type": "Whitespace"}})
  )
  with pytest.raises(ValueError, match="tokenizer.json: the text is not prepared as BERT's is"):
    tokenization.load(tmp_path)
