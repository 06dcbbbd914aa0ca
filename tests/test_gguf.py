"""Read GGUF files: headers, blocks of every type, and models of each architecture."""

import json
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
from conftest import FIXTURES
from gguf_files import (
  folder_to_gguf,
  model_metadata,
  model_tensors,
  string,
  value,
  write_gguf,
)
from tinygrad import Tensor, dtypes, nn

from layers.positions import rope_inv_freq
from tinyformer.checkpoints import load_module, read_config, read_tensors, safetensors
from tinyformer.checkpoints.ggml_types import GGML_TYPES, dequantize_q4_0
from tinyformer.checkpoints.gguf import read_gguf
from tinyformer.checkpoints.gguf_model import InterleavedRows

NUMBERS = {t.name: number for number, t in GGML_TYPES.items()}


def random_blocks(name: str, n: int, seed: int = 0) -> np.ndarray:
  """Return n random blocks of a type. The scales are small, so that nothing overflows."""
  blocks = np.random.default_rng(seed).integers(0, 256, (n, GGML_TYPES[NUMBERS[name]].block_bytes))
  return blocks.astype(np.uint8)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "model.gguf"


# **************** blocks: each formula, weight by weight ****************


def f16(block, start):
  return float(block[start : start + 2].view(np.float16)[0])


def nibble(block, start, i, half):
  """Return the lower half of byte i for weight i, and the upper half for weight i + half."""
  byte = int(block[start + i % half])
  return byte & 15 if i < half else byte >> 4


