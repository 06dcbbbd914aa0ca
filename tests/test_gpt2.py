"""GPT-2: logits, hidden states and gradients of transformers; reading and writing checkpoints."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, all_parts, close, randomise, shared_data
from tinygrad import GlobalCounters, Tensor, dtypes, nn

import transformer
from layers.parts import PLAIN
from models import gpt2
from models.gpt2 import GPT2, GPT2Config
from tinyformer import checkpoints
from tinyformer.checkpoints import load_module, safetensors
from tinyformer.kernels.parts import CPU_KERNELS, FUSED

CASES = ["gpt2-a", "gpt2-b"]
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def load_expected(case):
  """Return what transformers computed for a fixture."""
  return np.load(FIXTURES / case / "expected.npz")


@all_parts()
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_hugging_face(case, parts):
  expected = load_expected(case)
  model = load_module(FIXTURES / case, parts=parts)
  close(model(Tensor(expected["ids"])).numpy(), expected["logits"])


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_of_each_layer_equal_hugging_face(case):
  expected = load_expected(case)
  model = load_module(FIXTURES / case)
  T = expected["ids"].shape[1]
  x = model.tokens(Tensor(expected["ids"])) + model.positions.weight[:T]
  close(x.numpy(), expected["hidden.0"])
  for i, block in enumerate(model.blocks):
    x = block(x, mask=transformer.causal_mask(T, T)).realize()
    is_last = i == len(model.blocks) - 1
    close((model.norm(x) if is_last else x).numpy(), expected[f"hidden.{i + 1}"])


@pytest.mark.parametrize(
  "case, parts", [pytest.param("gpt2-a", PLAIN, marks=pytest.mark.slow), ("gpt2-b", CPU_KERNELS)]
)
def test_loss_and_gradients_equal_hugging_face(case, parts):
  expected = load_expected(case)
  model = load_module(FIXTURES / case, parts=parts)
  ids = Tensor(expected["ids"])
  loss = transformer.loss(model(ids[:, :-1]), ids[:, 1:], smoothing=0)
  params = nn.state.get_state_dict(model)
  # The gradients must exist before the loss is realized, which discards its graph.
  grads = dict(zip(params, loss.gradient(*params.values()), strict=True))
  Tensor.realize(loss, *grads.values())
  assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
  for tensor, parameters in gpt2.KEY_MAP.table(model).items():
    actual = np.concatenate([grads[p].numpy() for p in parameters])
    if tensor.endswith(TRANSPOSED):
      actual = actual.T
    reference = expected[f"grad.{tensor}"]
    if reference.std() > 1e-6:
      close(actual, reference)
    else:
      # The bias of the keys shifts all scores of a query equally, so the softmax cancels it.
      assert np.abs(actual).max() < 1e-6


def modified_checkpoint(case, folder, change):
  """Copy a fixture to `folder` with its tensors changed, and return the folder.

  change: {name: array} -> {name: array}.
  """
  shutil.copytree(FIXTURES / case, folder, dirs_exist_ok=True)
  arrays = {name: info.numpy().copy() for name, info in safetensors.read(FIXTURES / case).items()}
  safetensors.write_safetensors(folder / "model.safetensors", change(arrays))
  return folder


def logits(folder, dtype="float32"):
  return load_module(folder, dtype)(Tensor(load_expected("gpt2-a")["ids"])).numpy()


def write_bfloat16(path, arrays):
  """Write a safetensors file of bfloat16 numbers, the upper halves of float32 numbers."""
  header = {}
  blob = b""
  for name, array in arrays.items():
    data = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header[name] = {
      "dtype": "BF16",
      "shape": list(array.shape),
      "data_offsets": [len(blob), len(blob) + len(data)],
    }
    blob += data
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + blob)


def round_to_float16(array):
  return array.astype(np.float16).astype(np.float32)


def truncate_to_bfloat16(array):
  return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)


def test_16_bit_checkpoints_are_read_exactly(tmp_path):
  for dtype, rounded in (("float16", round_to_float16), ("bfloat16", truncate_to_bfloat16)):

    def round_all(arrays, rounded=rounded):
      return {name: rounded(a) for name, a in arrays.items()}

    def to_float16(arrays):
      return {name: a.astype(np.float16) for name, a in arrays.items()}

    float32 = modified_checkpoint("gpt2-a", tmp_path / f"{dtype}-as-float32", round_all)
    folder = modified_checkpoint("gpt2-a", tmp_path / dtype, to_float16)
    if dtype == "bfloat16":
      arrays = {name: info.numpy() for name, info in safetensors.read(float32).items()}
      write_bfloat16(folder / "model.safetensors", arrays)
    np.testing.assert_array_equal(logits(folder), logits(float32))


@pytest.mark.parametrize(
  "dtype, tolerance", [("float16", 0.02), ("bfloat16", 0.15), ("int8", 0.15)]
)
def test_logits_of_16_and_8_bit_weights_are_close(dtype, tolerance):
  actual = logits(FIXTURES / "gpt2-a", dtype)
  expected = load_expected("gpt2-a")["logits"]
  assert load_module(FIXTURES / "gpt2-a", dtype).tokens.weight.dtype == safetensors.DTYPES[dtype]
  assert np.abs(actual.astype(np.float32) - expected).max() < tolerance * expected.std()


def test_int4_weights_leave_embeddings_and_the_head_in_int8(tmp_path):
  """The model is 32 wide, the size of a group; its second feed-forward matrix has rows of 40."""
  checkpoints.save(randomise(GPT2(GPT2Config(19, 10, 32, 2, 1, ff_dim=40))), tmp_path)
  model = load_module(tmp_path, "int4")
  dtype_of = {name: t.dtype for name, t in nn.state.get_state_dict(model).items() if t.ndim == 2}
  in_int8 = {"tokens.weight", "positions.weight", "blocks.0.ff.down.weight"}
  assert {name for name, dtype in dtype_of.items() if dtype == dtypes.int8} == in_int8
  assert {dtype for name, dtype in dtype_of.items() if name not in in_int8} == {dtypes.uint8}


@pytest.mark.slow
@pytest.mark.parametrize("parts", [FUSED, CPU_KERNELS], ids=["fused", "kernels"])
def test_logits_of_int4_weights_are_close(tmp_path, parts):
  checkpoints.save(GPT2(GPT2Config(19, 10, 64, 2, 2)), tmp_path)
  ids = Tensor([[3, 1, 4, 1, 5]])
  expected = load_module(tmp_path)(ids).numpy()
  actual = load_module(tmp_path, "int4", parts)(ids).numpy()
  assert np.abs(actual - expected).max() < 0.4 * expected.std()


@pytest.mark.slow
def test_a_device_without_c_kernels_computes_the_same_logits():
  """tinygrad's emulated device acts as a GPU: none of our kernels may be used there."""
  code = """
import numpy as np
from tinyformer.device import select_device
select_device()
from tinygrad import Tensor
from tinyformer import checkpoints
from tinyformer.generation.engine import Engine
expected = np.load("tests/fixtures/gpt2-a/expected.npz")
for dtype, share in (("float32", 1e-5), ("int8", 0.15)):
  model = checkpoints.load_module("tests/fixtures/gpt2-a", dtype)
  engine = Engine(model, key="no kernel is cached here")
  engine(expected["ids"][:1, :3])
  reference = expected["logits"][:1, 4]
  uncached = model(Tensor(expected["ids"][:1, :5])).numpy()[:, 4]
  for actual in (uncached, engine(expected["ids"][:1, 3:5])):
    assert abs(actual - reference).max() < share * expected["logits"].std()
  assert {step.graph_runner for step in engine.steps.values()} == {None}"""
  subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"DEV": "PYTHON"}
  )


