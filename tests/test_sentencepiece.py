import itertools
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyformer import tokenization
from tinyformer.tokenization import normalizers
from tinyformer.tokenization.byte_level_bpe import Stream
from tinyformer.tokenization.sentencepiece import (
  BYTES,
  CONTROL,
  NORMAL,
  UNKNOWN,
  SentencePiece,
  viterbi,
  merge,
  unigram,
)

# sentencepiece's own file, written by hand

BYTE = 6


def varint(n):
  return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
  return (
    varint(number * 8) + varint(value)
    if isinstance(value, int)
    else varint(number * 8 + 2) + varint(len(value)) + value
  )


def piece(word, score, kind):
  return field(1, field(1, word.encode()) + b"\x15" + struct.pack("<f", score) + field(3, kind))


def model(pieces, kind, charsmap=b"", fallback=0, unknown=0, tidy=1):
  return (
    b"".join(piece(*p) for p in pieces)
    + field(2, field(3, kind) + field(35, fallback) + field(40, unknown))
    + field(3, field(2, charsmap) + field(3, 1) + field(4, tidy))
  )


def charsmap(table):
  """A double-array trie, each node's children in a block of 256 of their own."""
  units, texts, nodes = {0: 0}, b"", [(0, b"")]
  for n, (node, key) in enumerate(nodes):  # grows as it goes
    base = 256 * (n + 1)
    units[node] |= (node ^ base) << 10
    if key in table:
      units[node] |= 256
      units[base] = 1 << 31 | len(texts)
      texts += table[key].encode() + b"\0"
    for c in sorted({k[len(key)] for k in table if k.startswith(key) and k != key}):
      units[base ^ c] = c
      nodes.append((base ^ c, key + bytes([c])))
  size = 4 * (max(units) + 1)
  return (
    struct.pack("<I", size)
    + b"".join(struct.pack("<I", units.get(n, 0)) for n in range(size // 4))
    + texts
  )


SPECIALS = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]
LLAMA = model(
  [
    *SPECIALS,
    *((b, 0, BYTE) for b in BYTES),
    *(
      (w, -n, NORMAL)
      for n, w in enumerate(["ab", "▁t", "he", "▁the", "abab", "▁▁", "bc", *"▁theabcq"])
    ),
  ],
  2,
  fallback=1,
  tidy=0,
)
WORDS = [
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
T5 = model(
  [("<pad>", 0, CONTROL), ("</s>", 0, CONTROL), ("<unk>", 0, UNKNOWN), *WORDS],
  1,
  charsmap({"e\u0301".encode(): "é", "½".encode(): "1/2", b"\t": " ", b"\x07": ""}),
  unknown=2,
)


@pytest.fixture
def saved(tmp_path):
  def load(file, content, **more):
    for name, data in {file: content, **more}.items():
      (tmp_path / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return tokenization.load(tmp_path)

  return load


# the two ways to cut

TEXT = st.text(alphabet="abc", max_size=9)


@given(
  TEXT,
  st.dictionaries(
    st.text(alphabet="abc", min_size=1, max_size=3), st.integers(-9, -1), max_size=12
  ),
)
@settings(deadline=None)
def test_the_likeliest_cut_is_the_best_of_all(word, scores):
  unknown = min(scores.values(), default=0) - 10

  def cuts(word):
    return (
      [
        [word[:n], *rest]
        for n in range(1, len(word) + 1)
        if n == 1 or word[:n] in scores
        for rest in cuts(word[n:])
      ]
      if word
      else [[]]
    )

  def score(pieces):
    return sum(scores.get(p, unknown) for p in pieces)

  got = unigram(scores, unknown)(word)
  assert "".join(got) == word and score(got) == max(map(score, cuts(word)))


def test_of_equal_cuts_the_last_piece_is_the_longest():
  assert viterbi("aaa", {"a": -1, "aa": -1}, -9) == ["a", "aa"]


@given(
  TEXT,
  st.permutations([a + b for a, b in itertools.product(["a", "b", "c", "ab", "bc"], repeat=2)]),
)
@settings(deadline=None)
def test_merges_are_those_of_the_definition(word, order):
  def rank(a, b):
    return order.index(a + b) if a + b in order else None

  symbols = list(word)
  while pairs := [
    (r, n) for n, (a, b) in enumerate(zip(symbols, symbols[1:])) if (r := rank(a, b)) is not None
  ]:
    n = min(pairs)[1]
    symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]
  assert merge(list(word), rank) == symbols


# byte-pair merges: LLaMA


@given(st.text().filter(lambda t: "▁" not in t))
@settings(deadline=None)
def test_decoding_gives_the_text_back(tmp_path_factory, t):
  tokenizer = llama(tmp_path_factory)
  spans = tokenizer.encode_with_offsets(t)
  assert tokenizer.decode(i for i, _, _ in spans) == t
  assert sorted({n for _, a, b in spans for n in range(a, b)}) == list(range(len(t))) and [
    a for _, a, _ in spans
  ] == sorted(a for _, a, _ in spans)
  assert "".join(map(Stream(tokenizer), tokenizer.encode(t))) == (
    " " + t if t else ""
  )  # a stream goes on from a text: the blank stays


def llama(factory, known=[]):  # noqa: B006
  if not known:
    (folder := factory.mktemp("llama")).joinpath("tokenizer.model").write_bytes(LLAMA)
    known.append(tokenization.load(folder))
  return known[0]


def test_what_is_no_piece_is_bytes(saved):
  tokenizer = saved("tokenizer.model", LLAMA)
  assert [tokenizer.token(i) for i in tokenizer.encode("the abab é")] == [
    b" the",
    b" ",
    b"abab",
    b" ",
    b"\xc3",
    b"\xa9",
  ]
  assert [(a, b) for _, a, b in tokenizer.encode_with_offsets("the abab é")] == [
    (0, 3),
    (3, 4),
    (4, 8),
    (8, 9),
    (9, 10),
    (9, 10),
  ]
  assert (
    tokenizer.token(3 + ord("\n")) == b"\n"
    and tokenizer.decode(tokenizer.encode("<0x0A>")) == "<0x0A>"
  )


def test_a_typed_special_is_text_unless_it_is_asked_for(saved):
  tokenizer = saved("tokenizer.model", LLAMA)
  assert tokenizer.decode(tokenizer.encode("a</s>")) == "a</s>" and 2 not in tokenizer.encode(
    "a</s>"
  )
  assert (
    tokenizer.encode("a</s>", ["</s>"]) == [*tokenizer.encode("a"), 2]
    and tokenizer.decode([1, *tokenizer.encode("a"), 2]) == "a"
  )


def test_what_stands_around_a_text_is_the_configurations(saved):
  tokenizer = saved("tokenizer.model", LLAMA)
  assert (tokenizer.single([7]), tokenizer.end, tokenizer.pad, tokenizer.mask) == (
    [1, 7],
    2,
    None,
    None,
  )
  assert saved("tokenizer_config.json", {"add_bos_token": False, "add_eos_token": True}).single(
    [7]
  ) == [7, 2]


def test_a_long_text_without_blanks(saved):
  assert (
    len(saved("tokenizer.model", LLAMA).encode("abcq" * 25_000)) == 75_001
  )  # ab, c, q; a quadratic way would take minutes


def test_tokenizer_json_says_the_same(saved):
  pieces = {
    w: n
    for n, w in enumerate(
      ["<unk>", "<s>", "</s>", *BYTES, *"▁theabcq", "ab", "▁t", "he", "▁the", "abab", "▁▁", "bc"]
    )
  }
  steps = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
  ]
  full = {
    "model": {
      "type": "BPE",
      "vocab": pieces,
      "merges": ["a b", ["▁", "t"], "h e", "▁t he", "ab ab", "▁ ▁", "b c"],
      "byte_fallback": True,
      "unk_token": "<unk>",
    },
    "added_tokens": [
      {"id": n, "content": s, "special": True} for n, s in enumerate(["<unk>", "<s>", "</s>"])
    ],
    "decoder": {"type": "Strip"},
    "normalizer": {"type": "Sequence", "normalizers": steps},
    "pre_tokenizer": None,
  }
  old = [
    [
      (tokenizer.token(i), a, b)
      for t in ("the  theabc", "é\nabab", " x")
      for i, a, b in tokenizer.encode_with_offsets(t)
    ]
    for tokenizer in (
      saved("tokenizer.model", LLAMA),
      saved("tokenizer.json", full),
      saved(
        "tokenizer.json",
        full
        | {
          "normalizer": None,
          "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always", "split": False},
        },
      ),
    )
  ]
  assert (
    old[0] == old[1]
    and old[0][-2:] == [(b"  ", 0, 1), (b"x", 1, 2)]
    and old[2] == [*old[0][:-2], (b" ", 0, 1), (b"x", 1, 2)]
  )  # the newer way puts no second blank before a text that begins with one


