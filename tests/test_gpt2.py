import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, close, randomise, shared_data
from tinygrad import GlobalCounters, Tensor, nn

import transformer
from models import gpt2
from tinyformer.checkpoints import safetensors
from tinyformer.kernels.parts import CPU_KERNELS

CASES = ["gpt2-a", "gpt2-b"]


def expected(case):
  return np.load(FIXTURES / case / "expected.npz")


@pytest.mark.parametrize("parts", [{}, CPU_KERNELS], ids=["plain parts", "fast parts"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_hugging_faces(case, parts):
  want = expected(case)
  close(gpt2.load(FIXTURES / case, **parts)(Tensor(want["ids"])).numpy(), want["logits"])


@pytest.mark.parametrize("case", CASES)
def test_each_layers_hidden_states_are_hugging_faces(case):
  want, model = expected(case), gpt2.load(FIXTURES / case)
  T = want["ids"].shape[1]
  x = model.tokens(Tensor(want["ids"])) + model.positions.weight[:T]
  close(x.numpy(), want["hidden.0"])
  for i, block in enumerate(model.blocks):
    x = block(x, mask=transformer.causal_mask(T, T)).realize()
    last = i == len(model.blocks) - 1
    close((model.norm(x) if last else x).numpy(), want[f"hidden.{i + 1}"])


@pytest.mark.parametrize(
  "case, parts", [pytest.param("gpt2-a", {}, marks=pytest.mark.slow), ("gpt2-b", CPU_KERNELS)]
)
def test_a_steps_gradients_are_hugging_faces(case, parts):
  want, model = expected(case), gpt2.load(FIXTURES / case, **parts)
  ids = Tensor(want["ids"])
  loss = transformer.loss(model(ids[:, :-1]), ids[:, 1:], smoothing=0)
  params = nn.state.get_state_dict(model)
  grads = dict(
    zip(params, loss.gradient(*params.values()))
  )  # before the loss is read: tinygrad forgets how what it has computed came about
  Tensor.realize(loss, *grads.values())
  assert loss.item() == pytest.approx(want["loss"], abs=1e-5)
  for theirs, ours in gpt2.KEY_MAP.table(model).items():
    whole = np.concatenate([grads[o].numpy() for o in ours])
    got, reference = (
      whole.T if theirs.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else whole,
      want[f"grad.{theirs}"],
    )
    if reference.std() > 1e-6:
      close(got, reference)
    else:
      assert np.abs(got).max() < 1e-6  # of a bias of keys, which the softmax takes no notice of


def variant(case, folder, change):
  """A copy of a fixture with its tensors changed: {name: array} to {name: (type, bytes, shape)} or arrays."""
  shutil.copytree(FIXTURES / case, folder, dirs_exist_ok=True)
  arrays = {name: entry.numpy().copy() for name, entry in safetensors.read(FIXTURES / case).items()}
  safetensors.write_safetensors(folder / "model.safetensors", change(arrays))
  return folder


def logits(folder, dtype="float32"):
  return gpt2.load(folder, dtype)(Tensor(expected("gpt2-a")["ids"])).numpy()


def as_bfloat16(path, arrays):
  """A file of bfloat16, the upper halves of float32s."""
  header, blob = {}, b""
  for name, a in arrays.items():
    data = (np.ascontiguousarray(a).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header[name] = {
      "dtype": "BF16",
      "shape": list(a.shape),
      "data_offsets": [len(blob), len(blob) + len(data)],
    }
    blob += data
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + blob)


def test_sixteen_bit_files_are_read_exactly(tmp_path):
  for kind in ("float16", "bfloat16"):

    def rounded(a, kind=kind):
      return (
        a.astype(np.float16).astype(np.float32)
        if kind == "float16"
        else (a.view(np.uint32) & 0xFFFF0000).view(np.float32)
      )

    plain = variant(
      "gpt2-a",
      tmp_path / f"{kind}-as-float32",
      lambda arrays: {n: rounded(a) for n, a in arrays.items()},
    )
    folder = variant(
      "gpt2-a", tmp_path / kind, lambda arrays: {n: a.astype(np.float16) for n, a in arrays.items()}
    )
    if kind == "bfloat16":
      as_bfloat16(
        folder / "model.safetensors", {n: e.numpy() for n, e in safetensors.read(plain).items()}
      )
    np.testing.assert_array_equal(logits(folder), logits(plain))


@pytest.mark.parametrize(
  "dtype, tolerance", [("float16", 0.02), ("bfloat16", 0.15), ("int8", 0.15)]
)
def test_narrow_weights_give_nearly_the_same_logits(dtype, tolerance):
  got, want = logits(FIXTURES / "gpt2-a", dtype), expected("gpt2-a")["logits"]
  assert gpt2.load(FIXTURES / "gpt2-a", dtype).tokens.weight.dtype == safetensors.DTYPES[dtype]
  assert np.abs(got.astype(np.float32) - want).max() < tolerance * want.std()


@pytest.mark.slow
def test_a_device_without_c_computes_the_same():
  """tinygrad's emulated device stands for a GPU: no kernel of ours may be used there, and the fast parts are the plain ones."""
  code = """import sys; from tinyformer.device import select_device; select_device()
import models, numpy as np
from tinyformer import checkpoints
from tinygrad import Tensor
from tinyformer.generation.engine import Reader
want = np.load("tests/fixtures/gpt2-a/expected.npz")
for dtype in ("float32", "int8"):
  model = checkpoints.load_module("tests/fixtures/gpt2-a", dtype)
  reader = Reader(model, key="nothing is kept here")
  reader(want["ids"][:1, :3])
  for got in (model(Tensor(want["ids"][:1, :5])).numpy()[:, 4], reader(want["ids"][:1, 3:5])):
    assert abs(got - want["logits"][:1, 4]).max() < (1e-5 if dtype == "float32" else 0.15) * want["logits"].std()
  assert reader.steps[1].replay is None"""
  subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"DEV": "PYTHON"}
  )


