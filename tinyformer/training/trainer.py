"""The training step: gradients, clipping and AdamW, compiled once and replayed.

Gradients are clipped by their norm (Pascanu et al. 2013, algorithm 1). AdamW is by Loshchilov &
Hutter (2019, algorithm 2).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from tinygrad import Context, Device, Tensor, dtypes, nn

from tinyformer.kernels.compiled_step import CompiledStep


def training_mode() -> Context:
  """Return tinygrad's training mode.

  On the CPU, the gradient of an embedding is added to its rows instead of computed by a matmul.
  """
  return Context(TRAINING=1, USE_ATOMICS=int(Device.DEFAULT == "CPU"))


class Trainer:
  """Train a model with AdamW. Weight decay applies to matrices only, not to norms and biases.

  loss: (*tensors of a batch) -> scalar. The first call fixes the shapes of the batches.
  clip: the maximum norm of the gradient; infinity turns clipping off.
  eval_loss: the loss that `evaluate` returns, if it differs from `loss`.
  grad_accum_steps: the number of micro-batches that each batch is split into. It must divide the
  batch size, and the loss must be a mean over the batch. A step needs the memory of one
  micro-batch, plus the accumulated gradient.
  devices: devices for data parallelism. Each holds all parameters and an equal share of each batch.

  To resume training in another process, save `state`, a dict of tensors, and `rng_state`, and pass
  both to `restore`.
  """

  def __init__(  # noqa: PLR0913
    self,
    model,
    loss: Callable[..., Tensor],
    weight_decay: float = 0.1,
    clip: float = math.inf,
    b2: float = 0.95,
    eval_loss: Callable[..., Tensor] | None = None,
    grad_accum_steps: int = 1,
    devices: Sequence[str] = (),
  ):
    self.loss = loss
    self.eval_loss = eval_loss or loss
    self.clip = clip
    self.grad_accum_steps = grad_accum_steps
    self.devices = tuple(devices)
    self.params = nn.state.get_parameters(model)
    for p in self.params:
      p.replace(self.replicate(p))
    # A counter that is created during tracing would be created again in each step.
    for device in self.devices or (Device.DEFAULT,):
      Tensor._next_counter(Device.canonicalize(device), 0)
    counters = Tensor._device_rng_counters.values()
    Tensor.realize(*self.params, *Tensor._device_seeds.values(), *counters)
    matrices = [p for p in self.params if p.ndim > 1]
    vectors = [p for p in self.params if p.ndim < 2]
    self.optimizers = [
      nn.optim.AdamW(matrices, b2=b2, weight_decay=weight_decay),
      nn.optim.AdamW(vectors, b2=b2, weight_decay=0),
    ]
    self.optimizer = nn.optim.OptimizerGroup(*self.optimizers)
    self.gradient_sums: list[Tensor] = []
    if grad_accum_steps > 1:
      zeros = [self.replicate(Tensor.zeros(*p.shape).contiguous()) for p in self.params]
      self.gradient_sums = [t.realize() for t in zeros]
    self.compiled_step = CompiledStep(self.full_step)
    self.compiled_accumulation = CompiledStep(self.accumulate)
    self.compiled_update = CompiledStep(self.update_from_sums)
    self.compiled_evaluation = CompiledStep(self.evaluation_step)
    self.state = self.named_state(model)
    Tensor.realize(*self.state.values())

  def named_state(self, model) -> dict[str, Tensor]:
    """Return the tensors of the model and of the optimizers, by name."""
    state = {f"model.{name}": t for name, t in nn.state.get_state_dict(model).items()}
    for i, o in enumerate(self.optimizers):
      tensors = nn.state.get_state_dict([o.m, o.v, o.b1_t, o.b2_t])
      state |= {f"optimizer.{i}.{name}": t for name, t in tensors.items()}
    return state

  def replicate(self, t: Tensor) -> Tensor:
    """Return a tensor with a copy on each device, or the tensor itself on the default device."""
    return t.shard(self.devices) if self.devices else t

  def split_across_devices(self, batch: Sequence[Tensor]) -> list[Tensor]:
    """Split the first axis of each tensor of a batch across the devices."""
    return [t.shard(self.devices, 0) if self.devices else t for t in batch]

  def gradients(self, batch: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a batch, and its gradients in the order of the parameters."""
    self.optimizer.zero_grad()
    value = self.loss(*self.split_across_devices(batch)).backward()
    return value, [p.grad for p in self.params if p.grad is not None]

  def schedule_update(self, learning_rate: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Return the tensors to realize for an AdamW update: the gradient's norm comes first."""
    for o in self.optimizers:
      o.lr = self.replicate(learning_rate)
    norm = Tensor.stack(*[g.square().sum() for g in gradients]).sum().sqrt()
    for p, g in zip(self.params, gradients, strict=False):
      p.grad = g * (self.clip / norm).minimum(1).contiguous() if math.isfinite(self.clip) else g
    return [norm, *self.optimizer.schedule_step()]

  def full_step(self, learning_rate: Tensor, *batch: Tensor) -> Tensor:
    """Update the parameters from one batch, and return its loss before the update."""
    with training_mode():
      value, gradients = self.gradients(batch)
      return value.realize(*self.schedule_update(learning_rate, gradients))

  def accumulate(self, previous: Tensor, *batch: Tensor) -> Tensor:
    """Add a micro-batch to the mean gradient, and return its loss.

    previous: weight of the sums so far, 0 for the first micro-batch of a batch, otherwise 1.
    """
    with training_mode():
      value, gradients = self.gradients(batch)
      for s, g in zip(self.gradient_sums, gradients, strict=False):
        s.assign(s * self.replicate(previous) + g / self.grad_accum_steps)
      return value.realize(*self.gradient_sums)

  def update_from_sums(self, learning_rate: Tensor) -> Tensor:
    """Update the parameters from the accumulated gradient, and return the gradient's norm."""
    with training_mode():
      norm, *updates = self.schedule_update(learning_rate, self.gradient_sums)
      return norm.realize(*updates)

  def evaluation_step(self, *batch: Tensor) -> Tensor:
    """Return `eval_loss` of a batch, outside training mode."""
    return self.eval_loss(*self.split_across_devices(batch)).realize()

  def restore(self, state: dict[str, np.ndarray], rng_state: dict[str, list[int]]) -> None:
    """Set the tensors and random number generators to a saved `state` and `rng_state`."""
    for name, t in self.state.items():
      t.assign(self.replicate(Tensor(state[name]))).realize()
    for device, count in rng_state.items():
      counter = Tensor(count, dtype=dtypes.uint32, device=device)
      Tensor._device_rng_counters[device].assign(counter).realize()

  def copy_to(self, model) -> None:
    """Copy the trained parameters to another model with the same parameters, on one device.

    The model's tensors are assigned in place, because compiled steps of the model read them.
    """
    for name, t in nn.state.get_state_dict(model).items():
      t.assign(Tensor(self.state[f"model.{name}"].numpy())).realize()

  @property
  def rng_state(self) -> dict[str, list[int]]:
    """Return the number of random numbers generated on each device, as low and high 32 bits.

    Initialization and dropout use them. The state of tinygrad's generators is this counter.
    """
    return {device: count.numpy().tolist() for device, count in Tensor._device_rng_counters.items()}

  def train_step(self, learning_rate: float, *batch: np.ndarray) -> float:
    """Update the parameters once, and return the loss of the batch before the update."""
    rate = np.array([learning_rate], np.float32)
    if self.grad_accum_steps == 1:
      return self.compiled_step(rate, *batch).item()
    arrays = [np.split(a, self.grad_accum_steps) for a in batch]
    losses = []
    for i, micro_batch in enumerate(zip(*arrays, strict=True)):
      previous = np.array([i > 0], np.float32)
      losses.append(self.compiled_accumulation(previous, *micro_batch).item())
    self.compiled_update(rate)
    return sum(losses) / self.grad_accum_steps

  def evaluate(self, *batch: np.ndarray) -> float:
    """Return the loss of a batch without updating the parameters."""
    return self.compiled_evaluation(*batch).item()
