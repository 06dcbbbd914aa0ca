"""Compare all tokenizers with Hugging Face tokenizers, transformers and sentencepiece.

The texts are a million random characters and 800,000 characters of prose. All vocabularies are
trained here.
"""

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
  """Return texts of 1,000 characters: 1,000 random texts, then English and German prose.

  The random characters are letters, code, accents, CJK, emoji, control and unassigned characters.
  """
  rng = random.Random(0)
  random_text = "".join(
    rng.choice(rng.choices(ALPHABETS, [60, 5, 4, 2, 18, 6, 1, 3])[0]) for _ in range(1_000_000)
  )
  with lzma.open(shared_data("prose/fairytales.txt.xz"), "rt", encoding="utf-8") as f:
    english = f.read()[:500_000]
  german = shared_data("bpe-reference/german.txt").read_text()[:300_000]
  return [
    text[i : i + 1000]
    for text in (random_text, english + german)
    for i in range(0, len(text), 1000)
  ]


@pytest.fixture(scope="module")
def train_model(tmp_path_factory, corpus):
  """Return a function that trains a SentencePiece model, once for each set of options."""
  folder = tmp_path_factory.mktemp("models")
  models = {}
  lines = [line for text in corpus[1000:] for line in text.split("\n")]
  lines += [" ".join(text.split()) for text in corpus[:200]]
  (folder / "text").write_text("\n".join(lines), encoding="utf-8")

  def train(**options):
    key = json.dumps(options)
    if key not in models:
      models[key] = folder / f"{len(models)}.model"
      sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(models[key].with_suffix("")),
        minloglevel=2,
        character_coverage=0.999,
        **options,
      )
    return models[key]

  return train


def equal_offsets(text, pairs):
  """Return the fraction of equal offsets, ignoring white space at the start of a token.

  pairs: ((start, end), (start, end)) of each token, ours first. All pairs must overlap.
  If characters are replaced by a string of another length, our offsets contain all characters. The
  reference's offsets contain only a part, or are shifted by one.
  If a space is inserted, our range is empty. The reference's range is the next character.
  For the bytes of a character, sentencepiece's ranges are empty except the last.
  """
  for (a, b), (c, d) in pairs:
    assert max(a, c) < min(b, d) or a == b or c == d, (pairs, repr(text))
  equal = [c == d or (b == d and (a == c or text[a:c].isspace())) for (a, b), (c, d) in pairs]
  return sum(equal) / max(1, len(equal))


# The field of the protobuf message SentencePieceText that contains the tokens.
PROTO_TOKENS = "pieces"

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
def test_a_model_file_gives_the_tokens_of_sentencepiece(
  tmp_path, corpus, train_model, name, options
):
  shutil.copy(train_model(**options), tmp_path / name)
  ours = tokenization.load_tokenizer(tmp_path)
  reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name))
  for text in corpus:
    actual = ours.encode_with_offsets(text)
    expected = getattr(reference.encode(text, return_type="proto"), PROTO_TOKENS)
    ids = [i for i, _, _ in actual]
    assert ids == [token.id for token in expected], repr(text)
    if ours.unk_id not in ids:
      assert ours.decode(ids) == reference.decode(ids), repr(text)
    character_of_byte = [n for n, c in enumerate(text) for _ in c.encode()] + [len(text)]
    pairs = [
      ((start, end), (character_of_byte[token.begin], character_of_byte[token.end]))
      for (_, start, end), token in zip(actual, expected, strict=True)
    ]
    assert equal_offsets(text, pairs) > 0.8, repr(text)


def assert_equal_tokenizers(ours, reference, corpus, has_segments=True):
  """Assert that IDs, offsets and decoded texts equal those of a tokenizers.Tokenizer.

  has_segments: whether this kind of model has segments.
  """
  fractions = []
  for text in corpus:
    actual = ours.encode_with_offsets(text)
    expected = reference.encode(text, add_special_tokens=False)
    ids = [i for i, _, _ in actual]
    assert ids == expected.ids, repr(text)
    offsets = [(start, end) for _, start, end in actual]
    fractions.append(equal_offsets(text, list(zip(offsets, expected.offsets, strict=True))))
    assert ours.decode(ids) == reference.decode(ids), repr(text)
  assert sum(fractions) > 0.95 * len(fractions)
  first = ours.encode("the king")
  second = ours.encode("and the queen")
  single = reference.encode("the king")
  pair = reference.encode("the king", "and the queen")
  assert ours.single(first) == single.ids
  assert ours.pair(first, second) == (pair.ids, pair.type_ids if has_segments else ANY)


SENTENCEPIECE_FAMILIES = [
  ("LlamaTokenizer", "tokenizer.model", LLAMA),
  ("T5Tokenizer", "spiece.model", T5),
  ("CamembertTokenizer", "sentencepiece.bpe.model", CAMEMBERT),
  ("DebertaV2Tokenizer", "spm.model", DEBERTA),
]