def test_openais_layout_is_read(tmp_path):
  """The layout has no prefix, the mask buffers of old files, and a copy of the embeddings."""

  def to_openai(arrays):
    renamed = {name.removeprefix("transformer."): a for name, a in arrays.items()}
    for i in range(2):
      renamed[f"h.{i}.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)
      renamed[f"h.{i}.attn.masked_bias"] = np.ones((), np.float32)
    return renamed | {"lm_head.weight": arrays["transformer.wte.weight"]}

  folder = modified_checkpoint("gpt2-a", tmp_path / "openai", to_openai)
  np.testing.assert_array_equal(logits(folder), logits(FIXTURES / "gpt2-a"))


def split_into_shards(folder):
  """Replace model.safetensors with two shards and an index, and return the folder."""
  arrays = {name: info.numpy().copy() for name, info in safetensors.read(folder).items()}
  names = sorted(arrays)
  index = {name: f"model-{1 + (i >= 9):05}-of-00002.safetensors" for i, name in enumerate(names)}
  for file in set(index.values()):
    safetensors.write_safetensors(folder / file, {n: arrays[n] for n in names if index[n] == file})
  (folder / "model.safetensors").unlink()
  index_file = folder / "model.safetensors.index.json"
  index_file.write_text(json.dumps({"metadata": {}, "weight_map": index}))
  return folder


def test_shards_are_read(tmp_path):
  folder = split_into_shards(modified_checkpoint("gpt2-a", tmp_path / "shards", lambda a: a))
  np.testing.assert_array_equal(logits(folder), logits(FIXTURES / "gpt2-a"))
  (folder / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(FileNotFoundError):
    load_module(folder)


def test_a_published_checkpoint_loads():
  model = load_module(shared_data("checkpoints/tiny-llm-cicd-gpt2-dc0a59b"))
  sizes = (model.vocab_size, model.context, model.config.dim, len(model.blocks))
  assert sizes == (50257, 256, 16, 1)
  assert np.isfinite(model(Tensor([[464, 3290]])).numpy()).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_saved_model_loads_with_equal_weights(tmp_path, dtype):
  config = GPT2Config(61, 19, 12, 3, 2, ff_dim=20, activation="relu", eps=1e-3)
  model = randomise(GPT2(config))
  checkpoints.save(model, tmp_path / "saved", dtype, eos_token_id=60)
  loaded = load_module(tmp_path / "saved")
  params = nn.state.get_state_dict(model).items()
  for (name, a), b in zip(params, nn.state.get_parameters(loaded), strict=True):
    np.testing.assert_array_equal(a.numpy().astype(dtype), b.numpy(), err_msg=name)
  np.testing.assert_allclose(
    loaded(Tensor([[1, 2, 3]])).numpy(),
    model(Tensor([[1, 2, 3]])).numpy(),
    atol=1e-5 if dtype == "float32" else 0.05,
  )
  assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == 60


def test_a_model_whose_activation_has_no_name_is_not_saved(tmp_path):
  parts = replace(PLAIN, activations={"swiglu": Tensor.silu})
  model = GPT2(GPT2Config(61, 19, 12, 3, 2, activation="swiglu"), parts)
  with pytest.raises(ValueError, match=r"swiglu.* has no name in a config\.json"):
    checkpoints.save(model, tmp_path / "other")


def test_a_saved_checkpoint_has_the_layout_of_the_loaded_one(tmp_path):
  checkpoints.save(load_module(FIXTURES / "gpt2-a"), tmp_path)
  saved = safetensors.read(tmp_path)
  original = safetensors.read(FIXTURES / "gpt2-a")
  assert saved.keys() == original.keys()
  for name in saved:
    np.testing.assert_array_equal(saved[name].numpy(), original[name].numpy())


@pytest.mark.parametrize(
  "sizes, count",
  [
    ((768, 12, 6), 81_912_576),
    ((768, 12, 12), 124_439_808),
    ((1024, 16, 24), 354_823_168),
    ((1280, 20, 36), 774_030_080),
    ((1600, 25, 48), 1_557_611_200),
  ],
)
def test_published_sizes_have_their_parameter_counts(sizes, count):
  before = GlobalCounters.mem_used
  dim, heads, num_layers = sizes
  config = GPT2Config(dim=dim, heads=heads, num_layers=num_layers)
  model = GPT2(config, checkpoints.without_initial_values(PLAIN))
  assert sum(math.prod(p.shape) for p in nn.state.get_parameters(model)) == count
  # Counting needs the shapes only, so no memory is allocated.
  assert GlobalCounters.mem_used < before + 1_000_000


# checkpoints that do not match the model


def assert_load_fails(folder, *words):
  """Assert that loading raises an error of one line that contains all words."""
  with pytest.raises((ValueError, FileNotFoundError)) as e:
    load_module(folder)
  assert all(word in str(e.value) for word in words), e.value
  assert "\n" not in str(e.value)


def test_the_error_for_a_missing_tensor_names_it(tmp_path):
  name = "transformer.h.1.ln_2.bias"
  folder = modified_checkpoint(
    "gpt2-a", tmp_path / "x", lambda arrays: {n: a for n, a in arrays.items() if n != name}
  )
  assert_load_fails(folder, "lacks transformer.h.1.ln_2.bias")


def test_the_error_for_an_unknown_tensor_names_it(tmp_path):
  added = {"transformer.h.2.ln_1.weight": np.ones(24, np.float32)}
  folder = modified_checkpoint("gpt2-a", tmp_path / "x", lambda arrays: arrays | added)
  assert_load_fails(folder, "has transformer.h.2.ln_1.weight")


def test_the_error_for_a_wrong_shape_names_the_tensor_and_both_shapes(tmp_path):
  changed = {"transformer.h.0.mlp.c_fc.weight": np.ones((60, 24), np.float32)}
  folder = modified_checkpoint("gpt2-a", tmp_path / "x", lambda arrays: arrays | changed)
  assert_load_fails(folder, "transformer.h.0.mlp.c_fc.weight", "(60, 24)", "(24, 60)")


@pytest.mark.parametrize(
  "change, words",
  [
    ({"n_head": 5}, ("n_head must divide 24", "not 5")),
    ({"n_embd": None}, ("n_embd", "null")),
    ({"n_layer": -1}, ("n_layer", "-1")),
    ({"n_layer": "two"}, ("n_layer",)),
    ({"activation_function": "mish2"}, ("activation_function", "mish2")),
    ({"scale_attn_weights": False}, ("scale_attn_weights",)),
    ({"tie_word_embeddings": False}, ("tie_word_embeddings",)),
    ({"n_layer": 3}, ("lacks",)),
    ({"vocab_size": 98}, ("wte", "98")),
  ],
)
def test_an_invalid_config_raises_an_error_that_names_the_key(tmp_path, change, words):
  folder = modified_checkpoint("gpt2-a", tmp_path / "x", lambda arrays: arrays)
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | change))
  assert_load_fails(folder, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_config_that_is_not_a_json_object_raises_an_error(tmp_path, text):
  folder = modified_checkpoint("gpt2-a", tmp_path / "x", lambda arrays: arrays)
  (folder / "config.json").write_bytes(text.encode("latin1"))
  assert_load_fails(folder, "config.json")


def test_a_sequence_longer_than_the_context_raises_an_error():
  model = GPT2(GPT2Config(11, 4, 12, 3, 1))
  with pytest.raises(ValueError, match="5 tokens are more than the context of 4"):
    model(Tensor([[1, 2, 3, 4, 5]]))
