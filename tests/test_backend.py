"""Selecting minigrad: the same files and commands, in processes that cannot import tinygrad."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, with_head

import tinyformer
from tinyformer import backend

# Importing tinygrad, or a C compiler, fails in the process that runs this code first.
BLOCK_TINYGRAD = """
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tinygrad", "ziglang"):
      raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def run(code: str, *argv: str, **env: str) -> subprocess.CompletedProcess:
  """Run code, or a command if `code` is a file, in a process without tinygrad."""
  if code.endswith(".py"):
    code = f"import runpy\nrunpy.run_path({code!r}, run_name='__main__')"
  removed = ("DEV", "CC", "TINYFORMER_DEVICE")
  environment = {name: value for name, value in os.environ.items() if name not in removed}
  # One BLAS thread, because the tests already run in parallel.
  environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env
  command = [sys.executable, "-c", f"{BLOCK_TINYGRAD}\nsys.argv[1:] = {list(argv)!r}\n{code}"]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


GENERATE = ["-m", "tiny", "-p", "He shook his", "-t", "0", "-n", "8"]


@pytest.fixture(scope="module")
def greedy_text():
  """Return what tinygrad generates."""
  prompt = GENERATE[3]
  return prompt + tinyformer.load("tiny").generate(prompt, max_new_tokens=8, temperature=0) + "\n"


@pytest.mark.parametrize(
  "arguments, env", [(["--device", "NUMPY"], {}), ([], {"TINYFORMER_DEVICE": "numpy"})]
)
def test_gpt_generates_the_same_text_without_tinygrad(greedy_text, arguments, env):
  result = run("gpt.py", *GENERATE, *arguments, **env)
  assert (result.stdout, result.stderr) == (greedy_text, "")


def test_a_longer_prompt_and_several_texts_are_processed_in_one_step():
  prompt = "The old man went out of the house and looked at the sea. " * 3
  argv = ["-m", "tiny", "-p", prompt, "-s", "1", "-n", "3", "-N", "2", "--device", "NUMPY", "-v"]
  result = run("gpt.py", *argv)
  assert result.stdout.count(prompt) == 2
  assert "on NUMPY" in result.stderr


def test_load_selects_minigrad(greedy_text):
  code = """
import tinyformer
model = tinyformer.load("tiny", device="numpy")
print("He shook his" + model.generate("He shook his", max_new_tokens=8, temperature=0))
import tinygrad, minigrad
assert tinygrad is minigrad
assert tinyformer.load("tiny").perplexity("He shook his head.") < 100
"""
  result = run(code)
  assert (result.stdout, result.stderr) == (greedy_text, "")


def test_tinygrad_cannot_be_selected_after_minigrad():
  code = """
import tinyformer
tinyformer.load("tiny", device="numpy")
try:
  tinyformer.load("tiny", device="CPU")
except RuntimeError as e:
  print(e)
"""
  assert "CPU cannot be selected, because NUMPY is already in use" in run(code).stdout


def test_minigrad_cannot_be_selected_after_tinygrad():
  with pytest.raises(backend.BackendError, match="tinygrad is already in use"):
    tinyformer.load("tiny", device="numpy")


@pytest.mark.parametrize("reference", ["transformer", "layers.moe", "models.vit", "models"])
def test_the_reference_code_is_imported_on_minigrad_unchanged(reference):
  code = f"""
from tinyformer.device import select_device
assert select_device("NUMPY") == "NUMPY"
import {reference}, minigrad
assert {reference}.Tensor is minigrad.Tensor
"""
  result = run(code)
  assert (result.returncode, result.stderr) == (0, "")


def test_the_walkthrough_of_the_paper_passes_on_minigrad():
  """transformer.py imports tinygrad before it reads --device, so tinygrad is not blocked here."""
  command = [sys.executable, "transformer.py", "--device", "NUMPY"]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert "on NUMPY" in result.stdout.splitlines()[-1]
  assert result.stdout.count("ok: ") == 12