# unigram models: T5, CamemBERT, DeBERTa, Marian


def test_t5_has_a_hundred_more_ids(saved):
  tokenizer = saved("spiece.model", T5)
  assert (
    len(tokenizer) == len(WORDS) + 3 + 100
    and tokenizer.specials["<extra_id_0>"] == len(tokenizer) - 1
  )
  assert (
    tokenizer.single(tokenizer.encode("the")) == [3, 1]
    and tokenizer.pair([7], [8])[0] == [7, 1, 8, 1]
    and tokenizer.pad == 0
  )
  assert tokenizer.encode("the<extra_id_0>.", ["<extra_id_0>"]) == [3, len(tokenizer) - 1, 4, 11]


def test_characters_are_rewritten_and_known_by_where_they_stood(saved):
  tokenizer, t = saved("spiece.model", T5), "\t the  cafe\u0301\x07 ½.\t "
  got = [(tokenizer.token(i), t[a:b]) for i, a, b in tokenizer.encode_with_offsets(t)]
  assert got == [
    (b" the", "the"),
    (b" ", "  "),
    (b"ca", "ca"),
    ("fé".encode(), "fe\u0301"),
    (b" ", " "),
    (b"1", "½"),
    (b"/2", "½"),
    (b".", "."),
  ]
  assert tokenizer.decode(tokenizer.encode(t)) == "the café 1/2."


