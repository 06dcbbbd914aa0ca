"""Every kind of tokenizer against Hugging Face's tokenizers and sentencepiece, on a million characters and on prose; vocabularies are learned here."""

import json
import lzma
import random
import shutil
from unittest.mock import ANY

import pytest
from conftest import shared_data

from tinyformer import tokenization
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.slow

ALPHABETS = [
  "abcdefghijklmnopqrstuvwxyzABCDE",
  "éÀñçßøŁİıǅﬁΣς½²Åｶﾞ㌔",
  "中国語日本가나다각",
  "😀👍🏽👨‍👩‍👧🇩🇪",
  " \t\n\r\u00a0\u2003\u3000\u200b\u2028",
  ".,!?$+<=>^`|~#@¿«»—…()[]{}_-'\"▁",
  "\0\x07\x1b\x85\ufffd\ufeff\u0301\u0308\u0378\ue000\u1100\u1161",
  "0123456789१٣",
]


@pytest.fixture(scope="module")
def corpus():
  """A million characters: words, code, accents, CJK, emoji, control characters, unassigned ones; then prose and German."""
  draw = random.Random(0)
  strange = "".join(
    draw.choice(draw.choices(ALPHABETS, [60, 5, 4, 2, 18, 6, 1, 3])[0]) for _ in range(1_000_000)
  )
  prose = (
    lzma.open(shared_data("prose/fairytales.txt.xz"), "rt", encoding="utf-8").read()[:500_000]
    + shared_data("bpe-reference/german.txt").read_text()[:300_000]
  )
  return [t[i : i + 1000] for t in (strange, prose) for i in range(0, len(t), 1000)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory, corpus):
  """Learns a sentencepiece model once for each set of options."""
  folder, known = tmp_path_factory.mktemp("learned"), {}
  (folder / "text").write_text(
    "\n".join(line for t in corpus[1000:] for line in t.split("\n"))
    + "\n"
    + "\n".join(" ".join(t.split()) for t in corpus[:200]),
    encoding="utf-8",
  )

  def learn(**options):
    key = json.dumps(options)
    if key not in known:
      known[key] = folder / f"{len(known)}.model"
      sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(known[key].with_suffix("")),
        minloglevel=2,
        character_coverage=0.999,
        **options,
      )
    return known[key]

  return learn


def near(t, ranges):
  """The share of equal ranges, but for blanks before them. All overlap: of what was rewritten to another length, ours is from all, theirs from a part or one off.

  Of a blank that was put in, ours is from nothing, theirs from the next character; of a byte of a character, sentencepiece's is from nothing but for the last.
  """
  assert all(max(a, c) < min(b, d) or a == b or c == d for (a, b), (c, d) in ranges), (
    ranges,
    repr(t),
  )
  return sum(
    (b == d and (a == c or t[a:c].isspace())) or c == d for (a, b), (c, d) in ranges
  ) / max(1, len(ranges))


LLAMA = dict(
  model_type="bpe",
  vocab_size=2000,
  byte_fallback=True,
  normalization_rule_name="identity",
  remove_extra_whitespaces=False,
  split_digits=True,
  allow_whitespace_only_pieces=True,
)
T5 = dict(model_type="unigram", vocab_size=2000, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
CAMEMBERT = dict(model_type="unigram", vocab_size=2000)
DEBERTA = dict(
  model_type="unigram",
  vocab_size=2000,
  pad_id=0,
  bos_id=1,
  eos_id=2,
  unk_id=3,
  pad_piece="[PAD]",
  bos_piece="[CLS]",
  eos_piece="[SEP]",
  unk_piece="[UNK]",
)


@pytest.mark.parametrize(
  "name, options",
  [
    ("tokenizer.model", LLAMA),
    ("spiece.model", T5),
    ("spm.model", DEBERTA),
    ("tokenizer.model", dict(model_type="bpe", vocab_size=2000)),
    ("tokenizer.model", LLAMA | dict(user_defined_symbols=["<code>", "ab"], model_type="unigram")),
  ],
)
def test_a_model_is_read_as_sentencepiece_does(tmp_path, corpus, learned, name, options):
  shutil.copy(learned(**options), tmp_path / name)
  ours, theirs = (
    tokenization.load_tokenizer(tmp_path),
    sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name)),
  )
  for t in corpus:
    spans, want = ours.encode_with_offsets(t), theirs.encode(t, return_type="proto").pieces
    ids, place = (
      [i for i, _, _ in spans],
      [n for n, c in enumerate(t) for _ in c.encode()] + [len(t)],
    )
    assert ids == [p.id for p in want], repr(t)
    if ours.unknown not in ids:
      assert ours.decode(ids) == theirs.decode(ids), repr(t)
    assert (
      near(t, [((a, b), (place[p.begin], place[p.end])) for (_, a, b), p in zip(spans, want)]) > 0.8
    ), repr(t)


