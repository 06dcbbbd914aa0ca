"""The training loop, and the step that it repeats.

`train` is the loop: learning rate, batch, step, evaluation, saving. `Trainer.full_step` is the
step: loss, backward, gradient clipping, AdamW. `accumulate` and `update` divide it if a batch is
split into micro-batches.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from tinygrad import Context, Device, Tensor, nn
from tinygrad.helpers import dedup

from tinyformer.kernels.compiled_step import CompiledStep, key_of
from tinyformer.training import random_state
from tinyformer.training.optimizer import AdamW, clip_grad_norm
from tinyformer.training.run import Run, TrainConfig


def train(trainer: "Trainer", run: Run, interrupted: Callable[[], int] = lambda: 0) -> None:
  """Train until the last step, or save and return early if `interrupted` returns a signal.

  `interrupted` is called between steps only, because half a step could not be resumed.
  """
  while run.step < run.steps and not interrupted():
    learning_rate = run.learning_rate(run.step)
    batch = run.batch(run.step)
    loss = trainer.train_step(learning_rate, *batch)  # loss, backward, clipping, AdamW
    run.step += 1
    run.recent_losses.append(loss)
    run.report(loss)
    if run.step % run.eval_interval == 0 or run.step == run.steps:
      run.evaluate()
    if run.save_is_due():
      run.save()
  if run.step < run.steps:
    run.save()


def training_mode() -> Context:
  """Return tinygrad's training mode.

  On the CPU, add the gradient of an embedding to its rows directly, without a matrix product.
  """
  return Context(TRAINING=1, USE_ATOMICS=int(Device.DEFAULT == "CPU"))


def realize_by_block(tensors: dict[str, Tensor]) -> None:
  """Realize named tensors, those of one block at a time.

  tinygrad schedules a block in less time than a whole model, and equal blocks only once.
  """
  groups: dict[str, list[Tensor]] = {}
  for name, tensor in tensors.items():
    block = re.split(r"(?<=\d)\.", name)[0]  # "blocks.3" of "blocks.3.attn.q.weight"
    groups.setdefault(block, []).append(tensor)
  for group in groups.values():
    Tensor.realize(*group)


class Trainer:
  """A model, its optimizer, and the step that trains it with AdamW.

  loss: (*tensors of a batch) -> scalar. The first call fixes the shapes of the batches.
  eval_loss: the loss that `evaluate` returns, if it differs from `loss`.

  `state` has the tensors of the model and of the optimizer by name, for checkpoints.
  """

  def __init__(
    self,
    model,
    loss: Callable[..., Tensor],
    config: TrainConfig | None = None,
    eval_loss: Callable[..., Tensor] | None = None,
  ):
    self.loss = loss
    self.eval_loss = eval_loss or loss
    self.config = config = config or TrainConfig()
    self.params = dedup(nn.state.get_parameters(model))
    for p in self.params:
      p.replace(self.replicate(p))
    random_state.create_generators(config.devices)
    realize_by_block(nn.state.get_state_dict(model))
    matrices = [p for p in self.params if p.ndim > 1]
    vectors = [p for p in self.params if p.ndim < 2]
    groups = [(matrices, config.weight_decay), (vectors, 0.0)]
    self.optimizers = [AdamW(params, config.betas, decay) for params, decay in groups if params]
    self.gradient_sums: list[Tensor] = []
    if config.grad_accum_steps > 1:
      self.gradient_sums = [Tensor.zeros_like(p) for p in self.params]
    self.state = {f"model.{name}": t for name, t in nn.state.get_state_dict(model).items()}
    for i, optimizer in enumerate(self.optimizers):
      tensors = nn.state.get_state_dict(optimizer.state())
      self.state |= {f"optimizer.{i}.{name}": t for name, t in tensors.items()}
    Tensor.realize(*random_state.generators(), *self.state.values(), *self.gradient_sums)
    # For speed, the first call of each function is traced, and later calls only run its kernels.
    self.compiled_step = self.compiled(self.full_step)
    self.compiled_accumulation = self.compiled(self.accumulate)
    self.compiled_update = self.compiled(self.update)
    self.compiled_evaluation = self.compiled(self.evaluation_step)

  def compiled(self, function: Callable[..., Tensor]) -> CompiledStep:
    """Return a compiled step, which is cached on disk unless the loss is a user's own function.

    `accumulate` and `update` are not cached, because their gradients are not captured buffers: a
    process that loads one of them would not have set the gradients that the other one reads.
    """
    if self.config.devices:
      return CompiledStep(function)
    buffers = dict(self.state)
    buffers |= {f"generators.{i}": t for i, t in enumerate(random_state.generators())}
    key = key_of(function.__name__, self.config, self.loss, self.eval_loss)
    return CompiledStep(function, captured_buffers=buffers, key=key)

  def train_step(self, learning_rate: float, *batch: np.ndarray) -> float:
    """Update the parameters once, and return the loss of the batch before the update."""
    rate = np.array([learning_rate], np.float32)
    micro_batches = self.config.grad_accum_steps
    if micro_batches == 1:
      return self.compiled_step(rate, *batch).item()
    losses = []
    for i, arrays in enumerate(zip(*[np.split(a, micro_batches) for a in batch], strict=True)):
      keep_sums = np.array([i > 0], np.float32)
      losses.append(self.compiled_accumulation(keep_sums, *arrays).item())
    self.compiled_update(rate)
    return sum(losses) / micro_batches

  def full_step(self, learning_rate: Tensor, *batch: Tensor) -> Tensor:
    """Update the parameters from one batch, and return its loss before the update."""
    with training_mode():
      loss = self.backward(batch)
      # Without this, tinygrad would check each update against the graph of the whole model.
      loss.realize(*(p.grad for p in self.params if p.grad is not None))
      norm = clip_grad_norm(self.params, self.config.clip)
      updates = self.optimizer_step(learning_rate)
      norm.realize(*updates)
      self.clear_gradients()
      return loss

  def accumulate(self, keep_sums: Tensor, *batch: Tensor) -> Tensor:
    """Add the gradients of a micro-batch to the mean gradients, and return its loss.

    keep_sums: 0 for the first micro-batch of a batch, otherwise 1.
    """
    with training_mode():
      loss = self.backward(batch)
      for p, s in zip(self.params, self.gradient_sums, strict=True):
        if p.grad is not None:
          mean = p.grad / self.config.grad_accum_steps
          p.grad = s.assign(s * self.replicate(keep_sums) + mean)
      return loss.realize(*self.gradient_sums)

  def update(self, learning_rate: Tensor) -> Tensor:
    """Update the parameters from the gradients that `accumulate` left, and return their norm."""
    with training_mode():
      norm = clip_grad_norm(self.params, self.config.clip)
      updates = self.optimizer_step(learning_rate)
      return norm.realize(*updates)

  def backward(self, batch: Sequence[Tensor]) -> Tensor:
    """Return the loss of a batch, and set the gradient of each parameter that the loss reads."""
    self.clear_gradients()
    return self.loss(*self.split_across_devices(batch)).backward()

  def clear_gradients(self) -> None:
    """Remove all gradients, so that their memory can be used again within the step."""
    for p in self.params:
      p.grad = None

  def optimizer_step(self, learning_rate: Tensor) -> list[Tensor]:
    """Take a step of AdamW, and return the tensors to realize."""
    rate = self.replicate(learning_rate)
    return [t for optimizer in self.optimizers for t in optimizer.step(rate)]

  def evaluate(self, *batch: np.ndarray) -> float:
    """Return the loss of a batch without updating the parameters."""
    return self.compiled_evaluation(*batch).item()

  def evaluation_step(self, *batch: Tensor) -> Tensor:
    """Return `eval_loss` of a batch, outside training mode."""
    return self.eval_loss(*self.split_across_devices(batch)).realize()

  def replicate(self, t: Tensor) -> Tensor:
    """Return t copied to each device, or t itself if `config.devices` is empty."""
    return t.shard(self.config.devices) if self.config.devices else t

  def split_across_devices(self, batch: Sequence[Tensor]) -> list[Tensor]:
    """Split the first axis of each tensor of a batch across the devices."""
    devices = self.config.devices
    return [t.shard(devices, 0) if devices else t for t in batch]

  def copy_to(self, model) -> None:
    """Copy the trained parameters to a model on one device, with the same names and shapes.

    The model's tensors are assigned in place, because compiled steps of the model read them.
    """
    for name, t in nn.state.get_state_dict(model).items():
      t.assign(Tensor(self.state[f"model.{name}"].numpy())).realize()
