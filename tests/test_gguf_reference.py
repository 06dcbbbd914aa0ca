"""GGUF files equal those of the package gguf, and converted folders open in transformers.

Needs the extra `reference`; runs in .ci/run.
"""

import json

import numpy as np
import pytest
from conftest import close
from gguf_files import bpe_metadata, folder_to_gguf, tokenizer_metadata
from test_gguf import NUMBERS, random_blocks
from test_gguf_tokenizer import TEXT, TINY, sentencepiece_metadata, tokenizer_of
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.checkpoints.convert import convert_gguf
from tinyformer.checkpoints.ggml_types import GGML_TYPES
from tinyformer.checkpoints.gguf import read_gguf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_blocks_are_dequantized_to_the_bits_of_the_package_gguf(name):
  ggml_type = GGML_TYPES[NUMBERS[name]]
  kind = gguf.GGMLQuantizationType[name]
  assert gguf.GGML_QUANT_SIZES[kind] == (ggml_type.block_size, ggml_type.block_bytes)
  blocks = random_blocks(name, 5000)
  expected = gguf.dequantize(blocks.reshape(1, -1), kind).astype(np.float32)
  actual = ggml_type.dequantize(blocks).reshape(1, -1)
  is_number = ~np.isnan(expected)
  np.testing.assert_array_equal(np.isnan(actual), ~is_number)
  np.testing.assert_array_equal(actual[is_number], expected[is_number])


@pytest.mark.parametrize("alignment", [32, 64])
def test_a_file_of_the_package_gguf_is_read(tmp_path, alignment):
  writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
  writer.add_custom_alignment(alignment)
  writer.add_uint8("a", 255)
  writer.add_int8("b", -5)
  writer.add_uint16("c", 65535)
  writer.add_int16("d", -300)
  writer.add_int32("e", -70000)
  writer.add_uint64("f", 1 << 63)
  writer.add_int64("g", -(1 << 62))
  writer.add_float64("h", 1 / 3)
  writer.add_array("i", [0.5, 1.5])
  writer.add_array("j", ["x", "yz"])
  x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
  types = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
  expected = {}
  for name in types:
    kind = gguf.GGMLQuantizationType[name]
    data = gguf.quantize(x, kind)
    writer.add_tensor(name, data, raw_dtype=kind)
    expected[name] = gguf.dequantize(data, kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  read = read_gguf(tmp_path / "model.gguf")
  values = [read.metadata[key] for key in "abcdefgh"]
  assert values == [255, -5, 65535, -300, -70000, 1 << 63, -(1 << 62), 1 / 3]
  assert list(read.metadata["i"]) == [0.5, 1.5] and read.metadata["j"] == ["x", "yz"]
  for name, array in expected.items():
    np.testing.assert_array_equal(read.tensors[name].numpy(), array)


SIZES = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, intermediate_size=40)
ROPE = {"rope_theta": 5e4, "rope_type": "default"}
LLAMA = SIZES | dict(num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64)
CONFIGS = {
  "llama": lambda: transformers.LlamaConfig(**LLAMA, rope_parameters=ROPE, rms_norm_eps=1e-3),
  "llama, tied": lambda: transformers.LlamaConfig(
    **LLAMA, rope_parameters=ROPE, tie_word_embeddings=True
  ),
  "qwen2": lambda: transformers.Qwen2Config(**LLAMA, rope_parameters=ROPE),
  "qwen3": lambda: transformers.Qwen3Config(**LLAMA, rope_parameters=ROPE, head_dim=6),
  "gpt2": lambda: transformers.GPT2Config(
    vocab_size=97, n_embd=24, n_layer=2, n_head=3, n_inner=60, n_positions=64
  ),
  "bert": lambda: transformers.BertConfig(
    **SIZES, num_attention_heads=3, max_position_embeddings=64
  ),
}
IDS = np.random.default_rng(1).integers(0, 97, (2, 13))


