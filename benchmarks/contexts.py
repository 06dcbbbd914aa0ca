"""The time of a decoding step and the peak memory, with 128 to 16,384 tokens in the KV cache.

The cache is filled with random keys and values, so no system has to read a prompt.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import llama_session
from benchmarks.machine import peak_memory
from benchmarks.systems import PEERS, Tinyformer, Torch

# The systems whose KV cache can be filled.
NAMES = [name for name in PEERS if name.split()[0] in ("tinyformer", "torch", "llama.cpp")]
LENGTHS = (128, 2048, 8192, 16384)
# Decoding steps of a measurement; the first of them are not counted.
STEPS = 16
UNCOUNTED = 4
# Keys that are drawn at a time. Drawing all of them would determine the peak memory.
BLOCK = 512

Measure = Callable[[str], list[float]]
TIME = "decoding step after {:,} tokens, ms"
MEMORY = "peak memory after {:,} tokens, MB"
FIGURES = [name.format(length) for length in LENGTHS for name in (TIME, MEMORY)]


class LongTinyformer(Tinyformer):
  """This project's engine, with room for the longest context."""

  def settings(self, folder: Path) -> dict[str, int]:
    return {"context": LENGTHS[-1] + STEPS}

  def fill(self, length: int) -> Callable[[], object]:
    """Fill the KV cache with random keys, and return a function that decodes one token."""
    from tinyformer.kernels.compiled_step import memory_view

    engine = self.engine(1)
    rng = np.random.default_rng(0)
    for buffer in engine.cache.k + engine.cache.v:
      view = memory_view(buffer)
      if view is None:
        raise RuntimeError("the KV cache is not in the memory of this process: use the CPU")
      for start in range(0, length, BLOCK):
        rows = view[:, :, start : min(length, start + BLOCK)]
        rows[...] = rng.standard_normal(rows.shape, dtype=np.float32)
    engine.position = length
    return lambda: engine(np.array([[1]]))


class LongTorch(Torch):
  """Hugging Face transformers, whose default KV cache grows with each token."""

  def fill(self, length: int) -> Callable[[], object]:
    """Fill a KV cache with random keys, and return a function that decodes one token."""
    import transformers

    config = self.model.config
    cache = transformers.DynamicCache(config=config)
    shape = (1, config.num_key_value_heads, length, config.head_dim)
    for layer in range(config.num_hidden_layers):
      keys, values = (self.torch.randn(shape, dtype=self.model.dtype) for _ in range(2))
      cache.update(keys, values, layer)
    ids = self.torch.tensor([[1]])
    return lambda: self.model(ids, past_key_values=cache, use_cache=True)


def contexts(name: str, folder: Path, threads: int) -> Measure:
  """Load one peer and return a function that measures one of FIGURES.

  The memory can be measured in the first round only, in which the contexts grow. Later calls return
  an empty list.
  """
  library, dtype = name.split()
  if library == "llama.cpp":
    return llama_contexts(folder, dtype, threads)
  system = (LongTinyformer if library == "tinyformer" else LongTorch)(folder, dtype, threads)
  longest = 0

  def measure(figure: str) -> list[float]:
    nonlocal longest
    length = length_of(figure)
    if figure == MEMORY.format(length):
      is_first, longest = length > longest, max(length, longest)
      return [peak_memory()] if is_first else []
    step = system.fill(length)
    times = []
    for _ in range(STEPS):
      start = time.perf_counter()
      step()
      times.append((time.perf_counter() - start) * 1000)
    return [statistics.mean(times[UNCOUNTED:])]

  return measure


def llama_contexts(folder: Path, dtype: str, threads: int) -> Measure:
  """Return the same function for llama.cpp, of which a process measures both figures of a length.

  The memory is that of the process whose time was measured last.
  """
  peak = 0.0

  def measure(figure: str) -> list[float]:
    nonlocal peak
    length = length_of(figure)
    if figure == MEMORY.format(length):
      return [peak]
    milliseconds, peak = llama_session.decode(folder, dtype, threads, length)
    return [milliseconds]

  return measure


def length_of(figure: str) -> int:
  """Return the number of tokens that a figure names."""
  return next(n for n in LENGTHS if figure in (TIME.format(n), MEMORY.format(n)))
