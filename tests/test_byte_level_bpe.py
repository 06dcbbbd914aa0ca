"""Test byte-level BPE: GPT-2's token IDs, special tokens, streaming, training, and files."""

import collections
import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from conftest import ROOT, shared_data
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyformer.tokenization import byte_level_bpe, load_tokenizer
from tinyformer.tokenization.byte_letters import all_to_bytes, all_to_unicode
from tinyformer.tokenization.byte_level_bpe import (
  END,
  GPT2_PATTERN,
  BytePairEncoding,
  Stream,
  bytes_to_unicode,
  learn_merges,
)

SAMPLE = (
  "def f(x):\n\treturn {'a': x**2}  # naïve café, “quotes” — don't you'll they're I'VE 1234567890"
  " ½ ²\n日本語のテキスト 한국어 العربية עברית हिन्दी ไทย"
  " 🙂👩‍👩‍👧‍👦🏳️‍🌈 \x00\x01\x7f\u200b\ufeff  \n\n\n   \t\r\n"
  " x  = 0x1F;;; <|endoftext|> ''' \u00a0\u3000end"
)


def test_tokenization_imports_neither_tinygrad_nor_models_nor_kernels():
  program = """
import sys
import tinyformer.tokenization
tokenizer = tinyformer.tokenization.load_tokenizer("weights/tiny")
assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"
forbidden = ("tinygrad", "models", "tinyformer.kernels")
print([name for name in sys.modules if name in forbidden or name.startswith("tinygrad.")])
"""
  command = [sys.executable, "-c", program]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  assert run.stdout == "[]\n"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gpt2")
  shutil.copy(shared_data("gpt2-bpe/vocab.bpe"), folder / "merges.txt")
  shutil.copy(shared_data("gpt2-bpe/encoder.json"), folder / "vocab.json")
  return BytePairEncoding.load(folder)


@pytest.fixture(scope="module")
def tiktoken_gpt2():
  """Return GPT-2's encoding as tiktoken loads it from OpenAI's two files."""
  from tiktoken.load import data_gym_to_mergeable_bpe_ranks

  ranks = data_gym_to_mergeable_bpe_ranks(
    str(shared_data("gpt2-bpe/vocab.bpe")), str(shared_data("gpt2-bpe/encoder.json"))
  )
  # The pattern that OpenAI published.
  pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
  return tiktoken.Encoding(
    "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: 50256}
  )


def random_texts(count):
  """Yield strings of letters, symbols, spaces and control characters from many scripts."""
  rng = random.Random(1)
  alphabets = [
    "abcdefghijklmnop'stmdlvre ETAOIN",
    " \t\n\r  \u00a0\u3000",
    "0123456789½²٣",
    ".,;:!?(){}[]<>|#@%^&*_-+=/\\\"'`~",
    "äöüßéèñçøåŁžĐ",
    "日本語漢字中文한국어あいうカタ",
    "🙂🏳️‍🌈👩‍👧🇩🇪😀",
    "\x00\x01\x1b\x7f\u200b\ufeff\u0301",
    "العربيةעבריתहिन्दीไทย",
  ]
  for _ in range(count):
    yield "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(12)))


def test_gpt2_token_ids_of_a_sentence(gpt2):
  assert gpt2.encode("How can entropy be reversed?") == [2437, 460, 40709, 307, 17687, 30]
  assert gpt2.end == 50256
  assert len(gpt2) == 50257


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_token_ids_of_random_strings_equal_tiktokens(gpt2, tiktoken_gpt2, count):
  for text in [SAMPLE, *random_texts(count)]:
    assert gpt2.encode(text) == tiktoken_gpt2.encode_ordinary(text), repr(text)


def test_token_ids_of_a_corpus_equal_tiktokens(gpt2, tiktoken_gpt2):
  texts = [path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]]
  texts.append(SAMPLE * 20)
  for name in ("tinyshakespeare/input.txt", "bpe-reference/german.txt", "bpe-reference/corpus.en"):
    texts.append(shared_data(name).read_text())
  for text in texts:
    ids = gpt2.encode(text)
    assert ids == tiktoken_gpt2.encode_ordinary(text)
    assert gpt2.decode(ids) == text


