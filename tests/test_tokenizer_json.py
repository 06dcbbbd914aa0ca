"""Test tokenizer.json: each step of the pipeline, and the refusal of steps that are not known."""

import itertools
import json
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyformer import tokenization
from tinyformer.tokenization import regular_expressions
from tinyformer.tokenization.byte_letters import LETTERS, to_letters

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LETTERS_ONLY = BYTE_LEVEL | {"use_regex": False}


def sequence(*steps):
  return {"type": "Sequence", "pretokenizers": list(steps)}


def split(pattern, behavior, invert=False):
  kind = "Regex" if isinstance(pattern, tuple) else "String"
  value = pattern[0] if isinstance(pattern, tuple) else pattern
  return {"type": "Split", "pattern": {kind: value}, "behavior": behavior, "invert": invert}


def byte_level_json(tokens=(), missing=(), **sections):
  """Return a tokenizer.json of byte-level BPE: the 256 bytes and merges that form `tokens`."""
  vocab = {letter: i for i, letter in enumerate(LETTERS.values()) if letter not in missing}
  merges = []
  for token in map(to_letters, tokens):
    for n in range(2, len(token) + 1):
      if token[:n] not in vocab:
        vocab[token[:n]] = len(vocab) + len(missing)
        merges.append([token[: n - 1], token[n - 1]])
  model = {"type": "BPE", "vocab": vocab, "merges": merges}
  content = {"model": model, "pre_tokenizer": BYTE_LEVEL, "decoder": {"type": "ByteLevel"}}
  return content | sections


def tokens_of(text, **content):
  """Return the text of each token."""
  tokenizer = tokenization.from_json(byte_level_json(**content))
  spans = tokenizer.encode_with_offsets(text)
  assert [i for i, _, _ in spans] == tokenizer.encode(text)
  assert tokenizer.decode(tokenizer.encode(text)) == text
  return [tokenizer.token(i).decode() for i, _, _ in spans]


def test_individual_digits_are_separate_tokens():
  tokens = (" 1", "123", "ab")
  digits = {"type": "Digits", "individual_digits": True}
  assert tokens_of("ab 123", tokens=tokens) == ["ab", " 1", "2", "3"]
  separate = sequence(digits, BYTE_LEVEL)
  assert tokens_of("ab 123", tokens=tokens, pre_tokenizer=separate) == ["ab", " ", "1", "2", "3"]
  together = sequence(digits | {"individual_digits": False}, BYTE_LEVEL)
  assert tokens_of("ab 123", tokens=tokens, pre_tokenizer=together) == ["ab", " ", "123"]


def words_of(text, step):
  """Return the words into which a pre-tokenizer splits a text."""
  from tinyformer.tokenization import pre_tokenizers
  from tinyformer.tokenization.normalizers import NormalizedString
  from tinyformer.tokenization.settings import Settings

  steps = pre_tokenizers.from_json(Settings("pre_tokenizer", step))
  return [
    part.text for part in pre_tokenizers.pipeline([], steps)(NormalizedString.from_text(text))
  ]


def test_each_behavior_of_split_puts_the_delimiters_in_another_place():
  text = "the-final--countdown"
  for pattern in ("-", (r"-",)):
    expected = {
      "Removed": ["the", "final", "countdown"],
      "Isolated": ["the", "-", "final", "-", "-", "countdown"],
      "MergedWithPrevious": ["the-", "final-", "-", "countdown"],
      "MergedWithNext": ["the", "-final", "-", "-countdown"],
      "Contiguous": ["the", "-", "final", "--", "countdown"],
    }
    for behavior, words in expected.items():
      assert words_of(text, split(pattern, behavior)) == words


@given(st.text("ab- \n"), st.booleans())
@settings(deadline=None)
def test_split_loses_only_what_it_removes(text, invert):
  for behavior in ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
    assert "".join(words_of(text, split((r"a+|-",), behavior, invert))) == text
  removed = "".join(words_of(text, split((r"[a-]",), "Removed", invert)))
  assert removed == "".join(c for c in text if (c in "a-") is invert)


