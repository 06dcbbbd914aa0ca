import json
import random
import shutil

import numpy as np
import pytest
import tiktoken
from conftest import ROOT, shared_data
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyformer.tokenization import load
from tinyformer.tokenization.byte_level_bpe import (
  END,
  PIECES,
  BytePairEncoding,
  Stream,
  learn_merges,
  bytes_to_unicode,
)

SAMPLE = """def f(x):\n\treturn {'a': x**2}  # naïve café, “quotes” — don't you'll they're I'VE 1234567890 ½ ²
日本語のテキスト 한국어 العربية עברית हिन्दी ไทย 🙂👩‍👩‍👧‍👦🏳️‍🌈 \x00\x01\x7f\u200b\ufeff  \n\n\n   \t\r\n x  = 0x1F;;; <|endoftext|> ''' \u00a0\u3000end"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gpt2")
  shutil.copy(shared_data("gpt2-bpe/vocab.bpe"), folder / "merges.txt")
  shutil.copy(shared_data("gpt2-bpe/encoder.json"), folder / "vocab.json")
  return BytePairEncoding.load(folder)


@pytest.fixture(scope="module")
def tiktokens():
  """GPT-2's encoding as tiktoken itself reads it from OpenAI's two files."""
  from tiktoken.load import data_gym_to_mergeable_bpe_ranks

  ranks = data_gym_to_mergeable_bpe_ranks(
    str(shared_data("gpt2-bpe/vocab.bpe")), str(shared_data("gpt2-bpe/encoder.json"))
  )
  pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # as OpenAI published it
  return tiktoken.Encoding(
    "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: 50256}
  )


def random_texts(count):
  """Strings of letters, signs and spaces from many scripts, with code and control characters among them."""
  draw = random.Random(1)
  pools = [
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
    yield "".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(12)))


def test_a_known_text_has_its_known_ids(gpt2):
  assert gpt2.encode("How can entropy be reversed?") == [2437, 460, 40709, 307, 17687, 30]
  assert gpt2.end == 50256 and len(gpt2) == 50257


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_it_is_tiktokens_on_many_strings(gpt2, tiktokens, count):
  for text in [SAMPLE, *random_texts(count)]:
    assert gpt2.encode(text) == tiktokens.encode_ordinary(text), repr(text)


def test_it_is_tiktokens_on_a_corpus(gpt2, tiktokens):
  texts = [p.read_text() for p in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]] + [SAMPLE * 20]
  for name in ("tinyshakespeare/input.txt", "bpe-reference/german.txt", "bpe-reference/corpus.en"):
    texts.append(shared_data(name).read_text())
  for text in texts:
    ids = gpt2.encode(text)
    assert ids == tiktokens.encode_ordinary(text) and gpt2.decode(ids) == text


@pytest.fixture(scope="module")
def small():
  return BytePairEncoding.train(
    [SAMPLE * 3, "the cat sat on the mat, the cat sat on the hat " * 20], 400
  )


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_decoding_gives_the_text_back(small, text):
  assert small.decode(small.encode(text)) == text


def test_a_typed_end_of_text_is_text(small):
  assert (
    small.end not in small.encode(f"a{END}b")
    and small.decode(small.encode(f"a{END}b")) == f"a{END}b"
  )
  assert small.decode([small.end]) == "" and small.encode(f"a{END}b", (END,)) == [
    *small.encode("a"),
    small.end,
    *small.encode("b"),
  ]


def test_long_white_space_before_a_word(small):
  for text in (" " * 100_000 + "x", "a" + "\n" * 50_000 + " b", "\t" * 6000):
    assert small.decode(small.encode(text)) == text
  short = "the" + " " * 300 + "cat"
  import regex

  from tinyformer.tokenization import byte_level_bpe

  long_space, byte_level_bpe.LONG_SPACE = (
    byte_level_bpe.LONG_SPACE,
    regex.compile(r"((?<!\s)\s{5,}(?=\s\S))"),
  )
  try:
    cut = small.encode(short)
  finally:
    byte_level_bpe.LONG_SPACE = long_space
  assert cut == small.encode(short)  # the cut falls where no token could have spanned it


def test_a_lone_surrogate_becomes_a_replacement_character(small):
  assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"


def test_an_unknown_id_is_refused(small):
  with pytest.raises(ValueError, match="100000 is not the id of a token"):
    small.decode([100000])


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_spans_are_the_characters_that_tokens_came_from(small, text):
  spans = small.encode_with_offsets(text)
  assert [i for i, _, _ in spans] == small.encode(text)
  assert all(small.token(i) in text[a:b].encode() for i, a, b in spans) and sorted(
    {n for _, a, b in spans for n in range(a, b)}
  ) == list(range(len(text)))


# checkpoints


def test_roberta_has_tokens_around_a_text_and_gpt2_has_none(small, tmp_path):
  small.save(tmp_path)
  tokenizer = BytePairEncoding.load(tmp_path)
  assert (
    tokenizer.single([7]) == [7]
    and tokenizer.pair([7], [8]) == ([7, 8], [0, 0])
    and tokenizer.mask is None
    and tokenizer.end == small.end
  )
  specials = {s: len(small) + n for n, s in enumerate(["<s>", "<pad>", "</s>", "<mask>"])}
  (tmp_path / "vocab.json").write_text(json.dumps(small.vocab | specials))
  tokenizer, (cls, pad, sep, mask) = BytePairEncoding.load(tmp_path), specials.values()
  assert tokenizer.single([7]) == [cls, 7, sep] and tokenizer.pair([7], [8]) == (
    [cls, 7, sep, sep, 8, sep],
    [0] * 6,
  )
  assert (tokenizer.mask, tokenizer.pad, tokenizer.end, len(tokenizer)) == (
    (mask, "<mask>"),
    pad,
    sep,
    len(small) + 4,
  )
  assert tokenizer.encode("a <mask>.", ("<mask>",)) == [
    *small.encode("a"),
    mask,
    *small.encode("."),
  ]  # it takes the blank before it
  assert (
    mask not in tokenizer.encode("a <mask>.")
    and tokenizer.decode([cls, *small.encode("a <mask>"), sep]) == "a <mask>"
  )


def test_tokenizer_json_says_how_a_text_is_cut(small, tmp_path):
  vocab = {t: i for t, i in small.vocab.items() if t != END} | {"zebra": 399, "qqqq": 400}
  full = {
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
      "single": [],
      "pair": [
        {"SpecialToken": {"id": "<|eot|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
      ],
      "special_tokens": {"<|eot|>": {"ids": [401]}},
    },
  }
  (tmp_path / "tokenizer.json").write_text(json.dumps(full))
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eot|>"}}')
  tokenizer = load(tmp_path)
  assert tokenizer.single([7]) == [401, 7] and tokenizer.end == 401 and len(tokenizer) == 403
  assert tokenizer.encode("zebra zebras") == [
    399,
    *small.encode(" "),
    *small.encode("z"),
    *small.encode("ebras"),
  ]  # no merge makes it of its parts
  assert (
    tokenizer.encode("<tab>") == [402]
    and tokenizer.decode([402, 401]) == "<tab>"
    and 401 not in tokenizer.encode("<|eot|>")
  )


# a stream


def test_a_character_of_several_tokens_comes_out_whole(gpt2):
  stream = Stream(gpt2)
  ids = gpt2.encode("😀 x")
  pieces = [stream(i) for i in ids]
  assert (
    len(ids) > 2
    and pieces[0] == ""
    and "".join(pieces) == "😀 x"
    and "\ufffd" not in "".join(pieces)
  )


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_a_stream_gives_what_decode_gives(small, text):
  stream = Stream(small)
  assert "".join(map(stream, small.encode(text))) == text


# training


def naive_merges(text, count):
  """Byte-pair encoding as it is defined: count all pairs, join the commonest (the largest of several), again."""
  import collections

  import regex

  words = collections.Counter(
    tuple(bytes([b]) for b in m.encode()) for m in regex.findall(PIECES, text)
  )
  merges = []
  while len(merges) < count:
    pairs = collections.Counter()
    for word, n in words.items():
      for pair in zip(word, word[1:]):
        pairs[pair] += n
    if not pairs:
      break
    best = max(pairs, key=lambda p: (pairs[p], p))
    merges.append(best)
    new = collections.Counter()
    for word, n in words.items():
      out, i = [], 0
      while i < len(word):
        if word[i : i + 2] == best:
          out, i = out + [word[i] + word[i + 1]], i + 2
        else:
          out, i = out + [word[i]], i + 1
      new[tuple(out)] += n
    words = new
  return merges


@given(st.text(alphabet="aab bc'é", max_size=60))
@settings(max_examples=200, deadline=None)
def test_merges_are_those_of_the_definition(text):
  assert learn_merges([text], 20) == naive_merges(text, 20)


def test_merges_are_those_of_the_reference():
  documents = shared_data("bpe-reference/corpus.en").read_text().split(END)
  want = shared_data("bpe-reference/train-bpe-reference-merges.txt").read_text().splitlines()
  assert [
    f"{bytes_to_unicode(a)} {bytes_to_unicode(b)}" for a, b in learn_merges(documents, 243)
  ] == want and len(want) == 243


def test_a_trained_vocabulary_has_the_size_asked_for(small):
  assert len(small) == 400 and small.end == 399
  with pytest.raises(ValueError, match="256 tokens are too few"):
    BytePairEncoding.train(["abc"], 256)
  assert (
    len(BytePairEncoding.train(["abab"], 1000)) == 256 + 2 + 1
  )  # the text has no more pairs: ab, abab


def test_what_is_saved_loads_again(small, tmp_path):
  small.save(tmp_path)
  again = BytePairEncoding.load(tmp_path)
  assert (
    again.encode(SAMPLE) == small.encode(SAMPLE)
    and again.vocab == small.vocab
    and again.merges == small.merges
  )


def test_ids_may_stand_in_another_order_than_merges(small, tmp_path):
  """As RoBERTa's do."""
  ids = list(range(len(small)))
  random.Random(0).shuffle(ids)
  small.save(tmp_path)
  (tmp_path / "vocab.json").write_text(
    json.dumps({token: ids[i] for token, i in small.vocab.items()})
  )
  again = BytePairEncoding.load(tmp_path)
  assert (
    again.encode(SAMPLE) == [ids[i] for i in small.encode(SAMPLE)]
    and again.decode(again.encode(SAMPLE)) == SAMPLE
  )