def same(ours, theirs, corpus, segments=True):
  """theirs: a tokenizers.Tokenizer.  segments: whether they matter to this kind of model."""
  shares = []
  for t in corpus:
    spans, want = ours.encode_with_offsets(t), theirs.encode(t, add_special_tokens=False)
    ids = [i for i, _, _ in spans]
    assert ids == want.ids, repr(t)
    shares.append(near(t, [((a, b), (c, d)) for (_, a, b), (c, d) in zip(spans, want.offsets)]))
    assert ours.decode(ids) == theirs.decode(ids), repr(t)
  assert sum(shares) > 0.95 * len(shares)
  a, b = theirs.encode("the king"), theirs.encode("the king", "and the queen")
  assert ours.single(ours.encode("the king")) == a.ids and ours.pair(
    ours.encode("the king"), ours.encode("and the queen")
  ) == (b.ids, b.type_ids if segments else ANY)


MADE = [
  ("LlamaTokenizer", "tokenizer.model", LLAMA),
  ("T5Tokenizer", "spiece.model", T5),
  ("CamembertTokenizer", "sentencepiece.bpe.model", CAMEMBERT),
  ("DebertaV2Tokenizer", "spm.model", DEBERTA),
]


@pytest.mark.parametrize("kind, name, options", MADE)
def test_what_transformers_saves_is_read_as_it_does(tmp_path, corpus, learned, kind, name, options):
  (tmp_path / "model").mkdir()
  shutil.copy(learned(**options), tmp_path / "model" / name)
  theirs = getattr(transformers, kind).from_pretrained(tmp_path / "model")
  theirs.save_pretrained(tmp_path / "saved")
  ours = tokenization.load_tokenizer(tmp_path / "saved")
  same(ours, theirs.backend_tokenizer, corpus)
  assert (
    len(ours) == len(theirs) and ours.end == theirs.eos_token_id and ours.pad == theirs.pad_token_id
  )
  assert ours.mask == (theirs.mask_token and (theirs.mask_token_id, theirs.mask_token))


METASPACE = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}


def with_steps(tokenizer, normalizer, pre_tokenizer):
  """The same model with other steps, from a tokenizer.json."""
  data = json.loads(tokenizer.to_str()) | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
  return tokenizers.Tokenizer.from_str(json.dumps(data))


