"""Test SentencePiece: BPE and unigram segmentation, normalizers, and loading of model files.

The model files are written here, because the package sentencepiece is not a requirement.
"""

import itertools
import json
import struct
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyformer import tokenization
from tinyformer.tokenization import normalizers
from tinyformer.tokenization.byte_level_bpe import Stream
from tinyformer.tokenization.normalizers import NormalizedString
from tinyformer.tokenization.sentencepiece import (
  BPE,
  BYTE_TOKENS,
  CONTROL,
  NORMAL,
  UNIGRAM,
  UNKNOWN,
  SentencePiece,
  apply_merges,
  unigram_segmenter,
  viterbi,
)
from tinyformer.tokenization.settings import Settings

BYTE = 6


def varint(n):
  return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def protobuf_field(number, value):
  if isinstance(value, int):
    return varint(number * 8) + varint(value)
  return varint(number * 8 + 2) + varint(len(value)) + value


def protobuf_piece(text, score, kind):
  score_field = b"\x15" + struct.pack("<f", score)
  return protobuf_field(1, protobuf_field(1, text.encode()) + score_field + protobuf_field(3, kind))


def protobuf_model(
  entries, model_type, charsmap=b"", byte_fallback=0, unk_id=0, remove_extra_whitespaces=1
):
  trainer = protobuf_field(3, model_type)
  trainer += protobuf_field(35, byte_fallback) + protobuf_field(40, unk_id)
  normalizer = protobuf_field(2, charsmap) + protobuf_field(3, 1)
  normalizer += protobuf_field(4, remove_extra_whitespaces)
  vocab = b"".join(protobuf_piece(*entry) for entry in entries)
  return vocab + protobuf_field(2, trainer) + protobuf_field(3, normalizer)


def make_charsmap(table):
  """Return a double-array trie in which each node's children have a block of 256 units."""
  units = {0: 0}
  texts = b""
  nodes = [(0, b"")]
  for n, (node, key) in enumerate(nodes):
    base = 256 * (n + 1)
    units[node] |= (node ^ base) << 10
    if key in table:
      units[node] |= 256
      units[base] = 1 << 31 | len(texts)
      texts += table[key].encode() + b"\0"
    for c in sorted({k[len(key)] for k in table if k.startswith(key) and k != key}):
      units[base ^ c] = c
      # The loop over `nodes` includes this new node.
      nodes.append((base ^ c, key + bytes([c])))
  # sentencepiece requires whole blocks of 256 units.
  num_units = -(-(max(units) + 1) // 256) * 256
  trie = b"".join(struct.pack("<I", units.get(n, 0)) for n in range(num_units))
  return struct.pack("<I", 4 * num_units) + trie + texts


SPECIALS = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]
LLAMA_TOKENS = ["ab", "▁t", "he", "▁the", "abab", "▁▁", "bc", *"▁theabcq"]
LLAMA = protobuf_model(
  [
    *SPECIALS,
    *((token, 0, BYTE) for token in BYTE_TOKENS),
    *((token, -n, NORMAL) for n, token in enumerate(LLAMA_TOKENS)),
  ],
  BPE,
  byte_fallback=1,
  remove_extra_whitespaces=0,
)
TOKENS = [
  ("▁the", -2, NORMAL),
  ("▁", -3, NORMAL),
  ("t", -4, NORMAL),
  ("he", -3, NORMAL),
  ("h", -4, NORMAL),
  ("e", -4, NORMAL),
  ("ca", -2, NORMAL),
  ("fé", -3, NORMAL),
  (".", -3, NORMAL),
  ("1", -4, NORMAL),
  ("/2", -4, NORMAL),
]
T5 = protobuf_model(
  [("<pad>", 0, CONTROL), ("</s>", 0, CONTROL), ("<unk>", 0, UNKNOWN), *TOKENS],
  UNIGRAM,
  charsmap=make_charsmap({"e\u0301".encode(): "é", "½".encode(): "1/2", b"\t": " ", b"\x07": ""}),
  unk_id=2,
)


@pytest.fixture
def load_files(tmp_path):
  def load(file, content, **more):
    for name, data in {file: content, **more}.items():
      encoded = data if isinstance(data, bytes) else json.dumps(data).encode()
      (tmp_path / name).write_bytes(encoded)
    return tokenization.load_tokenizer(tmp_path)

  return load


# Segmentation by Viterbi and by BPE

TEXT = st.text(alphabet="abc", max_size=9)


def all_segmentations(text, tokens):
  """Return all ways to split a text into tokens and single characters."""
  if not text:
    return [[]]
  return [
    [text[:n], *rest]
    for n in range(1, len(text) + 1)
    if n == 1 or text[:n] in tokens
    for rest in all_segmentations(text[n:], tokens)
  ]


