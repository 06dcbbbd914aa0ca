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
  """Return what `save_checkpoint` stored under a key, and "rng_state".

  Raises ValueError if the file is damaged, or if `save_checkpoint` did not write it.
  """
  safetensors.read_safetensors(file)  # checks the header
  metadata = safetensors.read_metadata(file)
  try:
    progress = json.loads(metadata[key])
  except (KeyError, TypeError, ValueError, RecursionError) as e:
    raise ValueError(
      f"{file} is not a checkpoint of training: its metadata has no valid entry {key!r}; "
      "start a new run in another folder"
    ) from e
  if not isinstance(progress, dict):
    raise ValueError(f"{file}: the entry {key!r} of its metadata must be an object")
  return progress


def restore_checkpoint(file: Path, trainer: Trainer, key: str) -> dict[str, Any]:
  """Set the trainer and the random state to those of a checkpoint, and return its progress.

  The tensors are assigned in place, because compiled steps read them. Raises ValueError if the
  checkpoint is damaged, or if it is of another model.
  """
  progress = read_progress(file, key)
  tensors = safetensors.read_safetensors(file)
  for name, t in trainer.state.items():
    if name not in tensors or tensors[name].shape != t.shape:
      found = f"the shape {tensors[name].shape}" if name in tensors else "no value"
      raise ValueError(
        f"{file} has {found} for {name}, which has the shape {t.shape} in this model: "
        "start a new run in another folder"
      )
  for name, t in trainer.state.items():
    t.assign(trainer.replicate(Tensor(tensors[name].numpy()))).realize()
  try:
    set_rng_state(progress.pop("rng_state"))
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise ValueError(f"cannot restore the random state of {file}: {e}") from e
  return progress