def bit(block, start, i):
  return int(block[start + i // 8]) >> i % 8 & 1


def k_scale(block, group):
  """Return the scale and the minimum of a group of 32 weights, as in get_scale_min_k4 of ggml."""
  s = [int(b) for b in block[4:16]]
  if group < 4:
    return s[group] & 63, s[group + 4] & 63
  return (
    (s[group + 4] & 15) | (s[group - 4] >> 6) << 4,
    (s[group + 4] >> 4) | (s[group] >> 6) << 4,
  )


def k_weight(block, i, q):
  scale, minimum = k_scale(block, i // 32)
  return f16(block, 0) * scale * q - f16(block, 2) * minimum


def q5_k(block, i):
  fifth = int(block[16 + i % 32]) >> (i // 32) & 1
  byte = int(block[48 + i // 64 * 32 + i % 32])
  return k_weight(block, i, (byte & 15 if i // 32 % 2 == 0 else byte >> 4) + 16 * fifth)


def q4_k(block, i):
  byte = int(block[16 + i // 64 * 32 + i % 32])
  return k_weight(block, i, byte & 15 if i // 32 % 2 == 0 else byte >> 4)


def q6_k(block, i):
  half, group, column = i // 128, i % 128 // 32, i % 32
  byte = int(block[64 * half + 32 * (group % 2) + column])
  low = byte & 15 if group < 2 else byte >> 4
  high = int(block[128 + 32 * half + column]) >> 2 * group & 3
  scale = int(block[192:208].view(np.int8)[i // 16])
  return f16(block, 208) * scale * (low + 16 * high - 32)


WEIGHTS = {
  "F32": lambda b, i: float(b.view(np.float32)[0]),
  "F16": lambda b, i: f16(b, 0),
  "BF16": lambda b, i: struct.unpack("<f", bytes([0, 0, *b]))[0],
  "Q8_0": lambda b, i: f16(b, 0) * int(b[2:].view(np.int8)[i]),
  "Q4_0": lambda b, i: f16(b, 0) * (nibble(b, 2, i, 16) - 8),
  "Q4_1": lambda b, i: f16(b, 0) * nibble(b, 4, i, 16) + f16(b, 2),
  "Q5_0": lambda b, i: f16(b, 0) * (nibble(b, 6, i, 16) + 16 * bit(b, 2, i) - 16),
  "Q5_1": lambda b, i: f16(b, 0) * (nibble(b, 8, i, 16) + 16 * bit(b, 4, i)) + f16(b, 2),
  "Q4_K": q4_k,
  "Q5_K": q5_k,
  "Q6_K": q6_k,
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_each_weight_of_a_block_follows_the_formula_of_its_type(name):
  ggml_type = GGML_TYPES[NUMBERS[name]]
  blocks = random_blocks(name, 20)
  actual = ggml_type.dequantize(blocks)
  assert actual.dtype == np.float32
  expected = [[WEIGHTS[name](b, i) for i in range(ggml_type.block_size)] for b in blocks]
  np.testing.assert_allclose(actual, np.array(expected, dtype=np.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K"])
def test_rows_of_a_tensor_are_read_in_order(path, name):
  ggml_type = GGML_TYPES[NUMBERS[name]]
  rows, columns = 5, 512
  blocks = np.full((rows * columns // ggml_type.block_size, ggml_type.block_bytes), 1, np.uint8)
  blocks[:, 2:] = random_blocks(name, len(blocks))[:, 2:]
  expected = ggml_type.dequantize(blocks).reshape(rows, columns)
  tensor = (NUMBERS[name], (rows, columns), blocks.tobytes())
  t = read_gguf(write_gguf(path, {}, {"a": np.ones((3,)), "w": tensor})).tensors["w"]
  assert t.shape == (rows, columns)
  np.testing.assert_array_equal(t.numpy(), expected)
  np.testing.assert_array_equal(t.numpy(2, 4), expected[2:4])


def test_int4_weights_are_the_blocks_of_q4_0_in_the_file(path):
  """Rounding again would change them: few random blocks contain q = 0, the largest weight's."""
  rows, columns, head_dim = 12, 64, 6
  blocks = np.full((rows * columns // 32, 18), 1, np.uint8)
  blocks[:, 2:] = random_blocks("Q4_0", len(blocks))[:, 2:]
  tensor = (NUMBERS["Q4_0"], (rows, columns), blocks.tobytes())
  tensors = read_gguf(write_gguf(path, {}, {"w": tensor, "v": np.ones((3, 32))})).tensors
  for source in (tensors["w"], InterleavedRows(tensors["w"], head_dim)):
    weight = Tensor.empty(rows, columns)
    safetensors.write_parameters(source, [safetensors.ParameterWriter(weight, dtypes.uint8)], False)
    written = dequantize_q4_0(weight.numpy().reshape(-1, 18)).reshape(rows, columns)
    np.testing.assert_array_equal(written, source.numpy())
    np.testing.assert_array_equal(source.int4(4, 9), weight.numpy()[4:9])
  assert tensors["v"].int4(0, 3) is None


# **************** headers ****************


def test_metadata_of_every_type_is_read(path):
  metadata = {
    "text": "Käse ▁ 🙂",
    "number": 7,
    "small": 1e-5,
    "flag": True,
    "texts": ["a", "", "b c"],
    "numbers": [3, 1, 2],
  }
  read = read_gguf(write_gguf(path, metadata, {})).metadata
  assert {k: list(v) if k == "numbers" else v for k, v in read.items()} == metadata


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_tensors_are_aligned(path, alignment):
  tensors = {"a": np.arange(3.0), "b": np.arange(8.0).reshape(2, 4), "c": np.arange(1.0)}
  read = read_gguf(write_gguf(path, {"x": 1}, tensors, alignment)).tensors
  for name, expected in tensors.items():
    np.testing.assert_array_equal(read[name].numpy(), expected)


def test_every_truncated_file_is_refused_in_one_line(path):
  content = write_gguf(path, {"a": "text", "b": [1, 2], "c": ["d"]}, {"w": np.ones((3, 2))})
  data = content.read_bytes()
  end = len(data) - (-24 % 32)  # the padding after the last tensor may be missing
  for size in range(end):
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=r"model\.gguf cannot be read as GGUF: [^\n]+$"):
      read_gguf(path)


def header(num_tensors=0, num_values=0, body=b"", magic=b"GGUF", version=3):
  return magic + struct.pack("<IQQ", version, num_tensors, num_values) + body


def entry(name="w", shape=(32,), kind=0, offset=0):
  dims = b"".join(struct.pack("<Q", n) for n in shape)
  return string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


HUGE = 1 << 60
HOSTILE = {
  "another format": (header(magic=b"PK\3\4"), "begins with"),
  "version 1": (header(version=1), "version 1 "),
  "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
  "2^60 tensors": (header(num_tensors=HUGE), "1,152,921,504,606,846,976 tensors do not fit"),
  "2^60 values": (header(num_values=HUGE), "metadata values do not fit"),
  "too many tensors": (header(num_tensors=70_000) + bytes(70_000 * 24), "more than 65,536"),
  "a long name": (header(0, 1, struct.pack("<Q", HUGE) + bytes(64)), "bytes of text do not fit"),
  "an unknown type of value": (header(0, 1, string("k") + struct.pack("<I", 99) + bytes(8)), "99"),
  "2^60 strings": (header(0, 1, string("k") + struct.pack("<IIQ", 9, 8, HUGE)), "strings do not"),
  "2^60 numbers": (header(0, 1, string("k") + struct.pack("<IIQ", 9, 4, HUGE)), "numbers do not"),
  "nested arrays": (header(0, 1, string("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(16)), "array"),
  "not UTF-8": (header(0, 1, struct.pack("<Q", 1) + b"\xff" + bytes(32)), "utf-8"),
  "a key twice": (header(0, 2, (string("k") + value(1)) * 2), "'k' occurs twice"),
  "an alignment of 0": (header(0, 1, string("general.alignment") + value(0)), "not 0"),
  "an alignment of 12": (header(0, 1, string("general.alignment") + value(12)), "not 12"),
  "an alignment of text": (header(0, 1, string("general.alignment") + value("8")), "not '8'"),
  "no dimensions": (header(1, 0, entry(shape=()) + bytes(32)), "0 dimensions"),
  "2^31 dimensions": (header(1, 0, string("w") + struct.pack("<I", 1 << 31) + bytes(32)), "dimens"),
  "a size of 2^60": (header(1, 0, entry(shape=(HUGE,)) + bytes(200)), "ends at byte"),
  "sizes that overflow": (header(1, 0, entry(shape=(1 << 32, 1 << 32)) + bytes(200)), "ends at"),
  "an empty tensor": (header(1, 0, entry(shape=(0,)) + bytes(200)), "does not consist"),
  "a row of half a block": (header(1, 0, entry(shape=(16,), kind=8) + bytes(200)), "blocks of 32"),
  "an unsupported type": (header(1, 0, entry(kind=10) + bytes(200)), "w has the type Q2_K"),
  "an unknown type": (header(1, 0, entry(kind=77) + bytes(200)), "number 77"),
  "an unaligned offset": (header(1, 0, entry(offset=4) + bytes(400)), "not a multiple of 32"),
  "an offset of 2^63": (header(1, 0, entry(offset=1 << 63) + bytes(200)), "ends at byte"),
  "a name twice": (header(2, 0, entry() + entry(offset=128) + bytes(500)), "'w' occurs twice"),
  "overlapping tensors": (header(2, 0, entry() + entry("v", offset=32) + bytes(500)), "overlap"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_in_little_memory(path, case):
  data, message = HOSTILE[case]
  path.write_bytes(data)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=r"model\.gguf cannot be read as GGUF: [^\n]+$") as error:
      read_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert message in str(error.value)
  assert peak < 1 << 20


# **************** models ****************


def case_folder(case, tmp_path, **changes):
  """Return a copy of a fixture with changes to its config.json, and its config.json."""
  folder = tmp_path / case
  shutil.copytree(FIXTURES / case, folder)
  config = json.loads((folder / "config.json").read_text()) | changes
  (folder / "config.json").write_text(json.dumps(config))
  return folder


LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 5e8,  # large enough for a frequency that is divided by the whole factor
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
CASES = {
  "llama-a": {"rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}},
  "mistral-a": {"rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}},
  "qwen2-a": {"rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}},
  "qwen3-a": {"rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}},
  "gpt2-a": {},
  "gpt2-b": {},
  "bert-a": {"architectures": ["BertModel"]},
}


def assert_equal_parameters(actual, expected):
  assert actual.config == expected.config
  parameters = nn.state.get_state_dict(actual)
  for name, t in nn.state.get_state_dict(expected).items():
    np.testing.assert_array_equal(parameters[name].numpy(), t.numpy(), err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_model_has_the_config_and_the_parameters_of_the_same_model_in_a_folder(
  case, tmp_path, path
):
  folder = case_folder(case, tmp_path, **CASES[case])
  config = json.loads((folder / "config.json").read_text())
  if case.startswith("gpt2") and not config.get("n_inner"):
    config["n_inner"] = 4 * config["n_embd"]
    (folder / "config.json").write_text(json.dumps(config))
  assert_equal_parameters(load_module(folder_to_gguf(folder, path)), load_module(folder))


def test_rows_of_interleaved_heads_are_read_in_part(tmp_path, path):
  folder = case_folder("mistral-a", tmp_path, **CASES["mistral-a"])
  name = "model.layers.1.self_attn.q_proj.weight"
  tensor = read_tensors(folder_to_gguf(folder, path))[name]
  expected = read_tensors(folder)[name].numpy()
  for first in range(len(expected)):
    for last in range(first + 1, len(expected) + 1):
      np.testing.assert_array_equal(tensor.numpy(first, last), expected[first:last])


def test_the_factors_of_llama_3_1_become_its_rope_scaling(tmp_path, path):
  folder = case_folder("llama-a", tmp_path, rope_parameters=LLAMA3)
  config = json.loads((folder / "config.json").read_text())
  head_dim = config["hidden_size"] // config["num_attention_heads"]
  plain, scaled = (np.array(rope_inv_freq(head_dim, 5e8, s)) for s in (None, LLAMA3))
  factors = (plain / scaled).astype(np.float32)
  tensors = model_tensors(folder, config) | {"rope_freqs.weight": factors}
  file = write_gguf(path, model_metadata(config), tensors)
  np.testing.assert_allclose(load_module(file).inv_freq, load_module(folder).inv_freq, rtol=1e-6)
  write_gguf(path, model_metadata(config), tensors | {"rope_freqs.weight": factors * 1.1})
  with pytest.raises(ValueError, match="has factors other than those"):
    load_module(file)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_weights_are_stored_in_the_chosen_type(tmp_path, path, dtype):
  folder = case_folder("gpt2-a", tmp_path, n_inner=60)
  actual = nn.state.get_state_dict(load_module(folder_to_gguf(folder, path), dtype))
  expected = nn.state.get_state_dict(load_module(folder, dtype))
  for name, t in expected.items():
    assert actual[name].dtype == t.dtype
    np.testing.assert_array_equal(actual[name].numpy(), t.numpy())


UNSUPPORTED = {
  "another architecture": ({"general.architecture": "mamba"}, "'mamba' is not one of llama, qwen2"),
  "experts": ({"llama.expert_count": 8}, "expert_count must be 0, the only supported value, not 8"),
  "partial rotation": ({"llama.rope.dimension_count": 2}, "rope.dimension_count must be 4"),
  "unequal heads": ({"llama.attention.value_length": 9}, "attention.value_length must be 4"),
  "one of several files": ({"split.count": 3}, "one of 3 parts"),
  "a missing size": ({"llama.block_count": 0}, "block_count must be an integer from 1"),
  "a size per layer": ({"llama.attention.head_count": [4, 2]}, "head_count must be"),
  "another number of layers": ({"llama.block_count": 3}, "lacks model.layers.2"),
  "another width": ({"llama.embedding_length": 32}, "but config.json requires"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_model_that_is_not_supported_is_refused_in_one_line(tmp_path, path, case):
  metadata, message = UNSUPPORTED[case]
  folder = case_folder("llama-a", tmp_path, **CASES["llama-a"])
  file = folder_to_gguf(folder, path, **metadata)
  with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
    load_module(file)
  assert message in str(error.value)


def test_the_copy_of_the_embedding_in_a_gpt2_is_ignored(tmp_path, path):
  """llama.cpp's quantizer gives the two different types."""
  folder = case_folder("gpt2-a", tmp_path, n_inner=60)
  config = json.loads((folder / "config.json").read_text())
  tensors = model_tensors(folder, config)
  copy = tensors["token_embd.weight"] + 1
  write_gguf(path, model_metadata(config), tensors | {"output.weight": copy})
  assert_equal_parameters(load_module(path), load_module(folder))


def test_a_tensor_that_the_model_does_not_have_is_refused(tmp_path, path):
  folder = case_folder("llama-a", tmp_path, **CASES["llama-a"])
  config = json.loads((folder / "config.json").read_text())
  tensors = model_tensors(folder, config) | {"blk.0.attn_q.bias": np.ones(16)}
  with pytest.raises(ValueError, match="unknown to this model"):
    load_module(write_gguf(path, model_metadata(config), tensors))


def test_the_head_is_tied_if_the_file_has_no_matrix_for_it(tmp_path, path):
  folder = case_folder("llama-a", tmp_path, **CASES["llama-a"])
  config = json.loads((folder / "config.json").read_text())
  tensors = model_tensors(folder, config)
  assert not read_config(write_gguf(path, model_metadata(config), tensors)).flag(
    "tie_word_embeddings", True
  )
  del tensors["output.weight"]
  file = write_gguf(path, model_metadata(config), tensors)
  assert read_config(file).flag("tie_word_embeddings", False)
  assert load_module(file).config.tied
