"""Test the reader and the writer of safetensors files."""

import json
import os
import pickle
import random
import shutil
import threading
import tracemalloc

import numpy as np
import pytest
from conftest import FIXTURES
from tinygrad import Context, GlobalCounters

from tinyformer import checkpoints, files
from tinyformer.checkpoints import load_module, safetensors
from tinyformer.kernels.parts import FUSED

ARRAYS = {
  "a": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b": np.ones(5, np.float16),
  "empty": np.zeros((0, 3), np.float32),
}


def test_reading_returns_the_written_arrays_and_metadata(tmp_path):
  safetensors.write_safetensors(tmp_path / "x", ARRAYS, {"step": "7"})
  entries = safetensors.read_safetensors(tmp_path / "x")
  assert entries.keys() == ARRAYS.keys()
  assert safetensors.read_metadata(tmp_path / "x")["step"] == "7"
  for name in ("a", "b"):
    np.testing.assert_array_equal(entries[name].numpy(), ARRAYS[name])


def test_truncated_file_is_refused_at_every_length(tmp_path):
  safetensors.write_safetensors(tmp_path / "x", ARRAYS)
  data = (tmp_path / "x").read_bytes()
  for n in range(len(data)):
    (tmp_path / "x").write_bytes(data[:n])
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
      safetensors.read_safetensors(tmp_path / "x")


def test_random_bytes_are_refused(tmp_path):
  rng = random.Random(0)
  for n in range(200):
    beginnings = [
      b"",
      (20).to_bytes(8, "little"),
      (2**63).to_bytes(8, "little"),
      n.to_bytes(8, "little") + b'{"a":',
    ]
    (tmp_path / "x").write_bytes(rng.choice(beginnings) + rng.randbytes(n))
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
      safetensors.read_safetensors(tmp_path / "x")


@pytest.mark.parametrize(
  "header",
  [
    '{"a": 1}',
    '{"a": {"dtype": "F32"}}',
    '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
    "[]",
    "null",
    '{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    '{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": 1}',
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"b": 1}}',
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}',
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
    '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    '{"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    '{"a": ' + "[" * 100_000,
  ],
)
def test_invalid_header_is_refused(tmp_path, header):
  data = header.encode(errors="surrogatepass")
  (tmp_path / "x").write_bytes(len(data).to_bytes(8, "little") + data + bytes(4))
  with pytest.raises(ValueError, match="is not a valid safetensors file"):
    safetensors.read_safetensors(tmp_path / "x")