def test_train_evaluate_and_resume(tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("to be or not to be, that is the question. " * 60)
  out = str(tmp_path / "out")
  sizes = ["--layers=1", "--heads=2", "--dim=16", "--context=16", "--batch=4"]
  settings = ["--tokens=characters", "--steps=6", "--eval-interval=3", "--dropout=0.1"]
  device = ["--device", "NUMPY"]
  result = run("train.py", str(text), "-o", out, *sizes, *settings, *device)
  assert result.returncode == 0, result.stderr
  assert "step 6" in result.stderr
  result = run("evaluate.py", str(text), "-m", out, *device)
  assert result.returncode == 0, result.stderr
  assert "nats per token" in result.stdout
  result = run("train.py", str(text), "-o", out, "--resume", *device)
  assert "already finished" in result.stderr


def test_train_refuses_what_numpy_does_not_support(tmp_path):
  (tmp_path / "a.txt").write_text("a b c")
  argv = [str(tmp_path / "a.txt"), "-o", str(tmp_path / "out"), "--device", "NUMPY"]
  result = run("train.py", *argv, "--precision", "bfloat16")
  assert result.returncode == 2
  assert "NUMPY trains in float32" in result.stderr


def test_attend_shows_attention_and_writes_a_page(tmp_path):
  page = tmp_path / "page.html"
  result = run("attend.py", "-p", "He shook his head", "--html", str(page), "--device", "NUMPY")
  assert result.returncode == 0, result.stderr
  assert "attention" in page.read_text()


def test_weights_in_16_bits_are_widened_when_they_are_loaded(tmp_path):
  code = f"""
from tinyformer.device import select_device
select_device("NUMPY")
import numpy as np
from tinygrad import nn
from tinyformer import checkpoints
folder = "tests/fixtures/gpt2-a"
model = checkpoints.load_module(folder)
checkpoints.save(model, {str(tmp_path)!r}, "float16")
half = checkpoints.load_module({str(tmp_path)!r})
for name, t in nn.state.get_state_dict(half).items():
  expected = nn.state.get_state_dict(model)[name].numpy()
  assert t.dtype == np.float32
  assert np.array_equal(t.numpy(), expected.astype(np.float16).astype(np.float32)), name
"""
  result = run(code)
  assert (result.returncode, result.stderr) == (0, "")


def test_float32_weights_are_mapped_and_training_does_not_change_the_file():
  code = """
from tinyformer.device import select_device
select_device("NUMPY")
import hashlib, pathlib, numpy as np
from tinygrad import Tensor, nn
from tinyformer import checkpoints
file = pathlib.Path("tests/fixtures/gpt2-a/model.safetensors")
digest = hashlib.sha256(file.read_bytes()).hexdigest()
model = checkpoints.load_module(file.parent)
weight = model.blocks[0].attn.q.weight
base = weight.data
while base.base is not None and not isinstance(base, np.memmap):
  base = base.base
assert isinstance(base, np.memmap), type(base)
before = weight.numpy()
model(Tensor([[1, 2, 3]])).mean().backward()
nn.optim.AdamW(nn.state.get_parameters(model), lr=1.0).step()
assert not np.array_equal(weight.numpy(), before)
assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
"""
  result = run(code)
  assert (result.returncode, result.stderr) == (0, "")


def test_int8_weights_are_refused():
  result = run("gpt.py", *GENERATE, "--device", "NUMPY", "--dtype", "int8")
  assert result.returncode == 1
  assert "cannot read weights in int8: use float32" in result.stderr


def test_beam_search_generates_hugging_faces_texts():
  """The cache, the reordering of beams and the logits processors are the same code."""
  code = """
from tinyformer.device import select_device
select_device("NUMPY")
import numpy as np
from tinyformer import checkpoints
from tinyformer.generation import GenerationConfig, generate_seq2seq
for case in ("t5-a", "bart-a", "marian-a"):
  folder = f"tests/fixtures/{case}"
  expected = np.load(f"{folder}/expected.npz")
  model, config = checkpoints.load_module(folder), GenerationConfig.read(folder)
  for ids, keep, text in zip(expected["source"], expected["keep"], expected["beams"][:, 1:]):
    generated = generate_seq2seq(model, ids[keep == 1].tolist(), config)
    assert generated == text[: len(generated)].tolist(), (case, generated, text)
    assert config.eos_token_id in text[len(generated) :][:1] or len(generated) == len(text)
print("equal")
"""
  result = run(code)
  assert result.stdout == "equal\n", result.stderr


def test_ask_fills_a_mask_as_on_tinygrad(tmp_path):
  folder = with_head("bert-a", "ForMaskedLM", tmp_path)
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(56))]
  (folder / "vocab.txt").write_text("\n".join(words) + "\n")
  result = run("ask.py", "-m", str(folder), "w7 [MASK] w9", "-k", "3", "--device", "NUMPY")
  [expected] = tinyformer.load(folder).fill_mask("w7 [MASK] w9", top_k=3)
  lines = [f"{score:6.1%}  {label}" for label, score in expected]
  assert result.stdout.splitlines() == lines, result.stderr


WITHOUT_CLANG = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ziglang" else find(name, *a)
import gpt
from tinyformer import cli
sys.exit(cli.run(lambda: gpt.main(sys.argv[1:])))
"""


def test_gpt_uses_numpy_if_tinygrad_opens_no_device_and_names_the_remedy(tmp_path, greedy_text):
  removed = ("CC", "DEV", "CACHEDB", "TINYFORMER_DEVICE", "NOOPT")
  environment = {name: value for name, value in os.environ.items() if name not in removed}
  environment |= {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", WITHOUT_CLANG, *GENERATE]
  result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  if not result.stderr:
    pytest.skip("this machine has a GPU")
  assert (result.returncode, result.stdout) == (0, greedy_text)
  [note] = result.stderr.splitlines()
  assert note.startswith("Using numpy") and "no clang" in note and "pip install ziglang" in note


def test_is_numpy():
  assert backend.is_numpy("numpy") and backend.is_numpy("NUMPY")
  assert not backend.is_numpy(None) and not backend.is_numpy("CPU")
  assert not backend.is_minigrad()