def test_invert_splits_at_the_texts_between_the_matches():
  assert words_of("ab12c", split((r"\d+",), "Removed", invert=True)) == ["12"]
  assert words_of("ab12c", split((r"\d+",), "MergedWithNext", invert=True)) == ["ab12", "c"]


def test_text_that_the_pattern_does_not_match_is_kept():
  only_digits = sequence(split((r"\d+",), "Isolated"), LETTERS_ONLY)
  text = "the cat, 12 mats!"
  assert "".join(tokens_of(text, pre_tokenizer=only_digits)) == text


def test_a_prefix_space_is_inserted_if_the_text_has_none():
  content = byte_level_json((" a",), pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True})
  tokenizer = tokenization.from_json(content)
  assert [tokenizer.token(i) for i in tokenizer.encode("a")] == [b" a"]
  assert tokenizer.encode("a") == tokenizer.encode(" a")
  assert tokenizer.encode_with_offsets("a") == [(*tokenizer.encode("a"), 0, 1)]


def test_unicode_normalization_precedes_byte_level_bpe():
  content = byte_level_json(("é",))
  decomposed = "e\u0301"
  forms = {
    None: decomposed,
    "NFC": "é",
    "NFKC": "é",
    "NFD": decomposed,
  }
  for form, text in forms.items():
    content["normalizer"] = form and {"type": form}
    tokenizer = tokenization.from_json(content)
    ids = tokenizer.encode(decomposed)
    assert tokenizer.decode(ids) == text
    assert {(start, end) for _, start, end in tokenizer.encode_with_offsets("é")} == {(0, 1)}


def test_a_byte_without_id_matters_only_in_a_text_with_this_byte():
  missing = [to_letters("é")[-1]]
  content = byte_level_json(missing=missing)
  tokenizer = tokenization.from_json(content)
  assert tokenizer.decode(tokenizer.encode("plain text")) == "plain text"
  with pytest.raises(ValueError, match="no unknown token"):
    tokenizer.encode("né")
  content["model"] |= {"unk_token": "!"}
  unknown = content["model"]["vocab"]["!"]
  first = content["model"]["vocab"][to_letters("é")[0]]
  assert tokenization.from_json(content).encode("é") == [first, unknown]


def test_ignore_merges_uses_a_whole_word_that_no_merge_produces():
  content = byte_level_json(("ze",))
  content["model"]["vocab"]["zebra"] = 999
  for ignore_merges, expected in ((False, [b"ze", b"b", b"r", b"a"]), (True, [b"zebra"])):
    content["model"]["ignore_merges"] = ignore_merges
    tokenizer = tokenization.from_json(content)
    assert [tokenizer.token(i) for i in tokenizer.encode("zebra")] == expected
    assert tokenizer.token(tokenizer.encode("zebras")[0]) == b"ze"


def unigram_json(tokens, **sections):
  scores = [["<unk>", 0.0], *([token, -float(n + 1)] for n, token in enumerate(tokens))]
  return {"model": {"type": "Unigram", "vocab": scores, "unk_id": 0}} | sections


def test_unk_id_is_an_index_even_if_the_token_occurs_twice():
  content = unigram_json(["a"])
  content["model"]["vocab"].append(["<unk>", -1.0])
  assert tokenization.from_json(content).encode("xa") == [0, 1]


def test_a_unigram_token_with_the_id_of_the_unknown_token_joins_unknown_characters():
  content = unigram_json(["a", "b"])
  content["model"]["unk_id"] = 2
  assert tokenization.from_json(content).encode("axba") == [1, 2, 1]
  assert tokenization.from_json(content).encode("aba") == [1, 2, 1]


def test_a_very_long_unigram_token_needs_little_memory():
  # A table of all its prefixes would have 50 MB.
  long = "ab" * 5_000
  tracemalloc.start()
  tokenizer = tokenization.from_json(unigram_json([long, "a", "b"]))
  assert tokenizer.encode(f"{long}b") == [1, 3]
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 5_000_000