def load_reference(kind, folder, name, model):
  """Load a tokenizer of transformers from a SentencePiece model."""
  folder.mkdir()
  shutil.copy(model, folder / name)
  return getattr(transformers, kind).from_pretrained(folder)


@pytest.mark.parametrize("kind, name, options", SENTENCEPIECE_FAMILIES)
def test_files_saved_by_transformers_give_the_same_tokens(
  tmp_path, corpus, train_model, kind, name, options
):
  reference = load_reference(kind, tmp_path / "model", name, train_model(**options))
  reference.save_pretrained(tmp_path / "saved")
  ours = tokenization.load_tokenizer(tmp_path / "saved")
  assert_equal_tokenizers(ours, reference.backend_tokenizer, corpus)
  assert len(ours) == len(reference)
  assert ours.end == reference.eos_token_id
  assert ours.pad == reference.pad_token_id
  assert ours.mask == (reference.mask_token and (reference.mask_token_id, reference.mask_token))


METASPACE = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}


def with_steps(tokenizer, normalizer, pre_tokenizer):
  """Return a tokenizers.Tokenizer with the same model and other steps before the model."""
  content = json.loads(tokenizer.to_str())
  content |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
  return tokenizers.Tokenizer.from_str(json.dumps(content))


def sequence(*normalizers):
  return {"type": "Sequence", "normalizers": list(normalizers)}


@pytest.mark.parametrize("kind, name, options", SENTENCEPIECE_FAMILIES)
def test_files_of_transformers_4_give_the_tokens_of_tokenizers(
  tmp_path, corpus, train_model, kind, name, options
):
  """Most checkpoints were published in the format that transformers 4 wrote."""
  model = train_model(**options)
  tokenizer = load_reference(kind, tmp_path / "model", name, model).backend_tokenizer
  normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
  steps = normalizer.get("normalizers", [normalizer])
  charsmap = [step for step in steps if step and step["type"] == "Precompiled"]
  spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
  if kind == "LlamaTokenizer":
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    old = with_steps(tokenizer, sequence(prepend, replace), None)
  elif kind == "DebertaV2Tokenizer":
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    normalizer = sequence(strip, *charsmap, spaces | {"content": " "})
    old = with_steps(tokenizer, normalizer, {"type": "Sequence", "pretokenizers": [METASPACE]})
  else:
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    old = with_steps(tokenizer, sequence(*charsmap, strip, spaces), METASPACE)
  old.save(str(tmp_path / "tokenizer.json"))
  assert_equal_tokenizers(tokenization.load_tokenizer(tmp_path), old, corpus)


ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def byte_level_bpe(corpus):
  """Return a byte-level BPE tokenizer like RoBERTa's, whose first IDs are special tokens."""
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
    corpus[1000:], 3000, show_progress=False, special_tokens=ROBERTA_SPECIALS
  )
  return tokenizer


def test_both_file_layouts_of_roberta_give_the_tokens_of_transformers(
  tmp_path, corpus, byte_level_bpe
):
  (tmp_path / "old").mkdir()
  byte_level_bpe.save_model(str(tmp_path / "old"))
  reference = transformers.RobertaTokenizer.from_pretrained(tmp_path / "old")
  reference.save_pretrained(tmp_path / "saved")
  for folder in ("old", "saved"):
    ours = tokenization.load_tokenizer(tmp_path / folder)
    assert_equal_tokenizers(ours, reference.backend_tokenizer, corpus)
    assert (ours.mask, ours.pad, ours.end) == ((4, "<mask>"), 1, 2)
    # transformers 4 removed spaces before <mask>. Files that transformers 5 saves disable this.
    spaces = [] if folder == "old" else ours.encode("  ")
    expected = [*ours.encode("the"), *spaces, 4, *ours.encode("!")]
    assert ours.encode("the  <mask>!", ("<mask>",)) == expected


LLAMA3_PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


def llama3_tokenizer_json(vocab, merges):
  """Return the content of a tokenizer.json like LLaMA 3's."""
  bos_id = len(vocab)
  byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
  added_token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
  begin = {"id": "<|begin_of_text|>", "ids": [bos_id], "tokens": ["<|begin_of_text|>"]}
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "normalizer": None,
    "added_tokens": [
      {"id": bos_id + n, "content": token, "special": True} | added_token
      for n, token in enumerate(LLAMA3_SPECIALS)
    ],
    "pre_tokenizer": {
      "type": "Sequence",
      "pretokenizers": [
        {
          "type": "Split",
          "pattern": {"Regex": LLAMA3_PATTERN},
          "behavior": "Isolated",
          "invert": False,
        },
        byte_level | {"use_regex": False},
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
          "special_tokens": {"<|begin_of_text|>": begin},
        },
      ],
    },
    "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
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
      "merges": merges,
    },
  }