@pytest.mark.parametrize(
  "file, change, words",
  [
    ("vocab.json", lambda t: t[:100], "vocab.json"),
    ("vocab.json", lambda t: "[1]", "not a table of ids"),
    ("vocab.json", lambda t: t.replace('"a"', '"日"'), "no id for"),
    ("merges.txt", lambda t: t.replace("t h", "t q", 1), "merges.txt|joins what is not"),
    ("merges.txt", lambda t: t + "one\n", "'one' is no pair"),
    ("merges.txt", lambda t: t + "日 a\n", "stands for no byte"),
  ],
)
def test_files_that_do_not_fit_are_refused(small, tmp_path, file, change, words):
  small.save(tmp_path)
  (tmp_path / file).write_text(change((tmp_path / file).read_text()))
  with pytest.raises(ValueError, match=words):
    BytePairEncoding.load(tmp_path)


def test_documents_are_closed_by_the_end(small):
  assert small.encode_documents(["ab", "c"]).tolist() == [
    *small.encode("ab"),
    small.end,
    *small.encode("c"),
    small.end,
  ]
  assert small.encode_documents(["ab"]).dtype == np.int32


def test_characters_are_one_token_each(tmp_path):
  text = "Ein Maß, 50 €,\n\n  naïve 😀😃 日本 \t don't"
  tokenizer = BytePairEncoding.characters([text[:9], text[9:]])
  assert (
    len(tokenizer.encode(text)) == len(text) and tokenizer.decode(tokenizer.encode(text)) == text
  )
  assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == list(text)
  tokenizer.save(tmp_path)
  assert BytePairEncoding.load(tmp_path).encode(text) == tokenizer.encode(text)
  assert (
    tokenizer.decode(tokenizer.encode("ø日本語")) == "ø日本語"
  )  # what it does not know, as bytes
  assert len(BytePairEncoding.characters(["plain"])) == 257