def test_unknown_neighbours_are_one_token(saved):
  assert saved("spiece.model", T5).encode_with_offsets("the xyz.") == [
    (3, 0, 3),
    (4, 3, 4),
    (2, 4, 7),
    (11, 7, 8),
  ]


def test_camemberts_ids_are_fairseqs(saved):
  tokenizer = saved("sentencepiece.bpe.model", model([*SPECIALS, *WORDS], 1))
  assert (
    tokenizer.encode("the") == [7]
    and tokenizer.single([7]) == [5, 7, 6]
    and tokenizer.pair([7], [8]) == ([5, 7, 6, 6, 8, 6], [0] * 6)
  )
  assert (
    tokenizer.mask == (len(WORDS) + 7, "<mask>")
    and tokenizer.pad == 1
    and tokenizer.encode("x")[-1] == 3
  )
  assert tokenizer.encode("the <mask>.", ["<mask>"]) == [
    7,
    tokenizer.mask[0],
    8,
    15,
  ]  # it takes the blank before it


def test_debertas_mask_comes_after_its_pieces(saved):
  tokenizer = saved(
    "spm.model",
    model(
      [
        ("[PAD]", 0, CONTROL),
        ("[CLS]", 0, CONTROL),
        ("[SEP]", 0, CONTROL),
        ("[UNK]", 0, UNKNOWN),
        *WORDS,
      ],
      1,
      unknown=3,
    ),
  )
  assert tokenizer.mask == (len(WORDS) + 4, "[MASK]") and tokenizer.pair([7], [8]) == (
    [1, 7, 2, 8, 2],
    [0, 0, 0, 1, 1],
  )


def test_marians_ids_are_its_own(saved):
  vocab = {w: n for n, w in enumerate(["</s>", "<unk>", "ca", ">>deu<<", "▁the", "▁der", "<pad>"])}
  tokenizer = saved("source.spm", model([*SPECIALS, *WORDS], 1), **{"vocab.json": vocab})
  assert (
    tokenizer.encode(">>deu<< the h.") == [3, 4, 1, 1, 1]
    and tokenizer.single([4]) == [4, 0]
    and tokenizer.decode([5, 5, 0, 6]) == "der der"
  )


# steps


def test_tokenizers_rewrites_by_what_a_reader_sees():
  table = {"e\u0301": "é", "½": "1/2", "\r": " ", "\n": "_"}

  def rewrite(step, t):
    return [s for [s] in [step(normalizers.whole(t))]][0]

  assert (
    rewrite(normalizers.longest(table), "½e\u0301\r\n").text == "1/2é _"
    and rewrite(normalizers.by_grapheme(table), "½e\u0301\r\n").text == "1/2é "
  )
  assert rewrite(normalizers.longest(table), "a½b")[1:] == ([0, 1, 1, 1, 2], [1, 2, 2, 2, 3])


@given(st.text())
@settings(deadline=None)
def test_a_unicode_form_keeps_the_places(t):
  for form in ("NFC", "NFD", "NFKC", "NFKD"):
    [s] = normalizers.read({"type": form})[0](normalizers.whole(t))
    assert len(s.starts) == len(s.ends) == len(s.text) and list(s.starts) == sorted(s.starts)


# damage


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "source.spm"])
def test_a_damaged_model_is_told_in_a_line(tmp_path, name):
  if name == "source.spm":
    (tmp_path / "vocab.json").write_text("{}")
  for data in (
    T5[:-1],
    T5[:100],
    b"{}",
    b"",
    b"\xff" * 20,
    field(1, 7),
    model([], 1),
    model(WORDS, 3),
    model(WORDS, 1, unknown=99),
    T5.replace(b"1/2\0", b"1/2x").replace(b"\xc3\xa9\0", b"\xc3\xa9x"),
  ):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: [^\n]+$"):
      tokenization.load(tmp_path)


@pytest.mark.parametrize(
  "full, words",
  [
    (b"{", "is not JSON"),
    (b"[]", "should hold an object"),
    (
      {"model": {"vocab": [["a", -1]], "unk_id": 0}, "normalizer": {"type": "Magic"}},
      "the step Magic is not known",
    ),
    ({"model": {}}, "'normalizer' is missing|'vocab' is missing"),
    ({"model": {"merges": ["a"], "vocab": {}}}, "tokenizer.json: "),
    ({"model": {"vocab": {"a": 1}}, "normalizer": None}, "tokenizer.json: "),
    (
      {
        "model": {"merges": [], "vocab": {}},
        "decoder": {"type": "ByteLevel"},
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
      },
      "cannot be read here",
    ),
  ],
)
def test_a_damaged_tokenizer_json_is_told_in_a_line(saved, tmp_path, full, words):
  with pytest.raises(ValueError, match=words) as e:
    saved("tokenizer.json", full)
  assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match="has no tokenizer"):
    tokenization.load(tmp_path)
  with pytest.raises(FileNotFoundError, match="has no tokenizer"):
    SentencePiece.load(tmp_path)