@pytest.fixture(scope="module")
def small():
  return BytePairEncoding.train(
    [SAMPLE * 3, "the cat sat on the mat, the cat sat on the hat " * 20], 400
  )


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_decoding_returns_the_encoded_text(small, text):
  assert small.decode(small.encode(text)) == text


def test_end_of_text_is_text_unless_requested(small):
  text = f"a{END}b"
  assert small.end not in small.encode(text)
  assert small.decode(small.encode(text)) == text
  assert small.decode([small.end]) == ""
  assert small.encode(text, (END,)) == [*small.encode("a"), small.end, *small.encode("b")]


def test_long_white_space_before_a_word_is_encoded(small):
  for text in (" " * 100_000 + "x", "a" + "\n" * 50_000 + " b", "\t" * 6000):
    assert small.decode(small.encode(text)) == text


def test_splitting_at_long_white_space_does_not_change_the_tokens(small, monkeypatch):
  text = "the" + " " * 300 + "cat"
  with monkeypatch.context() as patch:
    pattern = regex.compile(r"((?<!\s)\s{5,}(?=\s\S))")
    patch.setattr(byte_level_bpe, "LONG_WHITESPACE", pattern)
    ids = small.encode(text)
  assert ids == small.encode(text)


def test_a_lone_surrogate_becomes_a_replacement_character(small):
  assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"


def test_decoding_an_unknown_id_raises(small):
  with pytest.raises(ValueError, match="100000 is not a token ID"):
    small.decode([100000])


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_offsets_cover_the_text_and_contain_the_bytes_of_each_token(small, text):
  spans = small.encode_with_offsets(text)
  assert [i for i, _, _ in spans] == small.encode(text)
  assert all(small.token(i) in text[start:end].encode() for i, start, end in spans)
  covered = {n for _, start, end in spans for n in range(start, end)}
  assert sorted(covered) == list(range(len(text)))


# Checkpoints


def test_gpt2_adds_no_special_tokens(small, tmp_path):
  small.save(tmp_path)
  tokenizer = BytePairEncoding.load(tmp_path)
  assert tokenizer.single([7]) == [7]
  assert tokenizer.pair([7], [8]) == ([7, 8], [0, 0])
  assert tokenizer.mask is None
  assert tokenizer.end == small.end


def test_roberta_adds_special_tokens(small, tmp_path):
  small.save(tmp_path)
  specials = {token: len(small) + n for n, token in enumerate(["<s>", "<pad>", "</s>", "<mask>"])}
  (tmp_path / "vocab.json").write_text(json.dumps(small.vocab | specials))
  tokenizer = BytePairEncoding.load(tmp_path)
  cls, pad, sep, mask = specials.values()
  assert tokenizer.single([7]) == [cls, 7, sep]
  assert tokenizer.pair([7], [8]) == ([cls, 7, sep, sep, 8, sep], [0] * 6)
  assert tokenizer.mask == (mask, "<mask>")
  assert tokenizer.pad == pad
  assert tokenizer.end == sep
  assert len(tokenizer) == len(small) + 4
  # The mask token absorbs the space before it.
  expected = [*small.encode("a"), mask, *small.encode(".")]
  assert tokenizer.encode("a <mask>.", ("<mask>",)) == expected
  assert mask not in tokenizer.encode("a <mask>.")
  assert tokenizer.decode([cls, *small.encode("a <mask>"), sep]) == "a <mask>"


