"""Write GGUF files: the reader returns what the folder contains, and the rest is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from gguf_files import folder_to_gguf, tokenizer_metadata
from test_gguf import CASES, LLAMA3, assert_equal_parameters, case_folder
from test_gguf_tokenizer import TEXT, run_convert, sentencepiece_metadata

from tinyformer.checkpoints import convert, load_module, read_tensors, tokenizer_contents
from tinyformer.checkpoints.ggml_types import GGML_TYPES, quantize_q8_0
from tinyformer.checkpoints.gguf import read_gguf
from tinyformer.checkpoints.gguf_tokenizer import PRE_TOKENIZERS
from tinyformer.tokenization import load_tokenizer

TINY = ROOT / "weights" / "tiny"
LETTERS = [chr(i) for i in (*range(ord("!"), 127), *range(161, 173))]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
END = "<|end|>"


def change(folder, name, **values):
  """Change keys of a JSON file in a folder. None deletes a key."""
  path = folder / name
  content = json.loads(path.read_text()) if path.exists() else {}
  content = {k: v for k, v in (content | values).items() if v is not None}
  path.write_text(json.dumps(content))


def byte_level_bpe(num_tokens, steps=None, **values):
  """Return a tokenizer.json with GPT-2's steps: letters, one merge, and an end-of-text token."""
  tokens = [*LETTERS[: num_tokens - 2], "!#"]
  return {
    "added_tokens": [{"id": num_tokens - 1, "content": END, "special": True}],
    "pre_tokenizer": steps or BYTE_LEVEL,
    "decoder": BYTE_LEVEL,
    "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": ["! #"]},
  } | values


def sentencepiece_folder(folder, metadata):
  """Write a random LLaMA with the SentencePiece BPE in the metadata of a GGUF file."""
  source = case_folder("llama-a", folder.parent, **CASES["llama-a"])
  arrays = {name: tensor.numpy() for name, tensor in read_tensors(source).items()}
  vocab_size = len(metadata["tokenizer.ggml.tokens"])
  change(source, "config.json", vocab_size=vocab_size)
  rng = np.random.default_rng(0)
  for name in ("model.embed_tokens.weight", "lm_head.weight"):
    arrays[name] = rng.standard_normal((vocab_size, 16)).astype(np.float32)
  convert.safetensors.write_safetensors(source / "model.safetensors", arrays)
  file = folder_to_gguf(source, folder.parent / "source.gguf", **metadata)
  convert.convert_gguf(file, folder)
  return folder


@pytest.fixture
def case(tmp_path):
  """Return a function that makes a folder of a fixture's model with a tokenizer."""

  def make(name, **config):
    folder = case_folder(name, tmp_path, **CASES.get(name, {}) | config)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_bpe(vocab_size)))
    change(folder, "tokenizer_config.json", eos_token=END)
    return folder

  return make


@pytest.fixture
def path(tmp_path):
  return tmp_path / "model.gguf"


DECODERS = [name for name in CASES if name != "bert-a"]


@pytest.mark.parametrize("name", DECODERS)
def test_the_reader_returns_the_config_and_the_parameters_of_the_folder(case, name, path):
  folder = case(name)
  convert.convert_folder(folder, path)
  assert_equal_parameters(load_module(path), load_module(folder))


@pytest.mark.parametrize("name", DECODERS)
def test_the_tensors_are_those_of_an_independent_writer(case, name, path, tmp_path):
  folder = case(name)
  if name == "gpt2-b":
    change(folder, "config.json", n_inner=80)  # the other writer does not know the default
  convert.convert_folder(folder, path)
  expected = read_gguf(folder_to_gguf(folder, tmp_path / "expected.gguf"))
  actual = read_gguf(path)
  assert actual.tensors.keys() == expected.tensors.keys()
  for key, tensor in expected.tensors.items():
    np.testing.assert_array_equal(actual.tensors[key].numpy(), tensor.numpy(), err_msg=key)
  assert expected.metadata.items() <= actual.metadata.items()


@pytest.mark.parametrize("scaling", [LLAMA3, {"rope_type": "linear", "factor": 2.5}])
def test_rope_scaling_is_written(case, path, scaling):
  folder = case("llama-a", rope_parameters={"rope_theta": 5e8} | scaling)
  convert.convert_folder(folder, path)
  np.testing.assert_allclose(load_module(path).inv_freq, load_module(folder).inv_freq, rtol=1e-6)