@given(
  TEXT,
  st.dictionaries(
    st.text(alphabet="abc", min_size=1, max_size=3), st.integers(-9, -1), max_size=12
  ),
)
@settings(deadline=None)
def test_viterbi_finds_the_segmentation_with_the_highest_score(text, scores):
  unk_score = min(scores.values(), default=0) - 10

  def total(tokens):
    return sum(scores.get(token, unk_score) for token in tokens)

  actual = unigram_segmenter(scores, unk_score)(text)
  assert "".join(actual) == text
  assert total(actual) == max(map(total, all_segmentations(text, scores)))


def test_viterbi_prefers_a_long_last_token_among_equal_scores():
  assert viterbi("aaa", {"a": -1, "aa": -1}, -9) == ["a", "aa"]


@given(
  TEXT,
  st.permutations([a + b for a, b in itertools.product(["a", "b", "c", "ab", "bc"], repeat=2)]),
)
@settings(deadline=None)
def test_merges_equal_naive_bpe(text, order):
  def rank(a, b):
    return order.index(a + b) if a + b in order else None

  symbols = list(text)
  while True:
    ranks = [(rank(a, b), n) for n, (a, b) in enumerate(itertools.pairwise(symbols))]
    mergeable = [(r, n) for r, n in ranks if r is not None]
    if not mergeable:
      break
    _, n = min(mergeable)
    symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]
  assert apply_merges(list(text), rank) == symbols


# BPE models: LLaMA


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  folder = tmp_path_factory.mktemp("llama")
  (folder / "tokenizer.model").write_bytes(LLAMA)
  return tokenization.load_tokenizer(folder)


@given(st.text().filter(lambda text: "▁" not in text))
@settings(deadline=None)
def test_decoding_returns_the_encoded_text(llama, text):
  spans = llama.encode_with_offsets(text)
  starts = [start for _, start, _ in spans]
  covered = {n for _, start, end in spans for n in range(start, end)}
  assert llama.decode(i for i, _, _ in spans) == text
  assert sorted(covered) == list(range(len(text)))
  assert starts == sorted(starts)
  # Streamed text continues a prompt, so the leading space remains.
  streamed = "".join(map(Stream(llama), llama.encode(text)))
  assert streamed == (" " + text if text else "")


def test_unknown_characters_become_byte_tokens(llama):
  text = "the abab é"
  tokens = [llama.token(i) for i in llama.encode(text)]
  assert tokens == [b" the", b" ", b"abab", b" ", b"\xc3", b"\xa9"]
  offsets = [(start, end) for _, start, end in llama.encode_with_offsets(text)]
  assert offsets == [(0, 3), (3, 4), (4, 8), (8, 9), (9, 10), (9, 10)]
  assert llama.token(3 + ord("\n")) == b"\n"
  assert llama.decode(llama.encode("<0x0A>")) == "<0x0A>"


def test_a_special_token_is_text_unless_requested(llama):
  assert llama.decode(llama.encode("a</s>")) == "a</s>"
  assert 2 not in llama.encode("a</s>")
  assert llama.encode("a</s>", ["</s>"]) == [*llama.encode("a"), 2]
  assert llama.decode([1, *llama.encode("a"), 2]) == "a"


def test_tokenizer_config_json_selects_bos_and_eos(load_files):
  tokenizer = load_files("tokenizer.model", LLAMA)
  assert tokenizer.single([7]) == [1, 7]
  assert tokenizer.end == 2
  assert tokenizer.pad is None
  assert tokenizer.mask is None
  config = {"add_bos_token": False, "add_eos_token": True}
  assert load_files("tokenizer_config.json", config).single([7]) == [7, 2]


def test_a_long_text_without_spaces_is_encoded_in_subquadratic_time(llama):
  # Each repetition becomes ab, c and q. A quadratic algorithm would take minutes.
  assert len(llama.encode("abcq" * 25_000)) == 75_001


