"""The measured systems: tinyformer and its peers.

A system has `prefill(batch, length)`, which returns a state, and `decode(batch, state)`. A system
whose programs measure themselves has `speed(task, batch, length)` and `memory()` instead.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import NEW_TOKENS, llama_cpp
from benchmarks.llama_cpp import LlamaCpp
from benchmarks.machine import CORES
from benchmarks.weights import random_ids

THREADS = list(dict.fromkeys([1, CORES]))
TINYFORMER = ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES])
TORCH = ("transformers", ["torch", "transformers"], THREADS)
CTRANSLATE2 = ("ctranslate2", ["ctranslate2"], THREADS)
# llama.cpp is no Python package; `installed` asks for its programs.
LLAMA_CPP: tuple[str, list[str], list[int]] = ("", [], THREADS)
# For each peer: the module that it needs, the packages to count, the numbers of threads to try.
PEERS: dict[str, tuple[str, list[str], list[int]]] = {
  "tinyformer float32": TINYFORMER,
  "tinyformer bfloat16": TINYFORMER,
  "tinyformer int8": TINYFORMER,
  "tinyformer int4": TINYFORMER,
  "minigrad float32": ("numpy", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "torch float32": TORCH,
  "torch bfloat16": TORCH,
  "torch.compile float32": ("transformers", ["torch", "transformers"], [CORES]),
  "torch.compile bfloat16": ("transformers", ["torch", "transformers"], [CORES]),
  "ctranslate2 float32": CTRANSLATE2,
  "ctranslate2 int8": CTRANSLATE2,
  "sentence-transformers float32": (
    "sentence_transformers",
    ["sentence-transformers"],
    THREADS,
  ),
  "llama.cpp float32": LLAMA_CPP,
  "llama.cpp float16": LLAMA_CPP,
  "llama.cpp bfloat16": LLAMA_CPP,
  "llama.cpp int8": LLAMA_CPP,
  "llama.cpp int4": LLAMA_CPP,
}
# The columns of this project: on tinygrad, and on minigrad (docs/minigrad.md).
OURS = ("tinyformer", "minigrad")


def missing(name: str, llama: Path) -> str | None:
  """Return why a peer cannot be measured and what to do, or None if it can be."""
  library, dtype = name.split()
  if library == "llama.cpp":
    if llama_cpp.is_built(llama):
      return None
    return f"it is not built in {llama}; run python benchmarks/build_llama_cpp.py"
  module = PEERS[name][0]
  if importlib.util.find_spec(module) is None:
    return f"{module} is not installed; run pip install -e '.[bench]' to measure this peer"
  if library == "tinyformer":
    from tinyformer.checkpoints.safetensors import DTYPES

    if dtype not in DTYPES:
      return "this version has no such dtype"
  return None


class Tinyformer:
  """This project's engine, which selects the most likely token only."""

  device: str | None = None

  def __init__(self, folder: Path, dtype: str, threads: int):
    from tinyformer.device import select_device

    select_device(self.device)
    from tinyformer import checkpoints
    from tinyformer.generation.engine import Engine

    model = checkpoints.load_module(folder, dtype, **self.settings(folder))
    self.engine = functools.cache(lambda batch: Engine(model, batch, top_k=1))

  def settings(self, folder: Path) -> dict[str, Any]:
    """Return the settings of the model: a context that its KV cache has room for."""
    config = json.loads((folder / "config.json").read_text())
    return {"context": 2048} if config.get("max_position_embeddings", 0) > 2048 else {}

  def prefill(self, batch: int, length: int) -> np.ndarray:
    self.engine(batch).position = 0
    return self.engine(batch)(random_ids(batch, length))

  def decode(self, batch: int, logits: np.ndarray) -> None:
    for _ in range(NEW_TOKENS):
      logits = self.engine(batch)(logits.argmax(-1)[:, None])


class Minigrad(Tinyformer):
  """The same engine on minigrad, whose matrix products numpy's BLAS computes."""

  device = "NUMPY"


class Torch:
  """Hugging Face transformers on PyTorch, with a KV cache."""

  def __init__(self, folder: Path, dtype: str, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    self.torch = torch
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    self.model = model.eval()

  def prefill(self, batch: int, length: int):
    ids = self.torch.tensor(random_ids(batch, length))
    return self.model(ids, use_cache=True, logits_to_keep=1)

  def decode(self, batch: int, output) -> None:
    for _ in range(NEW_TOKENS):
      ids = output.logits[:, -1:].argmax(-1)
      output = self.model(ids, past_key_values=output.past_key_values, use_cache=True)


class TorchCompile(Torch):
  """The same with torch.compile, whose kernels a C++ compiler compiles.

  A static KV cache of a fixed length lets all steps use one compiled graph.
  """

  LENGTH = 1024

  def __init__(self, folder: Path, dtype: str, threads: int):
    # The compiled kernels of all processes are found here.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torchinductor"))
    super().__init__(folder, dtype, threads)
    self.compiled = self.torch.compile(self.model.forward, dynamic=False)
    self.caches: dict[int, Any] = {}

  def cache(self, batch: int):
    """Return the emptied KV cache for a batch."""
    import transformers

    if batch not in self.caches:
      self.caches[batch] = transformers.StaticCache(self.model.config, max_cache_len=self.LENGTH)
    self.caches[batch].reset()
    return self.caches[batch]

  def step(self, ids, start: int, cache):
    """Return the logits (batch, 1, V) after new ids (batch, T) at position `start`."""
    positions = self.torch.arange(start, start + ids.shape[1])[None]
    return self.compiled(
      ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits

  def prefill(self, batch: int, length: int):
    cache = self.cache(batch)
    logits = self.step(self.torch.tensor(random_ids(batch, length)), 0, cache)
    return logits, length, cache

  def decode(self, batch: int, state) -> None:
    logits, start, cache = state
    for position in range(start, start + NEW_TOKENS):
      logits = self.step(logits[:, -1:].argmax(-1), position, cache)


class Ctranslate2:
  """CTranslate2, whose only entry point runs prefill and decoding together."""

  def __init__(self, folder: Path, dtype: str, threads: int):
    import ctranslate2

    converted = folder / f"ctranslate2-{dtype}"
    if not converted.exists():
      # A separate process keeps the conversion out of this process's peak memory.
      code = (
        "import ctranslate2; "
        f"ctranslate2.converters.TransformersConverter(r'{folder}')"
        f".convert(r'{converted}', quantization='{dtype}')"
      )
      subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    self.model = ctranslate2.Generator(str(converted), intra_threads=threads, compute_type=dtype)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    self.tokens = sorted(vocabulary, key=vocabulary.__getitem__)

  def generate(self, batch: int, length: int, new_tokens: int) -> None:
    prompts = [[self.tokens[i] for i in row] for row in random_ids(batch, length)]
    self.model.generate_batch(
      prompts,
      max_length=new_tokens,
      min_length=new_tokens,
      sampling_topk=1,
      include_prompt_in_result=False,
      end_token=[],
    )

  def prefill(self, batch: int, length: int) -> int:
    self.generate(batch, length, 1)
    return length

  def decode(self, batch: int, length: int) -> None:
    # This repeats the prefill; `speeds` subtracts its time.
    self.generate(batch, length, NEW_TOKENS + 1)


SYSTEMS: dict[str, Any] = {
  "tinyformer": Tinyformer,
  "minigrad": Minigrad,
  "torch": Torch,
  "torch.compile": TorchCompile,
  "ctranslate2": Ctranslate2,
  "llama.cpp": LlamaCpp,
}