def test_a_tied_head_is_not_written(case, path):
  folder = case("llama-a")
  tensors = {name: tensor.numpy() for name, tensor in read_tensors(folder).items()}
  del tensors["lm_head.weight"]
  convert.safetensors.write_safetensors(folder / "model.safetensors", tensors)
  change(folder, "config.json", tie_word_embeddings=True)
  convert.convert_folder(folder, path)
  assert "output.weight" not in read_gguf(path).tensors
  assert_equal_parameters(load_module(path), load_module(folder))


# **************** types ****************


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_only_matrices_are_stored_in_the_chosen_type(case, path, dtype, rounding):
  folder = case("gpt2-a")
  convert.convert_folder(folder, path, dtype)
  expected = read_tensors(folder)
  for name, tensor in read_gguf(path).tensors.items():
    is_wide = len(tensor.shape) == 1 or name == "position_embd.weight"
    assert tensor.type.name == ("F32" if is_wide else convert.GGML_TYPES[dtype])
  for name, tensor in read_tensors(path).items():
    x = expected[name].numpy()
    assert (np.abs(tensor.numpy() - x) <= np.abs(x) * rounding + 2**-24).all()


def test_weights_of_q8_0_have_an_error_of_at_most_half_a_step(path):
  convert.convert_folder(TINY, path, "q8_0")
  name = "transformer.h.3.mlp.c_fc.weight"
  assert read_gguf(path).tensors["blk.3.ffn_up.weight"].type.name == "Q8_0"
  x = read_tensors(TINY)[name].numpy().T.reshape(-1, 32)
  actual = read_tensors(path)[name].numpy().T.reshape(-1, 32)
  step = np.abs(x).max(1, keepdims=True) / 127
  assert (np.abs(actual - x) <= step / 2 + np.abs(x) * 2**-11).all()


def test_rows_that_do_not_consist_of_blocks_are_stored_in_float16(case, path):
  convert.convert_folder(case("llama-a"), path, "q8_0")
  types = {name: tensor.type.name for name, tensor in read_gguf(path).tensors.items()}
  assert set(types.values()) == {"F32", "F16"}


def test_blocks_of_q8_0_have_the_largest_weight_127_and_half_a_step_rounded_up():
  x = np.zeros((2, 64), np.float32)
  x[0, :5] = [127, 0.5, -0.5, 1.5, -126.5]
  x[1, 40] = -2
  blocks = quantize_q8_0(x)
  q = blocks[:, 2:].view(np.int8)
  assert q[0, :5].tolist() == [127, 1, -1, 2, -127]
  assert q[1].any() == q[2].any() == False  # noqa: E712
  assert q[3, 8] == -127
  largest = GGML_TYPES[8].dequantize(blocks)[3, 8]
  np.testing.assert_allclose(largest, -2, rtol=2**-11)


# **************** tokenizers ****************


@pytest.mark.parametrize("names", PRE_TOKENIZERS)
def test_a_tokenizer_has_the_same_metadata_after_a_conversion_to_a_folder_and_back(
  tmp_path, path, names
):
  values = {"bos_token_id": 95, "eos_token_id": 96, "eot_token_id": 94, "padding_token_id": 96}
  values |= {"merges": ["! #", "$ %"], "add_bos_token": True, "add_eos_token": False}
  tokens = [*LETTERS[:90], "!#", "$%", "[PAD92]", "<tool>", "<|turn|>", "<s>", END]
  types = [*[1] * 92, 5, 4, 3, 3, 3]
  metadata = tokenizer_metadata("gpt2", tokens, types, pre=names.split()[-1], **values)
  metadata["tokenizer.chat_template"] = "{{ messages }}"
  folder = case_folder("gpt2-a", tmp_path, n_inner=60)
  convert.convert_gguf(folder_to_gguf(folder, tmp_path / "a.gguf", **metadata), tmp_path / "b")
  convert.convert_folder(tmp_path / "b", path)
  actual = read_gguf(path).metadata
  assert actual["tokenizer.ggml.pre"] == names.split()[0]
  for key in metadata.keys() - {"tokenizer.ggml.pre"}:
    np.testing.assert_array_equal(actual[key], metadata[key], err_msg=key)


@pytest.mark.parametrize("add_space", [False, True])
@pytest.mark.parametrize("step", ["normalizer", "Metaspace"])
def test_a_sentencepiece_bpe_gives_the_same_ids_after_a_conversion_to_a_folder_and_back(
  tmp_path, path, add_space, step
):
  metadata = sentencepiece_metadata(add_space_prefix=add_space)
  folder = sentencepiece_folder(tmp_path / "folder", metadata)
  if step == "Metaspace":
    scheme = "first" if add_space else "never"
    metaspace = {"replacement": "▁", "prepend_scheme": scheme, "split": False}
    metaspace |= {"type": "Metaspace"}
    change(folder, "tokenizer.json", pre_tokenizer=metaspace, normalizer=None)
  convert.convert_folder(folder, path)
  actual = read_gguf(path).metadata
  for key in metadata.keys() - {"tokenizer.ggml.scores"}:
    np.testing.assert_array_equal(actual[key], metadata[key], err_msg=key)
  tokenizer = load_tokenizer(path, contents=tokenizer_contents(path))
  expected = load_tokenizer(folder)
  for text in ("the th", "thx", "ze hxe\nthe the", "Käse"):
    assert tokenizer.encode(text) == expected.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected.decode(expected.encode(text))


