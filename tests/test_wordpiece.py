import pytest
from text.wordpiece import WordPiece

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "##a", "the", "cafe", "café", "The", ",", "[", "]", "mask", "!", "中", "国", "$", "i", "##̇"]
VOCAB = {piece: i for i, piece in enumerate(PIECES)}

def pieces(text, special=(), **options): return [PIECES[i] for i in WordPiece(VOCAB, **options).encode(text, special)]

def test_words_are_cut_into_the_longest_pieces(): assert pieces("unaffable, the!") == ["un", "##aff", "##able", ",", "the", "!"]

def test_a_word_that_cannot_be_cut_is_unknown_as_a_whole(): assert pieces("unaffx the x" + "a" * 101) == ["[UNK]", "the", "[UNK]"]

def test_capitals_and_accents_go_if_the_vocabulary_is_of_small_letters():
  assert pieces("The CAFÉ cafe\u0301") == ["the", "cafe", "cafe"]
  assert pieces("The café", lower=False) == ["The", "café"] and pieces("café", accents=True) == ["café"]

def test_blanks_control_characters_and_chinese(): assert pieces("the\u00a0\t\u200b中国\0\ufffd$the\n") == ["the", "中", "国", "$", "the"]

def test_a_special_piece_is_text_unless_it_is_asked_for():
  assert pieces("the [MASK]!") == ["the", "[", "mask", "]", "!"] and pieces("the [MASK]!", ["[MASK]"]) == ["the", "[MASK]", "!"]

def test_it_is_read_from_a_folder(tmp_path):
  with pytest.raises(FileNotFoundError): WordPiece.load(tmp_path)
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
  assert WordPiece.load(tmp_path).encode("The café") == [9, 10] and len(WordPiece.load(tmp_path)) == len(PIECES)
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  assert WordPiece.load(tmp_path).encode("The café") == [12, 11]
  (tmp_path / "vocab.txt").write_text("the\n")
  with pytest.raises(ValueError, match=r"vocab.txt: the vocabulary has no \[UNK\]"): WordPiece.load(tmp_path)

def test_it_is_put_together_again(): assert WordPiece(VOCAB).decode([9, 5, 6, 7, 13]) == "the unaffable ,"