def random_model(config):
  """Return a model of transformers with random parameters, as in make_fixtures."""
  torch.manual_seed(0)
  is_bert = config.model_type == "bert"
  auto = transformers.AutoModel if is_bert else transformers.AutoModelForCausalLM
  model = auto.from_config(config).eval()
  for name, p in model.named_parameters():
    is_norm = "norm" in name.lower() or "ln_" in name
    if is_norm and name.endswith("weight"):
      torch.nn.init.uniform_(p, 0.5, 1.5)
    else:
      torch.nn.init.normal_(p, std=0.3)
  return model


def output_of(model) -> np.ndarray:
  with torch.no_grad():
    return model(torch.tensor(IDS))[0].numpy()


@pytest.mark.parametrize("case", CONFIGS)
def test_a_file_and_its_converted_folder_have_the_outputs_of_transformers(tmp_path, case):
  model = random_model(CONFIGS[case]())
  model.save_pretrained(tmp_path / "original")
  expected = output_of(model)
  file = folder_to_gguf(tmp_path / "original", tmp_path / "m.gguf", **sentencepiece_metadata())
  ours = checkpoints.load_module(file)
  close(ours(Tensor(IDS.astype(np.int32))).numpy(), expected, 5e-5)
  convert_gguf(file, tmp_path / "converted")
  opened = type(model).from_pretrained(tmp_path / "converted", dtype=torch.float32)
  np.testing.assert_allclose(output_of(opened), expected, atol=1e-5)


def test_transformers_opens_a_converted_tokenizer(tmp_path):
  folder_to_gguf(TINY, tmp_path / "m.gguf", **bpe_metadata(TINY))
  convert_gguf(tmp_path / "m.gguf", tmp_path / "converted")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "converted")
  expected = transformers.AutoTokenizer.from_pretrained(TINY)
  assert tokenizer(TEXT).input_ids == expected(TEXT).input_ids
  assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
  context = json.loads((TINY / "config.json").read_text())["n_positions"]
  assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|endoftext|>", context)


def test_a_sentencepiece_bpe_gives_the_ids_of_sentencepiece(tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  text = (TINY.parent.parent / "README.md").read_text(encoding="utf-8")
  (tmp_path / "text.txt").write_text(text, encoding="utf-8")
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / "text.txt"),
    model_prefix=str(tmp_path / "m"),
    model_type="bpe",
    vocab_size=700,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "m.model"))
  n = reference.vocab_size()
  kinds = [
    2
    if reference.IsUnknown(i)
    else 3
    if reference.IsControl(i)
    else 6
    if reference.IsByte(i)
    else 1
    for i in range(n)
  ]
  metadata = tokenizer_metadata(
    "llama",
    [reference.IdToPiece(i) for i in range(n)],
    kinds,
    scores=[float(reference.GetScore(i)) for i in range(n)],
    bos_token_id=1,
    eos_token_id=2,
    unknown_token_id=0,
  )
  tokenizer = tokenizer_of(tmp_path / "m.gguf", metadata)
  for line in [*text.splitlines(), TEXT.replace("\t", " ")]:
    if line:
      assert tokenizer.encode(line) == reference.encode(line), line


def test_the_end_of_a_turn_is_written_to_generation_config(tmp_path):
  metadata = bpe_metadata(TINY) | {
    "tokenizer.ggml.eot_token_id": 5,
    "tokenizer.ggml.eom_token_id": 5,
  }
  folder_to_gguf(TINY, tmp_path / "m.gguf", **metadata)
  convert_gguf(tmp_path / "m.gguf", tmp_path / "converted")
  config = transformers.GenerationConfig.from_pretrained(tmp_path / "converted")
  eos = metadata["tokenizer.ggml.eos_token_id"]
  assert config.eos_token_id == [eos, 5]
  model = json.loads((tmp_path / "converted" / "config.json").read_text())
  assert model["eos_token_id"] == eos
