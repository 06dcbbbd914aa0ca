"""What a child process of bench.py measures: one peer, one figure after another."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import NEW_TOKENS
from benchmarks.embeddings import embeddings
from benchmarks.llama_cpp import LlamaCpp
from benchmarks.machine import peak_memory
from benchmarks.systems import OURS, SYSTEMS

# nanoGPT's setting for training on a CPU; the batch size is 12.
NANOGPT: dict[str, Any] = dict(vocab_size=65, context=64, dim=128, heads=4, num_layers=4)
# The fields of transformers.GPT2Config, without their prefix "n_", and our names.
SIZES = {
  "positions": "context",
  "embd": "dim",
  "head": "heads",
  "layer": "num_layers",
}

Measure = Callable[[str], list[float]]


def batch_and_length(task: str) -> tuple[int, int]:
  """Return the number of texts of a task, and of the tokens of each prompt."""
  numbers = [int(number) for number in re.findall(r"\d+", task)]
  return (numbers[0], 8) if "batch" in task else (1, numbers[0])


def speeds(name: str, folder: Path, threads: int) -> Measure:
  """Load one peer and return a function that runs a task once.

  The function returns a list of one number: tokens per second, or the seconds of loading.
  """
  library, dtype = name.split()
  start = time.perf_counter()
  system = SYSTEMS[library](folder, dtype, threads)
  load_seconds = time.perf_counter() - start

  def measure(task: str) -> list[float]:
    if task == "load, s":
      return [] if isinstance(system, LlamaCpp) else [load_seconds]
    batch, length = batch_and_length(task)
    if isinstance(system, LlamaCpp):
      return [system.speed(task, batch, length)]
    start = time.perf_counter()
    state = system.prefill(batch, length)
    prefill_end = time.perf_counter()
    prefill_seconds = prefill_end - start
    if "prefill" in task:
      return [length / prefill_seconds]
    system.decode(batch, state)
    decode_seconds = time.perf_counter() - prefill_end
    if library == "ctranslate2":
      decode_seconds -= prefill_seconds
    return [NEW_TOKENS * batch / decode_seconds]

  return measure


def memory(name: str, folder: Path, threads: int) -> Measure:
  """Load one peer and return a function that measures the peak memory of this process in MB.

  The function runs a prefill of 512 tokens and decodes.
  """
  if name.startswith("llama.cpp"):
    system = LlamaCpp(folder, name.split()[1], threads)
    return lambda figure: [system.memory()]
  measure_speed = speeds(name, folder, threads)

  def measure(figure: str) -> list[float]:
    measure_speed("decode after 512 tokens")
    return [peak_memory()]

  return measure


def training(name: str, folder: Path, threads: int) -> Measure:
  """Return a function that takes five training steps in nanoGPT's CPU setting.

  The function returns the milliseconds of each of the last four steps.
  """
  inputs, targets = (
    np.random.default_rng(seed).integers(0, 65, (12, 64)).astype(np.int32) for seed in range(2)
  )
  if name.startswith(OURS):
    step = tinyformer_step(inputs, targets, "NUMPY" if name.startswith("minigrad") else None)
  else:
    step = torch_step(inputs, targets, threads)

  def measure(figure: str) -> list[float]:
    milliseconds = []
    for _ in range(5):
      start = time.perf_counter()
      step()
      milliseconds.append((time.perf_counter() - start) * 1000)
    return milliseconds[1:]

  return measure


def tinyformer_step(
  inputs: np.ndarray, targets: np.ndarray, device: str | None
) -> Callable[[], None]:
  """Return a function that takes one training step in tinyformer."""
  from tinyformer.device import select_device

  select_device(device)
  from models.gpt2 import GPT2, GPT2Config
  from tinyformer.kernels import loss_function, training_parts
  from tinyformer.training.trainer import Trainer

  loss = loss_function()
  model = GPT2(GPT2Config(**NANOGPT), training_parts("float32"))
  trainer = Trainer(model, lambda x, y: loss(model(x), y, smoothing=0))

  def step() -> None:
    trainer.train_step(1e-3, inputs, targets)

  return step


def torch_step(inputs: np.ndarray, targets: np.ndarray, threads: int) -> Callable[[], None]:
  """Return a function that takes one training step in Hugging Face transformers."""
  import torch
  import transformers

  torch.set_num_threads(threads)
  config = transformers.GPT2Config(
    **{f"n_{field}": NANOGPT[size] for field, size in SIZES.items()},
    vocab_size=NANOGPT["vocab_size"],
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
    bos_token_id=0,
    eos_token_id=0,
  )
  model = transformers.GPT2LMHeadModel(config).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
  x = torch.tensor(inputs).long()
  y = torch.tensor(targets).long()

  def step() -> None:
    optimizer.zero_grad()
    logits = model(x).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, y.flatten()).backward()
    optimizer.step()

  return step


CHILDREN: dict[str, Callable[[str, Path, int], Measure]] = {
  "speeds": speeds,
  "memory": memory,
  "training": training,
  "embeddings": embeddings,
}


def run_child(kind: str, name: str, folder: str, threads: str) -> int:
  """Measure one peer in this process, once for each figure named by a line of standard input.

  Each answer is a line of JSON on standard output.
  """
  measure = CHILDREN[kind](name, Path(folder), int(threads))
  for figure in sys.stdin:
    print(json.dumps(measure(figure.strip())), flush=True)
  return 0
