"""llama.cpp generates the same greedy tokens from the same GGUF files.

Needs llama-cpp-python, which is not part of an extra: its installation compiles llama.cpp.
"""

import json

import numpy as np
import pytest
from gguf_files import folder_to_gguf, tokenizer_metadata, write_gguf
from test_gguf import CASES, case_folder
from test_smollm2 import NUM_TOKENS, PROMPTS
from tinygrad import Tensor

import tinyformer
from tinyformer import checkpoints
from tinyformer.checkpoints import hub
from tinyformer.checkpoints.gguf import read_gguf
from tinyformer.tasks.text_generation import SamplingConfig

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow


def open_in_llama_cpp(path, **settings):
  return llama_cpp.Llama(str(path), verbose=False, n_ctx=64, logits_all=True, **settings)


def logits_of(llama, ids: list[int]) -> np.ndarray:
  """Return llama.cpp's logits (T, V)."""
  llama.reset()
  llama.eval(ids)
  return np.array(llama.scores[: len(ids)])


def vocabulary(n: int) -> dict:
  """Return the metadata of a tokenizer with n tokens, which llama.cpp requires."""
  letters = [chr(ord("!") + i) for i in range(90)]
  tokens = [*letters, *(a + b for a in letters for b in letters)][:n]
  merges = [f"{t[0]} {t[1]}" for t in tokens if len(t) == 2] or ["! #"]
  return tokenizer_metadata("gpt2", tokens, [1] * n, pre="gpt-2", merges=merges, eos_token_id=0)


# llama.cpp ignores the sliding window of a Mistral. It has no logits of BERT's kind.
DECODERS = [case for case in CASES if case not in ("mistral-a", "bert-a")]
LENGTH = 15


@pytest.mark.parametrize("case", DECODERS)
def test_logits_and_greedy_tokens_of_random_models_are_equal(case, tmp_path):
  folder = case_folder(case, tmp_path, **CASES[case])
  config = json.loads((folder / "config.json").read_text())
  if case.startswith("gpt2"):
    config["n_inner"] = config.get("n_inner") or 4 * config["n_embd"]
    (folder / "config.json").write_text(json.dumps(config))
  file = folder_to_gguf(folder, tmp_path / "m.gguf", **vocabulary(config["vocab_size"]))
  theirs = open_in_llama_cpp(file)
  ours = checkpoints.load_module(file)
  ids = [5, 17, 3, 42, 8]
  while len(ids) < LENGTH:
    expected = logits_of(theirs, ids)
    # Later positions do not change the logits of earlier ones.
    padded = ids + [0] * (LENGTH - len(ids))
    actual = ours(Tensor([padded])).numpy()[0, : len(ids)]
    assert np.abs(actual - expected).max() < 0.01 * expected.std()
    assert actual[-1].argmax() == expected[-1].argmax()
    ids.append(int(actual[-1].argmax()))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
  """SmolLM2 with its weights in float32: llama.cpp rounds the inputs of products in 4 bits."""
  try:
    path = hub.find("smollm2")
  except hub.Unreachable as e:
    pytest.skip(str(e))
  gguf = read_gguf(path)
  metadata = {
    key: list(map(int, v)) if isinstance(v, np.ndarray) else v for key, v in gguf.metadata.items()
  }
  tensors = {name: tensor.numpy() for name, tensor in gguf.tensors.items()}
  file = write_gguf(tmp_path_factory.mktemp("smollm2") / "f32.gguf", metadata, tensors)
  return open_in_llama_cpp(file), tinyformer.load(path)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_of_smollm2_are_equal(smollm2, prompt):
  theirs, ours = smollm2
  ids = ours.tokenizer.encode(prompt)
  assert ids == theirs.tokenize(prompt.encode(), add_bos=False, special=False)
  theirs.reset()
  expected = []
  for token in theirs.generate(ids, temp=0, repeat_penalty=1.0):
    if len(expected) == NUM_TOKENS or token == theirs.token_eos():
      break
    expected.append(token)
  generator = ours._text_generator(SamplingConfig(NUM_TOKENS, temperature=0), keep_cache=False)
  generator.engine.position = 0
  for _ in generator.generate(ids):
    pass
  assert list(generator.history) == expected