@pytest.mark.parametrize("length", [63, 64, 65, 66, 130])
def test_unigram_tokens_of_any_length_are_found(length):
  token = "ab" * length
  tokenizer = tokenization.from_json(unigram_json(["a", "b", token[:length], token]))
  assert tokenizer.encode(f"b{token}a") == [2, 4, 1]
  assert tokenizer.encode(f"b{token[:length]}") == [2, 3]
  assert tokenizer.encode(token[:-1]).count(3) == 1


def test_a_pattern_that_backtracks_exponentially_is_stopped_and_named(monkeypatch):
  monkeypatch.setattr(regular_expressions, "SECONDS", 0.05)
  pattern = "(a|aa)+c"
  content = byte_level_json(pre_tokenizer=sequence(split((pattern,), "Isolated"), LETTERS_ONLY))
  tokenizer = tokenization.from_json(content)
  assert tokenizer.decode(tokenizer.encode("aac")) == "aac"
  with pytest.raises(ValueError, match=r"the pattern '\(a\|aa\)\+c' took more than") as error:
    tokenizer.encode("a" * 60)
  assert not isinstance(error.value, OSError)


@pytest.mark.parametrize("pattern", ["(", "[", "a{2", r"\p{Klingon}", r"(?~ab)", r"\k<n>", "[[]"])
def test_a_pattern_that_is_not_supported_is_refused_and_named(pattern):
  content = byte_level_json(pre_tokenizer=split((pattern,), "Isolated"))
  if pattern == "a{2":
    assert tokenization.from_json(content)
    return
  with pytest.raises(ValueError, match=re.escape(f"the pattern {pattern!r} is not supported")):
    tokenization.from_json(content)


def test_ignore_merges_concerns_whole_words_only():
  """Without pre-tokenizer, the word is the whole text."""
  vocab = {token: n for n, token in enumerate(["▁", "a", "b", "▁ab"])}
  model = {"type": "BPE", "vocab": vocab, "merges": [], "ignore_merges": True}
  tokenizer = tokenization.from_json({"model": model})
  assert tokenizer.encode("▁ab") == [3]
  assert tokenizer.encode("▁ab▁ab") == [0, 1, 2] * 2


# Added and special tokens


def added(content, i, **properties):
  return {"id": i, "content": content, "special": False, "normalized": False} | properties


def test_added_tokens_are_found_as_their_properties_say():
  def texts(text, *tokens, special=(), **sections):
    tokenizer = tokenization.from_json(byte_level_json(added_tokens=list(tokens), **sections))
    spans = tokenizer.encode_with_offsets(text, special)
    assert [i for i, _, _ in spans] == tokenizer.encode(text, special)
    return [text[start:end] for i, start, end in spans if i >= 256]

  plain = added("<x>", 256)
  assert texts("a <x> b<x>", plain) == ["<x>", "<x>"]
  assert texts("a \n<x> b", plain | {"lstrip": True}) == [" \n<x>"]
  assert texts("a <x> \t b", plain | {"rstrip": True}) == ["<x> \t "]
  assert texts("cat cats _cat cat.", added("cat", 256, single_word=True)) == ["cat", "cat"]
  assert texts("<x><xx>", plain, added("<x><x", 257)) == ["<x><x"]
  lowercase = {"type": "Lowercase"}
  assert texts("The <X>", added("<X>", 256, normalized=True), normalizer=lowercase) == ["<X>"]
  assert texts("The <x>", added("<X>", 256, normalized=True), normalizer=lowercase) == ["<x>"]
  assert texts("The <x>", added("<X>", 256), normalizer=lowercase) == []
  special = added("<s>", 256, special=True)
  assert texts("<s> <x>", special, plain | {"id": 257}) == ["<x>"]
  assert texts("<s> <x>", special, plain | {"id": 257}, special=["<s>"]) == ["<s>", "<x>"]


def test_text_cannot_become_a_special_token():
  tokenizer = tokenization.from_json(
    unigram_json(["<s>", "<", "s", ">"], added_tokens=[added("<s>", 1, special=True)])
  )
  assert tokenizer.encode("<s>") == [2, 3, 4]
  assert tokenizer.encode("<s>", ["<s>"]) == [1]
  assert tokenizer.special_tokens == ("<s>",)
  with pytest.raises(KeyError):
    tokenizer.encode("<s>", ["</s>"])