def test_tokenizer_json_equals_the_model_file(load_files):
  tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *"▁theabcq"]
  tokens += ["ab", "▁t", "he", "▁the", "abab", "▁▁", "bc"]
  specials = ["<unk>", "<s>", "</s>"]
  steps = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
  ]
  content = {
    "model": {
      "type": "BPE",
      "vocab": {token: n for n, token in enumerate(tokens)},
      "merges": ["a b", ["▁", "t"], "h e", "▁t he", "ab ab", "▁ ▁", "b c"],
      "byte_fallback": True,
      "unk_token": "<unk>",
    },
    "added_tokens": [
      {"id": n, "content": token, "special": True} for n, token in enumerate(specials)
    ],
    "decoder": {
      "type": "Sequence",
      "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
      ],
    },
    "normalizer": {"type": "Sequence", "normalizers": steps},
    "pre_tokenizer": None,
  }
  metaspace = {"type": "Metaspace", "prepend_scheme": "always", "split": False}

  def encode(tokenizer):
    return [
      (tokenizer.token(i), start, end)
      for text in ("the  theabc", "é\nabab", " x")
      for i, start, end in tokenizer.encode_with_offsets(text)
    ]

  model_file = encode(load_files("tokenizer.model", LLAMA))
  with_normalizers = encode(load_files("tokenizer.json", content))
  content |= {"normalizer": None, "pre_tokenizer": metaspace}
  with_metaspace = encode(load_files("tokenizer.json", content))
  assert model_file == with_normalizers
  assert model_file[-2:] == [(b"  ", 0, 1), (b"x", 1, 2)]
  # Metaspace does not insert a second space before a text that begins with one.
  assert with_metaspace == [*model_file[:-2], (b" ", 0, 1), (b"x", 1, 2)]


# Unigram models: T5, CamemBERT, DeBERTa, Marian


def test_t5_has_100_sentinel_tokens(load_files):
  tokenizer = load_files("spiece.model", T5)
  last = len(tokenizer) - 1
  assert len(tokenizer) == len(TOKENS) + 3 + 100
  assert tokenizer.specials["<extra_id_0>"] == last
  assert tokenizer.single(tokenizer.encode("the")) == [3, 1]
  assert tokenizer.pair([7], [8])[0] == [7, 1, 8, 1]
  assert tokenizer.pad == 0
  assert tokenizer.encode("the<extra_id_0>.", ["<extra_id_0>"]) == [3, last, 4, 11]


def test_offsets_of_rewritten_characters_refer_to_the_original_text(load_files):
  tokenizer = load_files("spiece.model", T5)
  text = "\t the  cafe\u0301\x07 ½.\t "
  spans = tokenizer.encode_with_offsets(text)
  assert [(tokenizer.token(i), text[start:end]) for i, start, end in spans] == [
    (b" the", "the"),
    (b" ", "  "),
    (b"ca", "ca"),
    ("fé".encode(), "fe\u0301"),
    (b" ", " "),
    (b"1", "½"),
    (b"/2", "½"),
    (b".", "."),
  ]
  assert tokenizer.decode(tokenizer.encode(text)) == "the café 1/2."


def test_adjacent_unknown_characters_are_one_token(load_files):
  spans = load_files("spiece.model", T5).encode_with_offsets("the xyz.")
  assert spans == [(3, 0, 3), (4, 3, 4), (2, 4, 7), (11, 7, 8)]


def test_camembert_uses_the_ids_of_fairseq(load_files):
  model = protobuf_model([*SPECIALS, *TOKENS], UNIGRAM)
  tokenizer = load_files("sentencepiece.bpe.model", model)
  mask = len(TOKENS) + 7
  assert tokenizer.encode("the") == [7]
  assert tokenizer.single([7]) == [5, 7, 6]
  assert tokenizer.pair([7], [8]) == ([5, 7, 6, 6, 8, 6], [0] * 6)
  assert tokenizer.mask == (mask, "<mask>")
  assert tokenizer.pad == 1
  assert tokenizer.encode("x")[-1] == 3
  # The mask token absorbs the space before it.
  assert tokenizer.encode("the <mask>.", ["<mask>"]) == [7, mask, 8, 15]


@pytest.mark.parametrize("value", [-1, 2**70, 0.5, "7", None, [1]])
@pytest.mark.parametrize("name", ["source.spm", "merges.txt"])
def test_a_vocab_json_with_an_invalid_id_is_refused(load_files, name, value):
  vocab = {"</s>": 0, "<unk>": 1, "a": value}
  model = protobuf_model([*SPECIALS, *TOKENS], UNIGRAM)
  with pytest.raises(ValueError, match=r"vocab\.json must contain a JSON object that maps"):
    load_files(name, model, **{"vocab.json": vocab})


def test_the_type_of_a_token_decides_which_is_unknown(load_files):
  """The setting unk_id of the trainer does not, as in sentencepiece."""
  model = protobuf_model([*SPECIALS, *TOKENS], UNIGRAM, unk_id=2)
  assert load_files("tokenizer.model", model).encode("x")[-1] == 0


def test_deberta_appends_the_mask_token(load_files):
  specials = [("[PAD]", 0, CONTROL), ("[CLS]", 0, CONTROL), ("[SEP]", 0, CONTROL)]
  specials.append(("[UNK]", 0, UNKNOWN))
  tokenizer = load_files("spm.model", protobuf_model([*specials, *TOKENS], UNIGRAM, unk_id=3))
  assert tokenizer.mask == (len(TOKENS) + 4, "[MASK]")
  assert tokenizer.pair([7], [8]) == ([1, 7, 2, 8, 2], [0, 0, 0, 1, 1])


