"""Training steps with AdamW and gradient clipping.

Sources: Loshchilov & Hutter 2019, algorithm 2 (AdamW); Pascanu et al. 2013, algorithm 1 (clipping).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from tinygrad import Context, Device, Tensor, dtypes, nn

from tinyformer.kernels.compiled_step import CompiledStep


def training_context() -> Context:
  """Return the context in which the training steps are traced."""
  # With atomics, the gradient of an embedding is a sum into rows. Without, it is a matmul.
  return Context(TRAINING=1, USE_ATOMICS=int(Device.DEFAULT == "CPU"))


class Trainer:
  """Train a model's parameters in place.

  `state` maps names to the tensors of the model and the optimizer, and `rng_state` is the state of
  the random number generators. Save both to continue the training in a later process (`restore`).
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
    """Move the model's parameters to the devices and create the optimizer.

    loss: the tensors of a batch to a scalar. The first batch determines the shapes of all batches.
    weight_decay: applies to matrices only, not to norms and biases.
    clip: the maximum L2 norm of the gradient.  b2: AdamW's decay rate of the second moments.
    eval_loss: the loss that `evaluate` returns, if it is not `loss`.
    grad_accum_steps: split each batch into N micro-batches and average their gradients, which
    needs the memory of one micro-batch. The loss must be a mean over the batch.
    devices: replicate the parameters on these devices and shard each batch among them.
    """
    self.loss = loss
    self.eval_loss = eval_loss or loss
    self.clip = clip
    self.grad_accum_steps = grad_accum_steps
    self.devices = tuple(devices)
    self.params = nn.state.get_parameters(model)
    for p in self.params:
      p.replace(self.replicate(p))
    # A random counter that is created while a step is traced would be created anew in each step.
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
    self.optimizer_group = nn.optim.OptimizerGroup(*self.optimizers)
    self.gradient_sums: list[Tensor] = []
    if grad_accum_steps > 1:
      zeros = [Tensor.zeros(*p.shape).contiguous() for p in self.params]
      self.gradient_sums = [self.replicate(z).realize() for z in zeros]
    self.compiled_step = CompiledStep(self.single_step)
    self.compiled_accumulation = CompiledStep(self.accumulate_gradients)
    self.compiled_update = CompiledStep(self.apply_sums)
    self.compiled_evaluation = CompiledStep(self.evaluation)
    self.state = {f"model.{name}": t for name, t in nn.state.get_state_dict(model).items()}
    for i, o in enumerate(self.optimizers):
      optimizer_state = nn.state.get_state_dict([o.m, o.v, o.b1_t, o.b2_t])
      self.state |= {f"optimizer.{i}.{name}": t for name, t in optimizer_state.items()}
    Tensor.realize(*self.state.values())

  def replicate(self, t: Tensor) -> Tensor:
    """Return t replicated on every device, or t itself if there is only one device."""
    return t.shard(self.devices) if self.devices else t

  def shard(self, batch: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of a batch, with the first axis sharded if there are several devices."""
    return [b.shard(self.devices, 0) if self.devices else b for b in batch]

  def loss_and_gradients(self, batch: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a batch and the gradients of the parameters."""
    self.optimizer_group.zero_grad()
    value = self.loss(*self.shard(batch)).backward()
    return value, [p.grad for p in self.params if p.grad is not None]

  def update(self, learning_rate: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Clip the gradients and schedule AdamW's update.

    Returns the L2 norm of all gradients, and the tensors that must be realized.
    """
    for o in self.optimizers:
      o.lr = self.replicate(learning_rate)
    norm = Tensor.stack(*[g.square().sum() for g in gradients]).sum().sqrt()
    for p, g in zip(self.params, gradients, strict=False):
      p.grad = g * (self.clip / norm).minimum(1).contiguous() if math.isfinite(self.clip) else g
    return [norm, *self.optimizer_group.schedule_step()]

  def single_step(self, learning_rate: Tensor, *batch: Tensor) -> Tensor:
    """Update the parameters with the gradient of one batch, and return the loss before it."""
    with training_context():
      value, gradients = self.loss_and_gradients(batch)
      return value.realize(*self.update(learning_rate, gradients))

  def accumulate_gradients(self, accumulate: Tensor, *batch: Tensor) -> Tensor:
    """Add the gradients of a micro-batch to `gradient_sums`, and return its loss.

    accumulate: 1, or 0 for the first micro-batch, whose gradients replace the previous sums.
    """
    with training_context():
      value, gradients = self.loss_and_gradients(batch)
      for total, g in zip(self.gradient_sums, gradients, strict=False):
        total.assign(total * self.replicate(accumulate) + g / self.grad_accum_steps)
      return value.realize(*self.gradient_sums)

  def apply_sums(self, learning_rate: Tensor) -> Tensor:
    """Update the parameters with `gradient_sums`, and return their norm."""
    with training_context():
      norm, *tensors = self.update(learning_rate, self.gradient_sums)
      return norm.realize(*tensors)

  def evaluation(self, *batch: Tensor) -> Tensor:
    """Return the evaluation loss of a batch."""
    return self.eval_loss(*self.shard(batch)).realize()

  def restore(self, state: dict[str, np.ndarray], rng_state: dict[str, list[int]]) -> None:
    """Restore saved values of `state` and `rng_state`."""
    for name, t in self.state.items():
      t.assign(self.replicate(Tensor(state[name]))).realize()
    for device, count in rng_state.items():
      counter = Tensor(count, dtype=dtypes.uint32, device=device)
      Tensor._device_rng_counters[device].assign(counter).realize()

  def copy_to(self, model) -> None:
    """Copy the trained parameters to a model with the same parameters on one device.

    The copy is in place, because the model's compiled steps read the existing buffers.
    """
    for name, t in nn.state.get_state_dict(model).items():
      t.assign(Tensor(self.state[f"model.{name}"].numpy())).realize()

  @property
  def rng_state(self) -> dict[str, list[int]]:
    """The number of random values drawn on each device, as low and high 32 bits.

    tinygrad's generators are counters, which initialization and dropout advance.
    """
    return {device: count.numpy().tolist() for device, count in Tensor._device_rng_counters.items()}

  def train_step(self, learning_rate: float, *batch: np.ndarray) -> float:
    """Train on one batch, and return the loss before the update."""
    rate = np.array([learning_rate], np.float32)
    if self.grad_accum_steps == 1:
      return self.compiled_step(rate, *batch).item()
    micro_batches = zip(*(np.split(b, self.grad_accum_steps) for b in batch), strict=True)
    losses = []
    for i, micro_batch in enumerate(micro_batches):
      accumulate = np.array([i > 0], np.float32)
      losses.append(self.compiled_accumulation(accumulate, *micro_batch).item())
    self.compiled_update(rate)
    return sum(losses) / self.grad_accum_steps

  def evaluate(self, *batch: np.ndarray) -> float:
    """Return the evaluation loss of a batch, without training."""
    return self.compiled_evaluation(*batch).item()
