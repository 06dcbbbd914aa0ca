"""Tokenizers in the metadata of GGUF files, and the conversion of a file to a folder."""

import json
import random
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, ROOT
from gguf_files import bpe_metadata, folder_to_gguf, tokenizer_metadata, write_gguf
from test_gguf import CASES, assert_equal_parameters, case_folder
from tinygrad import Tensor

import convert
import tinyformer
from tinyformer import checkpoints, cli
from tinyformer.checkpoints.convert import convert_gguf
from tinyformer.tokenization import load_tokenizer

TINY = ROOT / "weights" / "tiny"
TEXT = "He said: “It's 12345 o'clock.”\n\n  Naïve café,   x_1 = {y}; 日本 🙂\t"


def tokenizer_of(path, metadata, architecture="llama"):
  """Write a file that has only a tokenizer, and load the tokenizer."""
  write_gguf(path, {"general.architecture": architecture} | metadata, {})
  return load_tokenizer(path, contents=checkpoints.tokenizer_contents(path))


@pytest.fixture
def path(tmp_path):
  return tmp_path / "model.gguf"


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
  """weights/tiny as a GGUF file."""
  path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
  return folder_to_gguf(TINY, path, **bpe_metadata(TINY))


def test_a_byte_level_bpe_gives_the_ids_of_the_same_tokenizer_in_a_folder(path):
  tokenizer = tokenizer_of(path, bpe_metadata(TINY), "gpt2")
  expected = load_tokenizer(TINY)
  assert tokenizer.encode(TEXT) == expected.encode(TEXT)
  assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
  assert tokenizer.end == expected.end
  assert tokenizer.specials == expected.specials


def test_bos_and_eos_are_added_if_the_metadata_says_so(path):
  metadata = bpe_metadata(TINY)
  end = metadata["tokenizer.ggml.eos_token_id"]
  assert tokenizer_of(path, metadata, "gpt2").single([1, 2]) == [1, 2]
  metadata["tokenizer.ggml.add_bos_token"] = True
  assert tokenizer_of(path, metadata, "gpt2").single([1, 2]) == [end, 1, 2]
  metadata["tokenizer.ggml.add_eos_token"] = True
  assert tokenizer_of(path, metadata, "gpt2").single([1, 2]) == [end, 1, 2, end]


def test_a_word_piece_gives_the_ids_of_the_same_vocabulary_in_a_folder(tmp_path, path):
  words = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "he",
    "said",
    "##s",
    "caf",
    "##e",
    ",",
    "1",
  ]
  (tmp_path / "vocab.txt").write_text("\n".join(words))
  tokens = [w if w[0] == "[" else w[2:] if w[:2] == "##" else f"▁{w}" for w in words]
  types = [3 if w[0] == "[" else 1 for w in words]
  ids = {"padding": 0, "unknown": 1, "cls": 2, "seperator": 3, "mask": 4}
  values = {f"{name}_token_id": i for name, i in ids.items()}
  tokenizer = tokenizer_of(path, tokenizer_metadata("bert", tokens, types, **values), "bert")
  expected = load_tokenizer(tmp_path)
  text = "He says: Cafés, 1 café"
  assert tokenizer.encode(text) == expected.encode(text)
  assert tokenizer.pair([5], [6]) == expected.pair([5], [6])
  assert (tokenizer.pad, tokenizer.mask) == (expected.pad, expected.mask)


def test_a_word_piece_with_uppercase_tokens_does_not_lowercase(path):
  words = ["[UNK]", "[CLS]", "[SEP]", "▁He", "▁he"]
  values = {"unknown_token_id": 0, "cls_token_id": 1, "seperator_token_id": 2}
  metadata = tokenizer_metadata("bert", words, [3, 3, 3, 1, 1], **values)
  assert tokenizer_of(path, metadata, "bert").encode("He he") == [3, 4]


# The score of each piece. Their IDs are in another order than the scores.
PIECES = {"▁the": -4.0, "the": -2.0, "th": -1.0, "hx": -3.0, "▁": -5.0, "h": -6.0, "t": -7.0}
PIECES |= {"e": -8.0, "x": -9.0}


def sentencepiece_metadata(**values):
  """Return a BPE with the merges t+h, th+e, h+x and ▁+the in this order of scores."""
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
  types = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]
  scores = [*[0.0] * 259, *PIECES.values()]
  ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
  return tokenizer_metadata("llama", tokens, types, scores=scores, **ids | values)