def test_the_tokenizer_of_vocab_json_and_merges_txt_gives_the_same_ids(path):
  convert.convert_folder(TINY, path)
  tokenizer = load_tokenizer(path, contents=tokenizer_contents(path))
  expected = load_tokenizer(TINY)
  assert tokenizer.encode(TEXT) == expected.encode(TEXT)
  assert (tokenizer.end, tokenizer.specials) == (expected.end, expected.specials)


def test_ids_without_a_token_are_padding(case, path):
  folder = case("llama-a")
  (folder / "tokenizer.json").write_text(json.dumps(byte_level_bpe(50)))
  convert.convert_folder(folder, path)
  metadata = read_gguf(path).metadata
  assert metadata["tokenizer.ggml.tokens"][48:52] == ["!#", END, "[PAD50]", "[PAD51]"]
  assert list(metadata["tokenizer.ggml.token_type"][48:52]) == [1, 3, 5, 5]
  assert len(load_tokenizer(path, contents=tokenizer_contents(path))) == 50


def test_a_template_in_a_file_and_tokens_as_objects_are_read(case, path):
  folder = case("llama-a")
  change(folder, "tokenizer_config.json", eos_token={"content": END}, chat_template="old")
  (folder / "chat_template.jinja").write_text("new")
  convert.convert_folder(folder, path)
  metadata = read_gguf(path).metadata
  assert metadata["tokenizer.chat_template"] == "new"
  assert metadata["tokenizer.ggml.eos_token_id"] == 60


def template(*single):
  parts = [{"Sequence": {"id": "A"}} if p == "A" else {"SpecialToken": {"id": p}} for p in single]
  tokens = {END: {"ids": [60]}, "!": {"ids": [0]}}
  return {"type": "TemplateProcessing", "single": parts, "special_tokens": tokens}


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_a_template_states_whether_bos_and_eos_are_added(case, path, bos, eos):
  folder = case("llama-a")
  post_processor = template(*["!"] * bos, "A", *[END] * eos)
  change(folder, "tokenizer.json", post_processor=post_processor)
  change(folder, "tokenizer_config.json", bos_token="!")
  convert.convert_folder(folder, path)
  metadata = read_gguf(path).metadata
  assert metadata["tokenizer.ggml.bos_token_id"] == 0
  assert metadata["tokenizer.ggml.add_bos_token"] == bos
  assert metadata["tokenizer.ggml.add_eos_token"] == eos


# **************** what is refused ****************