def test_openais_own_layout_is_read(tmp_path):
  """Without the prefix, with the masks that old checkpoints carry, and with a head that repeats the embeddings."""
  folder = variant(
    "gpt2-a",
    tmp_path / "old",
    lambda arrays: (
      {n.removeprefix("transformer."): a for n, a in arrays.items()}
      | {
        f"h.{i}.attn.{n}": np.ones((1, 1, 32, 32) if n == "bias" else (), np.float32)
        for i in range(2)
        for n in ("bias", "masked_bias")
      }
      | {"lm_head.weight": arrays["transformer.wte.weight"]}
    ),
  )
  np.testing.assert_array_equal(logits(folder), logits(FIXTURES / "gpt2-a"))


def shard(folder):
  arrays = {name: entry.numpy().copy() for name, entry in safetensors.read(folder).items()}
  names = sorted(arrays)
  index = {name: f"model-{1 + (i >= 9):05}-of-00002.safetensors" for i, name in enumerate(names)}
  for file in set(index.values()):
    safetensors.write_safetensors(folder / file, {n: arrays[n] for n in names if index[n] == file})
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": index})
  )
  return folder


def test_shards_are_read(tmp_path):
  folder = shard(variant("gpt2-a", tmp_path / "shards", lambda arrays: arrays))
  np.testing.assert_array_equal(logits(folder), logits(FIXTURES / "gpt2-a"))
  (folder / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(FileNotFoundError):
    gpt2.load(folder)


def test_a_real_folder_loads():
  model = gpt2.load(shared_data("checkpoints/tiny-llm-cicd-gpt2-dc0a59b"))
  assert (model.vocab_size, model.context, model.dim, len(model.blocks)) == (50257, 256, 16, 1)
  assert np.isfinite(model(Tensor([[464, 3290]])).numpy()).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_saved_loads_again(tmp_path, dtype):
  model = randomise(gpt2.GPT2(61, 19, 12, 3, 2, ff_dim=20, activation=Tensor.relu, eps=1e-3))
  gpt2.save(model, tmp_path / "saved", dtype, eos_token_id=60)
  again = gpt2.load(tmp_path / "saved")
  for (name, a), b in zip(nn.state.get_state_dict(model).items(), nn.state.get_parameters(again)):
    np.testing.assert_array_equal(a.numpy().astype(dtype), b.numpy(), err_msg=name)
  np.testing.assert_allclose(
    again(Tensor([[1, 2, 3]])).numpy(),
    model(Tensor([[1, 2, 3]])).numpy(),
    atol=1e-5 if dtype == "float32" else 0.05,
  )
  assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == 60
  model.activation = Tensor.gelu
  with pytest.raises(ValueError, match="no name for .*gelu"):
    gpt2.save(model, tmp_path / "other")


def test_what_is_saved_has_the_layout_of_what_was_loaded(tmp_path):
  gpt2.save(gpt2.load(FIXTURES / "gpt2-a"), tmp_path)
  saved, original = safetensors.read(tmp_path), safetensors.read(FIXTURES / "gpt2-a")
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
def test_the_sizes_have_their_published_parameter_counts(sizes, count):
  before = GlobalCounters.mem_used
  dim, heads, num_layers = sizes
  with safetensors.skip_init():
    model = gpt2.GPT2(dim=dim, heads=heads, num_layers=num_layers)
  assert sum(math.prod(p.shape) for p in nn.state.get_parameters(model)) == count
  assert GlobalCounters.mem_used < before + 1_000_000  # from shapes alone


# what does not fit


def refused(folder, *words):
  with pytest.raises((ValueError, FileNotFoundError)) as e:
    gpt2.load(folder)
  assert all(word in str(e.value) for word in words), e.value
  assert "\n" not in str(e.value)


def test_a_missing_tensor_is_named(tmp_path):
  refused(
    variant(
      "gpt2-a",
      tmp_path / "x",
      lambda a: {n: t for n, t in a.items() if n != "transformer.h.1.ln_2.bias"},
    ),
    "lacks transformer.h.1.ln_2.bias",
  )


def test_an_unknown_tensor_is_named(tmp_path):
  refused(
    variant(
      "gpt2-a",
      tmp_path / "x",
      lambda a: a | {"transformer.h.2.ln_1.weight": np.ones(24, np.float32)},
    ),
    "has transformer.h.2.ln_1.weight",
  )


def test_a_tensor_of_another_shape_is_named(tmp_path):
  refused(
    variant(
      "gpt2-a",
      tmp_path / "x",
      lambda a: a | {"transformer.h.0.mlp.c_fc.weight": np.ones((60, 24), np.float32)},
    ),
    "transformer.h.0.mlp.c_fc.weight",
    "(60, 24)",
    "(24, 60)",
  )


@pytest.mark.parametrize(
  "change, words",
  [
    ({"n_head": 5}, ("dim 24", "heads 5")),
    ({"n_embd": None}, ("n_embd", "None")),
    ({"n_layer": -1}, ("n_layer", "-1")),
    ({"n_layer": "two"}, ("n_layer",)),
    ({"activation_function": "mish2"}, ("activation_function", "mish2")),
    ({"scale_attn_weights": False}, ("scale_attn_weights",)),
    ({"tie_word_embeddings": False}, ("tie_word_embeddings",)),
    ({"n_layer": 3}, ("lacks",)),
    ({"vocab_size": 98}, ("wte", "98")),
  ],
)
def test_a_bad_config_is_refused(tmp_path, change, words):
  folder = variant("gpt2-a", tmp_path / "x", lambda a: a)
  (folder / "config.json").write_text(
    json.dumps(json.loads((folder / "config.json").read_text()) | change)
  )
  refused(folder, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
  folder = variant("gpt2-a", tmp_path / "x", lambda a: a)
  (folder / "config.json").write_bytes(text.encode("latin1"))
  refused(folder, "config.json")


def test_a_text_longer_than_the_context_is_refused():
  model = gpt2.GPT2(11, 4, 12, 3, 1)
  with pytest.raises(ValueError, match="5 tokens are more than the context of 4"):
    model(Tensor([[1, 2, 3, 4, 5]]))