@pytest.mark.parametrize("kind, name, options", MADE)
def test_older_files_are_read_as_tokenizers_does(tmp_path, corpus, learned, kind, name, options):
  """As the converters of transformers 4 wrote them, in which most checkpoints were published."""
  (tmp_path / "model").mkdir()
  shutil.copy(learned(**options), tmp_path / "model" / name)
  theirs = getattr(transformers, kind).from_pretrained(tmp_path / "model").backend_tokenizer
  charsmap = [
    p
    for p in (json.loads(theirs.to_str())["normalizer"] or {}).get(
      "normalizers", [json.loads(theirs.to_str())["normalizer"]]
    )
    if p and p["type"] == "Precompiled"
  ]
  spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
  if kind == "LlamaTokenizer":
    old = with_steps(
      theirs,
      {
        "type": "Sequence",
        "normalizers": [
          {"type": "Prepend", "prepend": "▁"},
          {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
      },
      None,
    )
  elif kind == "DebertaV2Tokenizer":
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    old = with_steps(
      theirs,
      {"type": "Sequence", "normalizers": [strip, *charsmap, spaces | {"content": " "}]},
      {"type": "Sequence", "pretokenizers": [METASPACE]},
    )
  else:
    old = with_steps(
      theirs,
      {
        "type": "Sequence",
        "normalizers": [
          *charsmap,
          {"type": "Strip", "strip_left": False, "strip_right": True},
          spaces,
        ],
      },
      METASPACE,
    )
  old.save(str(tmp_path / "tokenizer.json"))
  same(tokenization.load_tokenizer(tmp_path), old, corpus)


@pytest.fixture(scope="module")
def bytelevel(corpus):
  """A byte-level BPE like RoBERTa's, with its specials first."""
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
    corpus[1000:],
    3000,
    show_progress=False,
    special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
  )
  return tokenizer


def test_roberta_is_read_from_both_layouts(tmp_path, corpus, bytelevel):
  (tmp_path / "old").mkdir()
  bytelevel.save_model(str(tmp_path / "old"))
  theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path / "old")
  theirs.save_pretrained(tmp_path / "saved")
  for folder in ("old", "saved"):
    ours = tokenization.load_tokenizer(tmp_path / folder)
    same(ours, theirs.backend_tokenizer, corpus)
    assert (ours.mask, ours.pad, ours.end) == ((4, "<mask>"), 1, 2)
    blanks = (
      [] if folder == "old" else ours.encode("  ")
    )  # transformers 4 took the blanks before <mask> away; what 5 saves says that it does not
    assert ours.encode("the  <mask>!", ("<mask>",)) == [
      *ours.encode("the"),
      *blanks,
      4,
      *ours.encode("!"),
    ]


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize("merges", ["pairs", "strings"])
def test_llama_3_is_read_as_tokenizers_does(tmp_path, corpus, bytelevel, merges):
  model = json.loads(bytelevel.to_str())["model"]
  vocab = {
    t: i
    for i, t in enumerate(
      t for t in model["vocab"] if t not in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    )
  }
  words = {
    w
    for t in corpus[1000:]
    for w in t.split()
    if w.isascii()
    and w.isalpha()
    and not any(w[:n] in vocab and w[n:] in vocab for n in range(1, len(w)))
  }
  whole = sorted(words - vocab.keys())[
    :300
  ]  # tokens that no merge makes: read only where a whole piece is one
  vocab |= {w: len(vocab) + n for n, w in enumerate(whole)}
  data = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "normalizer": None,
    "added_tokens": [
      {
        "id": len(vocab) + n,
        "content": t,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
      }
      for n, t in enumerate(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    ],
    "pre_tokenizer": {
      "type": "Sequence",
      "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
      ],
    },
    "post_processor": {
      "type": "Sequence",
      "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {
          "type": "TemplateProcessing",
          "single": [
            {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
          ],
          "pair": [
            {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
          ],
          "special_tokens": {
            "<|begin_of_text|>": {
              "id": "<|begin_of_text|>",
              "ids": [len(vocab)],
              "tokens": ["<|begin_of_text|>"],
            }
          },
        },
      ],
    },
    "decoder": {
      "type": "ByteLevel",
      "add_prefix_space": True,
      "trim_offsets": True,
      "use_regex": True,
    },
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": True,
      "vocab": vocab,
      "merges": model["merges"] if merges == "pairs" else [" ".join(m) for m in model["merges"]],
    },
  }
  (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
  (tmp_path / "tokenizer_config.json").write_text(
    '{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}'
  )
  ours, theirs = (
    tokenization.load_tokenizer(tmp_path),
    tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")),
  )
  same(ours, theirs, corpus, segments=False)
  assert ours.end == len(vocab) + 2 and len(ours) == len(vocab) + 3
  assert len(whole) == 300 and all(
    ours.encode(w) == [vocab[w]] != ours.encode(f"q{w}")[-1:] for w in whole
  )


def test_marian_is_read_as_transformers_does(tmp_path, corpus, learned):
  source, target = (
    learned(model_type="unigram", vocab_size=2000),
    learned(model_type="unigram", vocab_size=1500),
  )
  shutil.copy(source, tmp_path / "source.spm")
  shutil.copy(target, tmp_path / "target.spm")
  pieces = [
    m.id_to_piece(i)
    for m in (sentencepiece.SentencePieceProcessor(model_file=str(p)) for p in (source, target))
    for i in range(3, m.get_piece_size() - 100)
  ]
  vocab = {
    p: i for i, p in enumerate(dict.fromkeys(["</s>", "<unk>", ">>deu<<", *pieces, "<pad>"]))
  }
  (tmp_path / "vocab.json").write_text(json.dumps(vocab))
  theirs, ours = (
    transformers.MarianTokenizer.from_pretrained(tmp_path, source_lang="en"),
    tokenization.load_tokenizer(tmp_path),
  )
  for t in corpus:
    ids = theirs(">>deu<< " + t, add_special_tokens=True)["input_ids"]
    assert ours.single(ours.encode(">>deu<< " + t)) == ids, repr(t)
    assert ours.decode(ours.encode(t)).strip() == theirs.decode(
      ours.encode(t), skip_special_tokens=True
    ), repr(t)
  assert (ours.end, ours.pad) == (0, len(vocab) - 1)


def test_wordpiece_is_read_from_tokenizer_json(tmp_path, corpus):
  trained = tokenizers.BertWordPieceTokenizer()
  trained.train_from_iterator(corpus, 3000, show_progress=False)
  (tmp_path / "old").mkdir()
  trained.save_model(str(tmp_path / "old"))
  theirs = transformers.BertTokenizer.from_pretrained(tmp_path / "old")
  theirs.save_pretrained(tmp_path / "saved")
  theirs.backend_tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
  for folder in ("old", "saved"):
    same(tokenization.load_tokenizer(tmp_path / folder), theirs.backend_tokenizer, corpus)


def test_the_first_gpts_tokens_are_transformers(tmp_path, corpus):
  trained = tokenizers.Tokenizer(
    tokenizers.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
  )
  trained.normalizer, trained.pre_tokenizer = (
    tokenizers.normalizers.BertNormalizer(lowercase=True),
    tokenizers.pre_tokenizers.BertPreTokenizer(),
  )
  trained.train_from_iterator(
    corpus[1000:],
    tokenizers.trainers.BpeTrainer(
      vocab_size=3000, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    ),
  )
  model = json.loads(trained.to_str())["model"]
  (tmp_path / "config.json").write_text('{"model_type": "openai-gpt"}')
  (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
  (tmp_path / "merges.txt").write_text(
    "#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n"
  )
  theirs, ours = (
    transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path),
    tokenization.load_tokenizer(tmp_path),
  )
  for t in corpus:
    ids = theirs(t)["input_ids"]
    assert ours.encode(t) == ids and ours.decode(ids) == theirs.decode(
      ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    ), repr(t)


@pytest.mark.parametrize(
  "text", ["plain words,\n\n  and blanks", "Ein Maß, 50 €, naïve 😀 日本 \t don't"]
)
def test_characters_are_read_as_transformers_does(tmp_path, text):
  tokenizer = BytePairEncoding.characters([text])
  tokenizer.save(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for t in (text, text[::-1], "ø語 unknown"):
    assert (
      theirs.encode(t) == tokenizer.encode(t)
      and theirs.decode(tokenizer.encode(t), clean_up_tokenization_spaces=False) == t
    )
