"""Files that convert.py writes generate the same greedy tokens in llama.cpp.

Needs the programs of benchmarks/build_llama_cpp.py.
"""

import json

import numpy as np
import pytest
from llama_cpp_program import assert_equal_ids
from test_gguf import LLAMA3, case_folder
from test_gguf_export import END, byte_level_bpe, change, sentencepiece_folder
from test_gguf_tokenizer import TEXT, TINY, sentencepiece_metadata
from test_smollm2 import PROMPTS

import tinyformer
from tinyformer.checkpoints import convert, hub
from tinyformer.checkpoints.ggml_types import quantize_q8_0
from tinyformer.checkpoints.gguf import read_gguf

pytestmark = pytest.mark.slow
NUM_TOKENS = 20
ROPE = {"rope_theta": 12345.0, "rope_type": "default"}
LINEAR = {"rope_theta": 12345.0, "rope_type": "linear", "factor": 2.5}
# A name -> the fixture and its changes to config.json.
MODELS = {
  "gpt2": ("gpt2-a", {}),
  "llama": ("llama-a", {"rope_parameters": ROPE}),
  "llama 3.1": ("llama-a", {"rope_parameters": LLAMA3}),
  "linear scaling": ("llama-a", {"rope_parameters": LINEAR}),
  "mistral": ("mistral-a", {"rope_parameters": ROPE, "sliding_window": None}),
  "qwen2": ("qwen2-a", {"rope_parameters": ROPE}),
  "qwen3": ("qwen3-a", {"rope_parameters": ROPE}),
}


@pytest.fixture(scope="module")
def tiny():
  return tinyformer.load(TINY)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("prompt", ["He shook his", "Once upon a time", TEXT])
def test_a_trained_model_generates_the_same_tokens_in_llama_cpp(tmp_path, tiny, prompt, dtype):
  file = tmp_path / "tiny.gguf"
  convert.convert_folder(TINY, file, dtype)
  assert_equal_ids(tiny, file, prompt, NUM_TOKENS)


@pytest.mark.parametrize("name", MODELS)
def test_a_random_model_generates_the_same_tokens_in_llama_cpp(tmp_path, name):
  fixture, changes = MODELS[name]
  folder = case_folder(fixture, tmp_path, **changes)
  vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
  (folder / "tokenizer.json").write_text(json.dumps(byte_level_bpe(vocab_size)))
  change(folder, "tokenizer_config.json", eos_token=END)
  convert.convert_folder(folder, tmp_path / "model.gguf")
  model = tinyformer.load(folder)
  for prompt in ("!#+", "0123ABC", "?"):
    assert_equal_ids(model, tmp_path / "model.gguf", prompt, 10)


@pytest.mark.parametrize("add_space", [False, True])
def test_a_sentencepiece_bpe_gives_the_same_tokens_in_llama_cpp(tmp_path, add_space):
  metadata = sentencepiece_metadata(add_space_prefix=add_space)
  folder = sentencepiece_folder(tmp_path / "folder", metadata)
  convert.convert_folder(folder, tmp_path / "model.gguf")
  model = tinyformer.load(folder)
  for prompt in ("the th", "thx thethe hxe", "Käse\n  ze 🙂"):
    assert_equal_ids(model, tmp_path / "model.gguf", prompt, 10)


def test_blocks_of_q8_0_have_the_bits_of_the_package_gguf():
  gguf = pytest.importorskip("gguf")
  x = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
  x[0], x[1] = 0, np.rint(x[1] * 100) / 2  # ties
  expected = gguf.quantize(x, gguf.GGMLQuantizationType.Q8_0)
  np.testing.assert_array_equal(quantize_q8_0(x).reshape(expected.shape), expected)


def test_the_package_gguf_reads_the_same_metadata_and_tensors(tmp_path):
  gguf = pytest.importorskip("gguf")
  convert.convert_folder(TINY, tmp_path / "tiny.gguf")
  reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
  expected = read_gguf(tmp_path / "tiny.gguf")
  for key, value in expected.metadata.items():
    # Our reader rounds a float32 to its shortest decimal number.
    value = np.float32(value) if isinstance(value, float) else value
    np.testing.assert_array_equal(reader.fields[key].contents(), value, err_msg=key)
  for tensor in reader.tensors:
    ours = expected.tensors[tensor.name]
    np.testing.assert_array_equal(tensor.data.reshape(ours.shape), ours.numpy())


# **************** SmolLM2 ****************


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
  """The published file, our model, and the same weights in float32 in a file that we write."""
  try:
    published = hub.find("smollm2")
  except hub.Unreachable as e:
    pytest.skip(str(e))
  folder = tmp_path_factory.mktemp("smollm2")
  convert.convert_gguf(published, folder / "converted")
  convert.convert_folder(folder / "converted", folder / "float32.gguf")
  return published, tinyformer.load(published), folder / "float32.gguf"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_in_float32_generates_the_same_tokens_in_llama_cpp(smollm2, prompt):
  _, model, float32 = smollm2
  assert_equal_ids(model, float32, prompt, NUM_TOKENS)