def test_pickle_is_refused_without_being_loaded(tmp_path):
  class Bomb:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "boom"),)

  (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(ValueError, match="pickle, which can run any code"):
    safetensors.read(tmp_path)
  assert not (tmp_path / "boom").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize(
  "name",
  ["config.json", "model.safetensors", "model.safetensors.index.json", "s.safetensors"],
)
def test_a_pipe_in_a_checkpoint_is_refused(tmp_path, name):
  """Opening a pipe that nothing writes to would block forever."""
  index = {"weight_map": {"a": "s.safetensors"}}
  if name != "model.safetensors":
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  (tmp_path / "config.json").write_text((FIXTURES / "gpt2-a" / "config.json").read_text())
  (tmp_path / name).unlink(missing_ok=True)
  os.mkfifo(tmp_path / name)
  with pytest.raises(OSError, match=rf"{name} is a pipe, but must be a regular file"):
    checkpoints.load_module(tmp_path)


def test_a_device_or_a_folder_in_a_checkpoint_is_refused(tmp_path):
  (tmp_path / "config.json").symlink_to("/dev/zero")
  with pytest.raises(OSError, match=r"config\.json is a device, but must be a regular file"):
    checkpoints.read_config(tmp_path)
  (tmp_path / "model.safetensors").mkdir()
  with pytest.raises(IsADirectoryError, match=r"safetensors is a folder"):
    safetensors.read(tmp_path)


def test_a_json_file_of_more_than_the_maximum_size_is_refused(tmp_path):
  (tmp_path / "config.json").write_text("[" + "0," * files.MAX_JSON_BYTES)
  with pytest.raises(ValueError, match=r"config\.json .*more than 16,000,000 bytes"):
    checkpoints.read_config(tmp_path)


@pytest.mark.parametrize(
  "case, changes",
  [
    ("gpt2-a", {"n_layer": 10**6}),
    ("gpt2-a", {"vocab_size": 10**12}),
    ("gpt2-a", {"n_positions": 10**9}),
    ("gpt2-a", {"n_inner": 10**9}),
    ("mistral-a", {"head_dim": 10**9}),
    ("mistral-a", {"head_dim": 8000}),
    ("mistral-a", {"num_hidden_layers": 10**6}),
    ("mixtral-a", {"num_local_experts": 10**6}),
    ("t5-a", {"num_decoder_layers": 10**6}),
    ("t5-a", {"relative_attention_num_buckets": 10**6, "relative_attention_max_distance": 10**7}),
    ("vit-a", {"image_size": 8_192, "patch_size": 1}),
    ("vit-a", {"num_channels": 10**9}),
  ],
)
def test_sizes_that_exceed_the_tensors_are_refused_before_memory_is_allocated(
  tmp_path, case, changes
):
  config = json.loads((FIXTURES / case / "config.json").read_text()) | changes
  (tmp_path / "config.json").write_text(json.dumps(config))
  shutil.copy(FIXTURES / case / "model.safetensors", tmp_path)
  before = GlobalCounters.mem_used
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=r"config\.json"):
      checkpoints.load_module(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 50_000_000
  assert GlobalCounters.mem_used < before + 1_000_000


def test_folder_without_weights_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
    safetensors.read(tmp_path)


@pytest.mark.parametrize(
  "index",
  [
    {},
    {"weight_map": 3},
    {"weight_map": {"a": "../x"}},
    {"weight_map": {"a": 1}},
    {"weight_map": {"z": "s.safetensors"}},
  ],
)
def test_invalid_index_of_shards_is_refused(tmp_path, index):
  safetensors.write_safetensors(tmp_path / "s.safetensors", ARRAYS)
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(ValueError, match=r"weight_map|lacks z"):
    safetensors.read(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_thread_fills_the_memory_of_a_device_other_than_the_cpu(dtype, monkeypatch):
  """tinygrad may compile the conversion, and its database belongs to a thread."""
  close = safetensors.ParameterWriter.close
  threads = set()

  def record(writer):
    threads.add(threading.current_thread())
    close(writer)

  monkeypatch.setattr(safetensors.ParameterWriter, "close", record)
  with Context(DEV="PYTHON"):
    module = load_module(FIXTURES / "gpt2-a", dtype, FUSED)
    assert module.tokens.weight.device == "PYTHON"
  assert threads == {threading.current_thread()}


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / "x"
  path.write_text("old")
  for error in (KeyboardInterrupt, OSError(28, "No space left on device")):
    with pytest.raises((KeyboardInterrupt, OSError)), files.atomic_write(path) as part:
      part.write_text("half")
      raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]
  with files.atomic_write(path) as part:
    part.write_text("new")
  assert path.read_text() == "new"
  assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  received = []
  reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
  reader.start()
  files.write_text(pipe, "a page")
  reader.join(timeout=60)
  assert received == ["a page"]
  assert pipe.is_fifo()
  assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


# The tensor of each tied head, and the tensor to which it is tied.
TIED = {
  "gpt1-a": ("lm_head.weight", "transformer.tokens_embed.weight"),
  "gpt2-a": ("lm_head.weight", "transformer.wte.weight"),
  "bart-a": ("lm_head.weight", "model.shared.weight"),
  "marian-a": ("lm_head.weight", "model.shared.weight"),
  "llama-a": ("lm_head.weight", "model.embed_tokens.weight"),
  "bert-a": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
  "roberta-a": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
  "deberta-a": ("cls.predictions.decoder.weight", "deberta.embeddings.word_embeddings.weight"),
  "distilbert-a": ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
  "modernbert-a": ("decoder.weight", "model.embeddings.tok_embeddings.weight"),
}


def folder_with(tmp_path, case, tensors, **config):
  """Return a copy of a fixture with more tensors and other settings."""
  folder = tmp_path / case
  shutil.copytree(FIXTURES / case, folder, dirs_exist_ok=True)
  arrays = {name: t.numpy() for name, t in safetensors.read(FIXTURES / case).items()}
  (folder / "model.safetensors").unlink()
  safetensors.write_safetensors(folder / "model.safetensors", arrays | tensors)
  content = json.loads((FIXTURES / case / "config.json").read_text()) | config
  (folder / "config.json").write_text(json.dumps(content))
  return folder


@pytest.mark.parametrize("case", TIED)
def test_a_tensor_of_a_tied_head_must_equal_the_embedding(tmp_path, case):
  head, embedding = TIED[case]
  array = safetensors.read(FIXTURES / case)[embedding].numpy()
  load_module(folder_with(tmp_path, case, {head: array}, tie_word_embeddings=True))
  array = array.copy()
  array[-1, -1] += 1
  for other in (array, array[:-1]):
    folder = folder_with(tmp_path, case, {head: other}, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
      load_module(folder)
    assert f"{head} differs from {embedding}, to which config.json ties it" in str(error.value)


@pytest.mark.parametrize("case", ["bert-a", "distilbert-a", "modernbert-a"])
def test_a_tied_head_that_the_model_does_not_have_is_ignored(tmp_path, case):
  head, embedding = TIED[case]
  array = safetensors.read(FIXTURES / case)[embedding].numpy() + 1
  architecture = json.loads((FIXTURES / case / "config.json").read_text())["architectures"][0]
  base_model = [architecture.replace("ForMaskedLM", "Model")]
  load_module(folder_with(tmp_path, case, {head: array}, architectures=base_model))


def test_the_bias_of_a_tied_decoder_must_equal_that_of_the_head(tmp_path):
  bias = safetensors.read(FIXTURES / "bert-a")["cls.predictions.bias"].numpy()
  load_module(folder_with(tmp_path, "bert-a", {"cls.predictions.decoder.bias": bias}))
  folder = folder_with(tmp_path, "bert-a", {"cls.predictions.decoder.bias": bias + 1})
  with pytest.raises(ValueError, match=r"decoder\.bias differs from cls\.predictions\.bias"):
    load_module(folder)