def test_marian_takes_ids_from_vocab_json(load_files):
  tokens = ["</s>", "<unk>", "ca", ">>deu<<", "▁the", "▁der", "<pad>"]
  vocab = {token: n for n, token in enumerate(tokens)}
  model = protobuf_model([*SPECIALS, *TOKENS], UNIGRAM)
  tokenizer = load_files("source.spm", model, **{"vocab.json": vocab})
  assert tokenizer.encode(">>deu<< the h.") == [3, 4, 1, 1, 1]
  assert tokenizer.single([4]) == [4, 0]
  assert tokenizer.decode([5, 5, 0, 6]) == "der der"


# Normalizers


def test_replace_longest_ignores_grapheme_clusters_and_replace_graphemes_does_not():
  table = {"e\u0301": "é", "½": "1/2", "\r": " ", "\n": "_"}
  text = NormalizedString.from_text("½e\u0301\r\n")
  assert normalizers.replace_longest(table)(text).text == "1/2é _"
  assert normalizers.replace_graphemes(table)(text).text == "1/2é "


def test_each_replacement_character_represents_the_replaced_span():
  normalized = normalizers.replace_longest({"½": "1/2"})(NormalizedString.from_text("a½b"))
  assert normalized.starts == [0, 1, 1, 1, 2]
  assert normalized.ends == [1, 2, 2, 2, 3]


@given(st.text())
@settings(deadline=None)
def test_a_unicode_form_has_ordered_offsets(text):
  for form in ("NFC", "NFD", "NFKC", "NFKD"):
    [normalize] = normalizers.from_json(Settings("normalizer", {"type": form}))
    normalized = normalize(NormalizedString.from_text(text))
    assert len(normalized.starts) == len(normalized.ends) == len(normalized.text)
    assert list(normalized.starts) == sorted(normalized.starts)
    assert normalized.text == unicodedata.normalize(form, text)


# Damaged files


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "source.spm"])
def test_a_damaged_model_file_raises_with_a_one_line_message(tmp_path, name):
  if name == "source.spm":
    (tmp_path / "vocab.json").write_text("{}")
  for data in (
    T5[:-1],
    T5[:100],
    b"{}",
    b"",
    b"\xff" * 20,
    protobuf_field(1, 7),
    protobuf_model([], UNIGRAM),
    protobuf_model(TOKENS, 3),
    protobuf_model(TOKENS, UNIGRAM),
    protobuf_model([*TOKENS, ("<unk>", 0, UNKNOWN), ("<unk2>", 0, UNKNOWN)], UNIGRAM),
    T5.replace(b"1/2\0", b"1/2x").replace(b"\xc3\xa9\0", b"\xc3\xa9x"),
  ):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: [^\n]+$"):
      tokenization.load_tokenizer(tmp_path)


@pytest.mark.parametrize("token, byte_fallback", [("<0xZZ>", 1), ("<0x1>", 1), ("<0x0A>", 0)])
def test_a_misspelled_or_unused_byte_token_is_refused(load_files, token, byte_fallback):
  """SentencePiece refuses these files, too."""
  tokens = [*SPECIALS, (token, 0, BYTE), *TOKENS]
  with pytest.raises(ValueError, match="must be like <0x0A>"):
    load_files("tokenizer.model", protobuf_model(tokens, BPE, byte_fallback=byte_fallback))


@pytest.mark.parametrize(
  "content, message",
  [
    (b"{", "is not JSON"),
    (b"[]", "must contain a JSON object, not list"),
    (
      {"model": {"vocab": [["a", -1]], "unk_id": 0}, "normalizer": {"type": "Magic"}},
      "normalizer Magic is not supported",
    ),
    ({"model": {}}, "'vocab' is missing"),
    ({"model": {"merges": ["a"], "vocab": {}}}, r"tokenizer\.json: "),
    ({"model": {"vocab": {"a": 1}}, "normalizer": None}, r"tokenizer\.json: "),
    ({"model": {"merges": [], "vocab": {}}}, "the vocabulary is empty"),
  ],
)
def test_a_damaged_tokenizer_json_raises_with_a_one_line_message(
  load_files, tmp_path, content, message
):
  with pytest.raises(ValueError, match=message) as error:
    load_files("tokenizer.json", content)
  assert str(tmp_path) in str(error.value)
  assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer_raises(tmp_path):
  with pytest.raises(FileNotFoundError, match="has no tokenizer"):
    tokenization.load_tokenizer(tmp_path)
  with pytest.raises(FileNotFoundError, match="has no tokenizer"):
    SentencePiece.load(tmp_path)