# Files that must be refused

SECTIONS = {
  "normalizer": "normalizers",
  "pre_tokenizer": "pretokenizers",
  "post_processor": "processors",
  "decoder": "decoders",
}
UNKNOWN = ("Magic", "ROT13", "CTC", "UnicodeScripts", "ByteLevel2", "Übung", "")


@pytest.mark.parametrize(
  "section, kind, nested", [*itertools.product(SECTIONS, UNKNOWN, (False, True))]
)
def test_an_unknown_step_is_refused_by_name(tmp_path, section, kind, nested):
  step = {"type": kind}
  if nested:
    step = {"type": "Sequence", SECTIONS[section]: [step]}
  (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level_json() | {section: step}))
  with pytest.raises(ValueError, match=f"{section} {kind} is not supported") as error:
    tokenization.load_tokenizer(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "setting, message",
  [
    ({"dropout": 0.1}, "model BPE with dropout 0.1 is not supported"),
    ({"continuing_subword_prefix": "##"}, "with continuing_subword_prefix '##'"),
    ({"vocab": {}}, "the vocabulary is empty"),
    ({"vocab": {"a": -1}}, "must map each token to an integer ID"),
    ({"vocab": {"a": 0, "b": 0}}, "two tokens of the vocabulary have the same ID"),
    ({"vocab": {"\ud800": 0}, "merges": []}, "not valid Unicode"),
    ({"merges": ["a q"], "vocab": {"a": 0, "q": 1}}, "needs the token 'aq'"),
    ({"merges": ["a b c"]}, "must be two tokens"),
    ({"unk_token": "<none>"}, "the unknown token '<none>' is not in the vocabulary"),
    ({"ignore_merges": 1}, "'ignore_merges' must be bool, not 1"),
  ],
)
def test_an_invalid_model_is_refused(tmp_path, setting, message):
  content = byte_level_json()
  content["model"] |= setting
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match=message) as error:
    tokenization.load_tokenizer(tmp_path)
  assert str(error.value).startswith(f"{tmp_path / 'tokenizer.json'}: ")


@pytest.mark.parametrize("token_id", [-1, 2**70, 0.5, "1", None])
def test_an_added_token_with_an_invalid_id_is_refused(token_id):
  with pytest.raises(ValueError, match="added_tokens"):
    tokenization.from_json(byte_level_json(added_tokens=[added("<x>", token_id)]))


def test_an_added_token_has_its_id_in_the_vocabulary_or_the_next_free_id():
  content = unigram_json(["a", "<x>"])
  for token_id in (2, 7):
    content["added_tokens"] = [added("<x>", token_id), added("<y>", 3), added("<z>", 4)]
    assert tokenization.from_json(content).encode("<x><y><z>") == [2, 3, 4]
  content["added_tokens"] = [added("<x>", 2), added("<z>", 4)]
  with pytest.raises(ValueError, match="'<z>' has the ID 4, but the next free ID is 3"):
    tokenization.from_json(content)


def test_a_template_that_cannot_be_represented_is_refused():
  a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
  cls = {"SpecialToken": {"id": "<s>", "type_id": 0}}
  step = {"type": "TemplateProcessing", "special_tokens": {"<s>": {"ids": [256]}}}
  for single, pair in (([a], [cls, a, b]), ([a, cls], [a, b, cls]), ([b], [b, a]), ([], [a, b])):
    processor = step | {"single": single, "pair": pair}
    with pytest.raises(ValueError, match=r"TemplateProcessing .* is not supported"):
      tokenization.from_json(byte_level_json(post_processor=processor))
  tokenizer = tokenization.from_json(
    byte_level_json(post_processor=step | {"single": [cls, a], "pair": [cls, a, cls, b]})
  )
  assert tokenizer.single([7]) == [256, 7]
  assert tokenizer.pair([7], [8]) == ([256, 7, 256, 8], [0, 0, 0, 1])


def test_an_unknown_model_is_refused_by_name():
  content = byte_level_json()
  content["model"]["type"] = "Morphemes"
  with pytest.raises(ValueError, match="model Morphemes is not supported"):
    tokenization.from_json(content)