def test_tokenizer_json_sets_the_pattern_and_the_special_tokens(small, tmp_path):
  vocab = {token: i for token, i in small.vocab.items() if token != END}
  vocab |= {"zebra": 399, "qqqq": 400}
  content = {
    "model": {
      "vocab": vocab,
      "merges": [[bytes_to_unicode(a), bytes_to_unicode(b)] for a, b in small.merges],
      "ignore_merges": True,
    },
    "decoder": {"type": "ByteLevel"},
    "pre_tokenizer": {
      "type": "Sequence",
      "pretokenizers": [
        {
          "type": "Split",
          "pattern": {"Regex": r"\p{N}{1,3}|\p{L}+|[^\p{L}\p{N}]"},
          "behavior": "Isolated",
          "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
      ],
    },
    "added_tokens": [
      {"id": 401, "content": "<|eot|>", "special": True},
      {"id": 402, "content": "<tab>", "special": False},
    ],
    "post_processor": {
      "type": "TemplateProcessing",
      "single": [
        {"SpecialToken": {"id": "<|eot|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
      ],
      "pair": [
        {"SpecialToken": {"id": "<|eot|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
      ],
      "special_tokens": {"<|eot|>": {"ids": [401]}},
    },
  }
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eot|>"}}')
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.single([7]) == [401, 7]
  assert tokenizer.end == 401
  assert len(tokenizer) == 403
  # No merge produces "zebra", so only the whole word is this token.
  zebras = [*small.encode(" "), *small.encode("z"), *small.encode("ebras")]
  assert tokenizer.encode("zebra zebras") == [399, *zebras]
  assert tokenizer.encode("<tab>") == [402]
  assert tokenizer.decode([402, 401]) == "<tab>"
  assert 401 not in tokenizer.encode("<|eot|>")


# Streaming


def test_a_stream_returns_a_character_of_several_tokens_once_complete(gpt2):
  stream = Stream(gpt2)
  ids = gpt2.encode("😀 x")
  texts = [stream(i) for i in ids]
  assert len(ids) > 2
  assert texts[0] == ""
  assert "".join(texts) == "😀 x"
  assert "\ufffd" not in "".join(texts)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_streamed_text_equals_decoded_text(small, text):
  stream = Stream(small)
  assert "".join(map(stream, small.encode(text))) == text


# Training


def naive_merges(text, num_merges):
  """Compute BPE merges by definition: count all pairs, merge the most frequent, repeat.

  Of several most frequent pairs, merge the largest.
  """
  words = collections.Counter(
    tuple(bytes([b]) for b in match.encode()) for match in regex.findall(GPT2_PATTERN, text)
  )
  merges = []
  while len(merges) < num_merges:
    pairs = collections.Counter()
    for word, count in words.items():
      for pair in itertools.pairwise(word):
        pairs[pair] += count
    if not pairs:
      break
    best = max(pairs, key=lambda pair, pairs=pairs: (pairs[pair], pair))
    merges.append(best)
    merged_words = collections.Counter()
    for word, count in words.items():
      merged = []
      i = 0
      while i < len(word):
        if word[i : i + 2] == best:
          merged.append(word[i] + word[i + 1])
          i += 2
        else:
          merged.append(word[i])
          i += 1
      merged_words[tuple(merged)] += count
    words = merged_words
  return merges


@given(st.text(alphabet="aab bc'é", max_size=60))
@settings(max_examples=200, deadline=None)
def test_learned_merges_equal_naive_merges(text):
  assert learn_merges([text], 20) == naive_merges(text, 20)


def test_learned_merges_equal_the_reference():
  documents = shared_data("bpe-reference/corpus.en").read_text().split(END)
  expected = shared_data("bpe-reference/train-bpe-reference-merges.txt").read_text().splitlines()
  merges = learn_merges(documents, 243)
  assert [f"{bytes_to_unicode(a)} {bytes_to_unicode(b)}" for a, b in merges] == expected
  assert len(expected) == 243


def test_a_trained_vocabulary_has_the_requested_size(small):
  assert len(small) == 400
  assert small.end == 399
  with pytest.raises(ValueError, match="vocab_size 256 is too small"):
    BytePairEncoding.train(["abc"], 256)


def test_a_trained_vocabulary_is_smaller_if_no_pairs_remain():
  # The merges are ab and abab.
  assert len(BytePairEncoding.train(["abab"], 1000)) == 256 + 2 + 1


def test_a_saved_tokenizer_loads_unchanged(small, tmp_path):
  small.save(tmp_path)
  loaded = BytePairEncoding.load(tmp_path)
  assert loaded.encode(SAMPLE) == small.encode(SAMPLE)
  assert loaded.vocab == small.vocab
  assert loaded.merges == small.merges


def test_ids_may_have_another_order_than_merges(small, tmp_path):
  """The IDs of RoBERTa are an example."""
  ids = list(range(len(small)))
  random.Random(0).shuffle(ids)
  small.save(tmp_path)
  permuted = {token: ids[i] for token, i in small.vocab.items()}
  (tmp_path / "vocab.json").write_text(json.dumps(permuted))
  loaded = BytePairEncoding.load(tmp_path)
  assert loaded.encode(SAMPLE) == [ids[i] for i in small.encode(SAMPLE)]
  assert loaded.decode(loaded.encode(SAMPLE)) == SAMPLE


@pytest.mark.parametrize(
  "file, change, message",
  [
    ("vocab.json", lambda text: text[:100], r"vocab\.json"),
    ("vocab.json", lambda text: "[1]", "must contain a JSON object"),
    ("vocab.json", lambda text: text.replace('"a"', '"日"'), "no ID for"),
    (
      "merges.txt",
      lambda text: text.replace("t h", "t q", 1),
      r"merges\.txt|no earlier merge produces",
    ),
    ("merges.txt", lambda text: text + "one\n", "'one' must be two tokens"),
    ("merges.txt", lambda text: text + "日 a\n", "does not represent a byte"),
  ],
)
def test_damaged_or_inconsistent_files_raise(small, tmp_path, file, change, message):
  small.save(tmp_path)
  (tmp_path / file).write_text(change((tmp_path / file).read_text()))
  with pytest.raises(ValueError, match=message):
    BytePairEncoding.load(tmp_path)


def test_encoded_documents_end_in_eos(small):
  expected = [*small.encode("ab"), small.end, *small.encode("c"), small.end]
  assert small.encode_documents(["ab", "c"]).tolist() == expected
  assert small.encode_documents(["ab"]).dtype == np.int32


def test_a_character_vocabulary_has_one_token_per_character(tmp_path):
  text = "Ein Maß, 50 €,\n\n  naïve 😀😃 日本 \t don't"
  tokenizer = BytePairEncoding.characters([text[:9], text[9:]])
  ids = tokenizer.encode(text)
  assert len(ids) == len(text)
  assert tokenizer.decode(ids) == text
  assert [tokenizer.decode([i]) for i in ids] == list(text)
  tokenizer.save(tmp_path)
  assert BytePairEncoding.load(tmp_path).encode(text) == ids
  # Unknown characters are encoded as bytes.
  assert tokenizer.decode(tokenizer.encode("ø日本語")) == "ø日本語"
  assert len(BytePairEncoding.characters(["plain"])) == 257


def test_neither_file_of_a_tokenizer_changes_if_one_cannot_be_written(tmp_path, monkeypatch):
  write_text = Path.write_text

  def write_all_but_merges(path, *arguments, **options):
    if "merges" in path.name:
      raise OSError(28, "No space left on device")
    write_text(path, *arguments, **options)

  BytePairEncoding.train(["a b c"], 260).save(tmp_path)
  old = {path: path.read_bytes() for path in tmp_path.iterdir()}
  monkeypatch.setattr(Path, "write_text", write_all_but_merges)
  with pytest.raises(OSError, match="No space left"):
    BytePairEncoding.train(["the cat the cat"], 262).save(tmp_path)
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_tokens_are_converted_together_as_they_are_one_by_one():
  tokens = [b"", bytes(range(256)), *(bytes([b]) for b in range(256)), "é ".encode()]
  spellings = [bytes_to_unicode(token) for token in tokens]
  assert all_to_unicode(tokens) == spellings
  assert all_to_bytes(spellings) == tokens
  assert all_to_unicode([]) == all_to_bytes([]) == []


@pytest.mark.parametrize("letter", [" ", "\x00", "\xad", "\u0144", "\ud800", "😀"])
def test_a_character_that_represents_no_byte_is_named(letter):
  with pytest.raises(ValueError, match=r"does not represent a byte"):
    all_to_bytes(["ab", f"c{letter}"])