SPLIT = {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}
WORD_PIECE = {"type": "WordPiece", "vocab": {}}
ADDED = {"id": 3, "content": "$", "special": False, "lstrip": True}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
REFUSED = {
  "other steps": ({"pre_tokenizer": SPLIT}, r"steps \(Split\) with their settings are not"),
  "a prefix of a space": (
    {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
    r"steps \(ByteLevel\) with their settings are not",
  ),
  "a normalizer": ({"normalizer": {"type": "Lowercase"}}, r"steps \(Lowercase, ByteLevel\)"),
  "no steps": ({"pre_tokenizer": None}, r"steps \(none\)"),
  "another model": ({"model": WORD_PIECE}, "tokenizer of type WordPiece cannot be written"),
  "a suffix of words": (
    {"model": byte_level_bpe(61)["model"] | {"end_of_word_suffix": "</w>"}},
    "the BPE's end_of_word_suffix cannot be written",
  ),
  "other steps before SentencePiece": (
    {"model": byte_level_bpe(61)["model"] | {"byte_fallback": True}},
    r"steps \(ByteLevel\) with their settings are not those of llama.cpp's SentencePiece BPE",
  ),
  "missing merges of SentencePiece": (
    {
      "model": byte_level_bpe(61)["model"] | {"byte_fallback": True, "merges": []},
      "pre_tokenizer": None,
      "normalizer": REPLACE,
    },
    "the merges are not those of a SentencePiece BPE",
  ),
  "too many tokens": (byte_level_bpe(62), r"has the ID 61, but the model has 61"),
  "spaces that a token removes": ({"added_tokens": [ADDED]}, r"added token \$ has lstrip"),
  "a post-processor": (
    {"post_processor": {"type": "RobertaProcessing"}},
    "post_processor RobertaProcessing cannot be written",
  ),
  "other special tokens": ({"post_processor": template(END, "A")}, "adds other special tokens"),
  "half a merge": ({"model": byte_level_bpe(61)["model"] | {"merges": [["!"]]}}, "is damaged"),
  "a token without text": (
    {"added_tokens": [{"id": 3, "content": None, "special": True}]},
    "the token None has the ID 3",
  ),
  "a damaged tokenizer": ({"model": {"type": "BPE"}}, "the tokenizer is damaged: it lacks 'vocab'"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_tokenizer_without_an_equivalent_is_refused_in_one_line(case, path, reason):
  changes, message = REFUSED[reason]
  folder = case("llama-a")
  change(folder, "tokenizer.json", **changes)
  with pytest.raises(ValueError, match=message) as error:
    convert.convert_folder(folder, path)
  assert "\n" not in str(error.value)
  assert not path.exists()


def test_special_tokens_with_an_invalid_id_are_left_out(case, path):
  folder = case("llama-a", pad_token_id=-1, bos_token_id=50256)
  change(folder, "generation_config.json", eos_token_id=[60, 1 << 40])
  convert.convert_folder(folder, path)
  ids = {k: v for k, v in read_gguf(path).metadata.items() if k.endswith("_token_id")}
  assert ids == {"tokenizer.ggml.eos_token_id": 60}


def test_a_folder_without_a_tokenizer_or_an_end_token_is_refused(case, path):
  folder = case("llama-a")
  (folder / "tokenizer_config.json").unlink()
  with pytest.raises(ValueError, match=r"^[^\n]+ needs eos_token, which tokenizer_config.json lac"):
    convert.convert_folder(folder, path)
  (folder / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match=r"neither tokenizer\.json nor vocab\.json"):
    convert.convert_folder(folder, path)
  change(folder, "generation_config.json", eos_token_id=[1, 2, 3, 4])
  (folder / "tokenizer.json").write_text(json.dumps(byte_level_bpe(61)))
  with pytest.raises(ValueError, match="at most three end tokens, not 4"):
    convert.convert_folder(folder, path)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
MODELS = {
  "another architecture": ("bert-a", {}, "model_type 'bert' cannot be written as GGUF; gpt2, lla"),
  "another activation": ("gpt2-a", {"activation_function": "relu"}, "has gelu_new only, not relu"),
  "another scaling": ("llama-a", {"rope_parameters": YARN}, "scaling 'yarn' cannot be written"),
  "another width": ("llama-a", {"intermediate_size": 25}, "but config.json requires"),
}


@pytest.mark.parametrize("reason", MODELS)
def test_a_model_without_an_equivalent_is_refused_in_one_line(case, path, reason):
  name, config, message = MODELS[reason]
  with pytest.raises(ValueError, match=message) as error:
    convert.convert_folder(case(name, **config), path)
  assert "\n" not in str(error.value)
  assert not path.exists()


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, path, monkeypatch):
  def fail(done, total):
    raise OSError("the disk is full")

  with pytest.raises(OSError, match="the disk is full"):
    convert.convert_folder(TINY, path, report=fail)
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
  for dtype, size in (("float32", 14), ("q8_0", 4)):
    with pytest.raises(OSError, match=f"the weights need {size} MB in {dtype}"):
      convert.convert_folder(TINY, path, dtype)
  assert list(tmp_path.iterdir()) == []


def test_the_command_needs_no_compiler(tmp_path, path):
  """The new process has no clang, and no cache of kernels."""
  environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
  command = [sys.executable, "convert.py", "-q", TINY, path, "--dtype", "bfloat16"]
  subprocess.run(command, cwd=ROOT, env=environment, check=True)
  convert.convert_folder(TINY, tmp_path / "expected.gguf", "bfloat16")
  assert path.read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_the_command_converts_a_folder_into_a_new_file_only(tmp_path, path, capsys):
  assert run_convert(TINY, path, "--dtype", "q8_0") == 0
  assert capsys.readouterr().err == f"wrote {path}\n"
  assert run_convert(TINY, path) == 1
  assert capsys.readouterr().err == f"error: {path} exists already: pass the name of a new file\n"
  assert run_convert(path, tmp_path / "folder", "--dtype", "q8_0") == 1
  assert "a folder cannot have weights in q8_0" in capsys.readouterr().err
  for source, target in ((path, tmp_path / "b.gguf"), (TINY, tmp_path / "folder")):
    assert run_convert(source, target) != 0
    assert "convert a GGUF file to a folder, or a folder to a file" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == [path]