def test_a_sentencepiece_bpe_merges_in_the_order_of_the_scores(path):
  tokenizer = tokenizer_of(path, sentencepiece_metadata())
  vocab = {token: 259 + i for i, token in enumerate(PIECES)}
  assert tokenizer.encode("the th") == [vocab["▁the"], vocab["▁"], vocab["th"]]
  assert tokenizer.encode("thx") == [vocab["▁"], vocab["th"], vocab["x"]]
  assert tokenizer.encode("ze") == [vocab["▁"], 3 + ord("z"), vocab["e"]]
  assert tokenizer.single([5]) == [1, 5]
  assert tokenizer.decode(tokenizer.encode("the the\n")) == "the the\n"


def test_a_space_is_prepended_only_if_the_metadata_says_so(path):
  tokenizer = tokenizer_of(path, sentencepiece_metadata(add_space_prefix=False))
  assert tokenizer.encode("the") == [260]
  assert tokenizer.decode([259]) == " the"


BROKEN = {
  "no tokenizer": ({}, "tokenizer.ggml.model None is not one of gpt2, llama, bert"),
  "another tokenizer": ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' is not one of"),
  "no tokens": ({"tokenizer.ggml.model": "gpt2"}, "has no tokenizer.ggml.tokens"),
  "another pre-tokenizer": (
    bpe_metadata(TINY) | {"tokenizer.ggml.pre": "viking"},
    "tokenizer.ggml.pre 'viking' is not one of gpt-2, phi-2",
  ),
  "no merges": (bpe_metadata(TINY) | {"tokenizer.ggml.merges": 1}, "has no tokenizer.ggml.merges"),
  "too few types": (
    bpe_metadata(TINY) | {"tokenizer.ggml.token_type": [1, 1]},
    "tokens, but 2 token types",
  ),
  "an ID without a token": (
    bpe_metadata(TINY) | {"tokenizer.ggml.eos_token_id": 1 << 31},
    "2147483648 is not the ID of one of",
  ),
  "too few scores": (
    sentencepiece_metadata() | {"tokenizer.ggml.scores": [1.0]},
    "needs a score for each",
  ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tokenizer_that_is_broken_or_not_supported_is_refused_in_one_line(path, case):
  metadata, message = BROKEN[case]
  with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
    tokenizer_of(path, metadata)
  assert message in str(error.value)


def test_the_pooling_of_embeddings_is_that_of_the_metadata(tmp_path, path):
  words = ["[UNK]", "[CLS]", "[SEP]", "▁he", "▁said"]
  ids = {"unknown_token_id": 0, "cls_token_id": 1, "seperator_token_id": 2}
  folder = case_folder("bert-a", tmp_path, architectures=["BertModel"])
  metadata = tokenizer_metadata("bert", words, [3, 3, 3, 1, 1], **ids)
  vectors = {}
  for number, name in ((1, "mean"), (2, "cls"), (3, "lasttoken")):
    file = folder_to_gguf(folder, path, **metadata, **{"bert.pooling_type": number})
    assert checkpoints.read_pooling(file) == name
    [vectors[name]] = tinyformer.load(file).embed(["he said"])
  hidden = checkpoints.load_module(file)(Tensor([[1, 3, 4, 2]])).numpy()[0]
  expected = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[3]}
  for name, vector in vectors.items():
    np.testing.assert_allclose(vector, expected[name], atol=1e-6)
  folder_to_gguf(folder, path, **metadata, **{"bert.pooling_type": 4})
  with pytest.raises(ValueError, match="pooling_type 4 is not supported"):
    checkpoints.read_pooling(path)


def test_a_vocabulary_that_does_not_fit_the_model_is_refused(tmp_path, path):
  folder = case_folder("gpt2-a", tmp_path, n_inner=60)
  folder_to_gguf(folder, path, **bpe_metadata(TINY))
  with pytest.raises(ValueError, match="tokens, but the model only 97"):
    tinyformer.load(path)


# **************** the whole model ****************


def test_a_gguf_file_generates_the_text_of_the_folder_that_it_was_written_from(tiny_gguf):
  model = tinyformer.load(tiny_gguf)
  expected = tinyformer.load(TINY)
  settings = {"max_new_tokens": 5, "temperature": 0}
  assert model.task == expected.task
  assert model.generate("He shook his", **settings) == expected.generate("He shook his", **settings)


@pytest.mark.parametrize("case", CASES)
def test_a_converted_folder_has_the_config_and_the_parameters_of_the_file(case, tmp_path, path):
  folder = case_folder(case, tmp_path, **CASES[case])
  config = json.loads((folder / "config.json").read_text())
  if case.startswith("gpt2"):
    config.setdefault("n_inner", 4 * config["n_embd"])
    config["n_inner"] = config["n_inner"] or 4 * config["n_embd"]
    (folder / "config.json").write_text(json.dumps(config))
  folder_to_gguf(folder, path, **sentencepiece_metadata())
  convert_gguf(path, tmp_path / "converted")
  loaded = checkpoints.load_module(tmp_path / "converted")
  assert_equal_parameters(loaded, checkpoints.load_module(path))


def test_a_converted_folder_has_the_tokenizer_and_the_chat_template_of_the_file(tmp_path):
  metadata = bpe_metadata(TINY) | {"tokenizer.chat_template": "{{ messages }}"}
  folder_to_gguf(TINY, tmp_path / "a.gguf", **metadata)
  convert_gguf(tmp_path / "a.gguf", tmp_path / "b", "bfloat16")
  tokenizer = load_tokenizer(tmp_path / "b")
  assert tokenizer.encode(TEXT) == load_tokenizer(TINY).encode(TEXT)
  config = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
  assert config["chat_template"] == "{{ messages }}"
  assert config["eos_token"] == "<|endoftext|>"
  generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
  assert generation["eos_token_id"] == [tokenizer.end]
  config = json.loads((tmp_path / "b" / "config.json").read_text())
  assert config["dtype"] == "bfloat16"


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, tiny_gguf, monkeypatch):
  data = tiny_gguf.read_bytes()
  (tmp_path / "short.gguf").write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match=r"ends at byte|bytes are needed"):
    convert_gguf(tmp_path / "short.gguf", tmp_path / "out")

  def fail(done, total):
    raise OSError("the disk is full")

  with pytest.raises(OSError, match="the disk is full"):
    convert_gguf(tiny_gguf, tmp_path / "out", report=fail)
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
  with pytest.raises(OSError, match="the weights need 14 MB in float32"):
    convert_gguf(tiny_gguf, tmp_path / "out")
  assert [p.name for p in tmp_path.iterdir()] == ["short.gguf"]


