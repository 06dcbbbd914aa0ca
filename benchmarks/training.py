"""The time of a training step, of the first step of a process, and the peak memory of training."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import CORES, peak_memory, process_age
from benchmarks.report import Results
from benchmarks.rounds import Schedule, measure_in_rounds
from benchmarks.systems import OURS


@dataclass(frozen=True)
class Setting:
  """The sizes of a GPT-2, as the fields of GPT2Config, and the number of texts in a batch.

  Each text fills the context.
  """

  sizes: dict[str, Any]
  batch: int


# nanoGPT's setting for training on a CPU.
NANOGPT = Setting(dict(vocab_size=65, context=64, dim=128, heads=4, num_layers=4), 12)
GPT2_124M = Setting(dict(vocab_size=50_257, context=512, dim=768, heads=12, num_layers=12), 4)
# The fields of transformers.GPT2Config, without their prefix "n_", and our names.
SIZES = {
  "positions": "context",
  "embd": "dim",
  "head": "heads",
  "layer": "num_layers",
}

# The systems that train the large model.
NAMES = ("tinyformer float32", "torch float32")
FIRST_EMPTY = "first training step of 124M, empty cache, s"
FIRST_WARM = "first training step of 124M, warm cache, s"
STEP = "training step of 124M, s"
MEMORY = "training 124M, peak memory, MB"

Measure = Callable[[str], list[float]]


def make_step(name: str, setting: Setting, threads: int) -> Callable[[], None]:
  """Return a function that takes one training step on random tokens."""
  shape = (setting.batch, setting.sizes["context"])
  inputs, targets = (
    np.random.default_rng(seed).integers(0, setting.sizes["vocab_size"], shape).astype(np.int32)
    for seed in range(2)
  )
  if name.startswith(OURS):
    device = "NUMPY" if name.startswith("minigrad") else None
    return tinyformer_step(setting, inputs, targets, device)
  return torch_step(setting, inputs, targets, threads)


def small_model_steps(name: str, folder: Path, threads: int) -> Measure:
  """Return a function that takes five training steps in nanoGPT's CPU setting.

  The function returns the milliseconds of each of the last four steps.
  """
  step = make_step(name, NANOGPT, threads)

  def measure(figure: str) -> list[float]:
    return [1000 * seconds(step) for _ in range(5)][1:]

  return measure


def steps_of_124m(name: str, folder: Path, threads: int) -> Measure:
  """Return a function that measures one of the figures above, the first step first."""
  os.environ["XDG_CACHE_HOME"] = str(cache_folder(name, folder))
  step: Callable[[], None] | None = None

  def measure(figure: str) -> list[float]:
    nonlocal step
    if step is None:
      step = make_step(name, GPT2_124M, threads)
      step()
      return [process_age()]
    return [peak_memory()] if figure == MEMORY else [seconds(step) for _ in range(2)]

  return measure


def seconds(function: Callable[[], None]) -> float:
  """Return how long a call takes."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def cache_folder(name: str, folder: Path) -> Path:
  """Return the folder of a system's compiled kernels."""
  return folder / f"training cache of {name}"


def first_and_later_steps(names: list[str], folder: Path, repeat: int) -> Results:
  """Measure the training of the large model in `repeat` + 1 processes of each system.

  The first process starts with an empty cache of compiled kernels, which concerns tinyformer only.
  The time to the first step includes the start of the process. Only one process runs at a time.
  """
  results: Results = {name: {} for name in names}
  for name in names:
    shutil.rmtree(cache_folder(name, folder), ignore_errors=True)
  for round_index in range(repeat + 1):
    first = FIRST_WARM if round_index else FIRST_EMPTY
    for name in names:
      figures = [first, STEP, MEMORY]
      schedule = Schedule(1, threads=CORES)
      measured = measure_in_rounds("training-124m", [name], folder, figures, schedule)[name]
      for figure, values in measured.items():
        if figure != FIRST_EMPTY or name.startswith(OURS):
          results[name][figure] = results[name].get(figure, []) + values
  return results


def tinyformer_step(
  setting: Setting, inputs: np.ndarray, targets: np.ndarray, device: str | None
) -> Callable[[], None]:
  """Return a function that takes one training step in tinyformer."""
  from tinyformer.device import select_device

  select_device(device)
  from models.gpt2 import GPT2, GPT2Config
  from tinyformer.kernels import language_model_loss, training_parts
  from tinyformer.training.trainer import Trainer

  model = GPT2(GPT2Config(**setting.sizes), training_parts("float32"))
  trainer = Trainer(model, language_model_loss(model))

  def step() -> None:
    trainer.train_step(1e-3, inputs, targets)

  return step


def torch_step(
  setting: Setting, inputs: np.ndarray, targets: np.ndarray, threads: int
) -> Callable[[], None]:
  """Return a function that takes one training step in Hugging Face transformers."""
  import torch
  import transformers

  torch.set_num_threads(threads)
  config = transformers.GPT2Config(
    **{f"n_{field}": setting.sizes[size] for field, size in SIZES.items()},
    vocab_size=setting.sizes["vocab_size"],
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
