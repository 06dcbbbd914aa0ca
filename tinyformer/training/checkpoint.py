"""Checkpoints of training: the parameters, the optimizer, the random state, and how far it is.

A checkpoint is a safetensors file. The tensors are those of `Trainer.state`. One entry of the
file's metadata is JSON: the random state, and what the caller adds, such as the step.
"""

import json
from pathlib import Path
from typing import Any

from tinygrad import Tensor

from tinyformer.checkpoints import safetensors
from tinyformer.training.random_state import get_rng_state, set_rng_state
from tinyformer.training.trainer import Trainer


def save_checkpoint(file: Path, trainer: Trainer, key: str, progress: dict[str, Any]) -> None:
  """Write a checkpoint atomically. `progress` is stored as JSON under a key of the metadata."""
  arrays = {name: t.numpy() for name, t in trainer.state.items()}
  values = progress | {"rng_state": get_rng_state()}
  safetensors.write_safetensors(file, arrays, {key: json.dumps(values)})


def read_progress(file: Path, key: str) -> dict[str, Any]:
  """Return what `save_checkpoint` stored under a key, and "rng_state"."""
  return json.loads(safetensors.read_metadata(file)[key])


def restore_checkpoint(file: Path, trainer: Trainer, key: str) -> dict[str, Any]:
  """Set the trainer and the random state to those of a checkpoint, and return its progress.

  The tensors are assigned in place, because compiled steps read them.
  """
  tensors = safetensors.read_safetensors(file)
  for name, t in trainer.state.items():
    t.assign(trainer.replicate(Tensor(tensors[name].numpy()))).realize()
  progress = read_progress(file, key)
  set_rng_state(progress.pop("rng_state"))
  return progress
