"""The settings of a training step, and what the training loop needs to know about a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TrainConfig:
  """Settings of a training step.

  weight_decay: of matrices; norms and biases have none.
  betas: AdamW's decay rates of the running means of the gradient and of its square.
  clip: the maximum norm of the gradient; infinity turns clipping off.
  grad_accum_steps: the number of micro-batches that each batch is split into. It must divide the
  batch size, and the loss must be a mean over the batch. A step needs the memory of one
  micro-batch, plus the accumulated gradient.
  devices: devices for data parallelism. Each holds all parameters and an equal share of each batch.
  """

  weight_decay: float = 0.1
  betas: tuple[float, float] = (0.9, 0.95)
  clip: float = math.inf
  grad_accum_steps: int = 1
  devices: tuple[str, ...] = ()


class Run(Protocol):
  """What `train` trains on, how far it is, and what it does besides training.

  steps: the number of steps.  eval_interval: the number of steps between two evaluations.
  step: the number of finished steps.  recent_losses: the losses since the last evaluation.
  """

  steps: int
  eval_interval: int
  step: int
  recent_losses: list[float]

  def learning_rate(self, step: int) -> float:
    """Return the learning rate of a step, the first of which is 0."""

  def batch(self, step: int) -> Sequence[np.ndarray]:
    """Return the arrays of a step's batch. They must depend on the step alone."""

  def report(self, loss: float) -> None:
    """Show the progress after a step. An exception ends the training without saving."""

  def evaluate(self) -> None:
    """Evaluate the model, and clear `recent_losses`."""

  def save_is_due(self) -> bool:
    """Return whether to save after this step."""

  def save(self) -> None:
    """Save a checkpoint, from which the run can be resumed."""