def run_convert(*argv):
  return cli.run(lambda: convert.main([str(a) for a in argv]))


def test_the_command_converts_into_a_new_folder_only(tmp_path, tiny_gguf, capsys):
  assert run_convert(tiny_gguf, tmp_path / "out") == 0
  assert capsys.readouterr().err == f"wrote {tmp_path / 'out'}\n"
  assert run_convert(tiny_gguf, tmp_path / "out") == 1
  error = capsys.readouterr().err
  assert error == f"error: {tmp_path / 'out'} exists already: pass the name of a new folder\n"
  assert run_convert(FIXTURES / "gpt2-a" / "config.json", tmp_path / "new") == 1
  assert "cannot be read as GGUF: it begins with" in capsys.readouterr().err
  assert run_convert(tmp_path / "none.gguf", tmp_path / "new") == 1
  assert "none.gguf" in capsys.readouterr().err


def test_values_are_rounded_to_the_type_of_the_folder(tmp_path, tiny_gguf):
  for dtype in ("float16", "bfloat16"):
    convert_gguf(tiny_gguf, tmp_path / dtype, dtype)
    converted = checkpoints.read_tensors(tmp_path / dtype)
    for name, tensor in checkpoints.read_tensors(tiny_gguf).items():
      x = tensor.numpy()
      error = np.abs(converted[name].numpy() - x)
      assert (error <= np.abs(x) * (2**-11 if dtype == "float16" else 2**-8) + 2**-24).all()


def mutated(data: bytes, rng: random.Random) -> bytes:
  """Return a file with a byte changed, or bytes removed or inserted, near its beginning."""
  i = rng.randrange(min(len(data), 6000))
  kind = rng.randrange(3)
  if kind == 0:
    return data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :]
  if kind == 1:
    return data[:i] + data[i + rng.randrange(1, 9) :]
  return data[:i] + rng.randbytes(rng.randrange(1, 9)) + data[i:]


@pytest.mark.parametrize("case", ["gpt2-a", "mistral-a"])
def test_a_mutated_file_loads_or_is_refused_in_one_line(case, path):
  letters = [chr(ord("!") + i) for i in range(90)]
  bpe = tokenizer_metadata("gpt2", letters, [1] * 90, pre="smollm", merges=[], eos_token_id=3)
  folder_to_gguf(FIXTURES / case, path, **(bpe if case == "gpt2-a" else sentencepiece_metadata()))
  data = path.read_bytes()
  rng = random.Random(0)
  refused = 0
  for _ in range(40):
    path.write_bytes(mutated(data, rng))
    try:
      load_tokenizer(path, contents=checkpoints.tokenizer_contents(path)).encode("he said 12")
      checkpoints.load_module(path)
    except ValueError as e:
      assert "\n" not in str(e)
      refused += 1
  assert refused > 10