def words_no_two_tokens_form(corpus, vocab):
  """Return 300 words that are not tokens, and that no two tokens form."""
  words = {word for text in corpus for word in text.split() if word.isascii() and word.isalpha()}
  return sorted(
    word
    for word in words - vocab.keys()
    if not any(word[:n] in vocab and word[n:] in vocab for n in range(1, len(word)))
  )[:300]


@pytest.mark.parametrize("merges", ["pairs", "strings"])
def test_llama_3_gives_the_tokens_of_tokenizers(tmp_path, corpus, byte_level_bpe, merges):
  model = json.loads(byte_level_bpe.to_str())["model"]
  ordinary = [token for token in model["vocab"] if token not in ROBERTA_SPECIALS]
  vocab = {token: i for i, token in enumerate(ordinary)}
  # No merge produces these tokens. They are used only if a whole word is such a token.
  unmerged = words_no_two_tokens_form(corpus[1000:], vocab)
  vocab |= {word: len(vocab) + n for n, word in enumerate(unmerged)}
  pairs = model["merges"]
  strings = [" ".join(pair) for pair in pairs]
  content = llama3_tokenizer_json(vocab, pairs if merges == "pairs" else strings)
  (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
  (tmp_path / "tokenizer_config.json").write_text(
    '{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}'
  )
  ours = tokenization.load_tokenizer(tmp_path)
  reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  assert_equal_tokenizers(ours, reference, corpus, has_segments=False)
  assert ours.end == len(vocab) + 2
  assert len(ours) == len(vocab) + 3
  assert len(unmerged) == 300
  for word in unmerged:
    assert ours.encode(word) == [vocab[word]]
    assert ours.encode(f"q{word}")[-1:] != [vocab[word]]


def test_marian_gives_the_tokens_of_transformers(tmp_path, corpus, train_model):
  source = train_model(model_type="unigram", vocab_size=2000)
  target = train_model(model_type="unigram", vocab_size=1500)
  shutil.copy(source, tmp_path / "source.spm")
  shutil.copy(target, tmp_path / "target.spm")
  tokens = []
  for path in (source, target):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    last = processor.get_piece_size() - 100
    tokens += [processor.id_to_piece(i) for i in range(3, last)]
  unique = dict.fromkeys(["</s>", "<unk>", ">>deu<<", *tokens, "<pad>"])
  vocab = {token: i for i, token in enumerate(unique)}
  (tmp_path / "vocab.json").write_text(json.dumps(vocab))
  reference = transformers.MarianTokenizer.from_pretrained(tmp_path, source_lang="en")
  ours = tokenization.load_tokenizer(tmp_path)
  for text in corpus:
    prompt = ">>deu<< " + text
    expected = reference(prompt, add_special_tokens=True)["input_ids"]
    assert ours.single(ours.encode(prompt)) == expected, repr(text)
    ids = ours.encode(text)
    decoded = reference.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids).strip() == decoded, repr(text)
  assert (ours.end, ours.pad) == (0, len(vocab) - 1)


def test_both_file_layouts_of_wordpiece_give_the_tokens_of_transformers(tmp_path, corpus):
  trained = tokenizers.BertWordPieceTokenizer()
  trained.train_from_iterator(corpus, 3000, show_progress=False)
  (tmp_path / "old").mkdir()
  trained.save_model(str(tmp_path / "old"))
  reference = transformers.BertTokenizer.from_pretrained(tmp_path / "old")
  reference.save_pretrained(tmp_path / "saved")
  for folder in ("old", "saved"):
    # vocab.txt does not say that spaces before punctuation are removed. tokenizer.json does.
    decoder = tokenizers.decoders.WordPiece(cleanup=folder == "saved")
    reference.backend_tokenizer.decoder = decoder
    ours = tokenization.load_tokenizer(tmp_path / folder)
    assert_equal_tokenizers(ours, reference.backend_tokenizer, corpus)


def test_gpt1_gives_the_tokens_of_transformers(tmp_path, corpus):
  trained = tokenizers.Tokenizer(
    tokenizers.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
  )
  trained.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=3000, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
  )
  trained.train_from_iterator(corpus[1000:], trainer)
  model = json.loads(trained.to_str())["model"]
  lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
  (tmp_path / "config.json").write_text('{"model_type": "openai-gpt"}')
  (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
  (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n")
  reference = transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path)
  ours = tokenization.load_tokenizer(tmp_path)
  for text in corpus:
    ids = reference(text)["input_ids"]
    assert ours.encode(text) == ids, repr(text)
    decoded = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.decode(ids) == decoded, repr(text)


@pytest.mark.parametrize(
  "text", ["plain words,\n\n  and blanks", "Ein Maß, 50 €, naïve 😀 日本 \t don't"]
)
def test_a_character_vocabulary_gives_the_tokens_of_transformers(tmp_path, text):
  ours = BytePairEncoding.characters([text])
  ours.save(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
  reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for sample in (text, text[::-1], "ø語 unknown"):
    ids = ours.encode(sample)
    assert reference.encode(sample) == ids
    assert reference.decode(ids, clean_up_tokenization_spaces=False) == sample
