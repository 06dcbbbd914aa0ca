"""A step of learning: the gradient of a loss, clipped (Pascanu et al. 2013, algorithm 1), through AdamW (Loshchilov & Hutter 2019)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from tinygrad import Context, Device, Tensor, dtypes, nn

from tinyformer.kernels.compiled_step import CompiledStep


class Trainer:
  """Teaches a model. loss: tensors of a batch -> a number; its first call fixes the shapes of the batches.

  Matrices decay, norms and biases do not.  measured: the loss that `measure` tells, if not that which is learned from.
  pieces: a batch is read in so many, for a loss that is a mean over the batch: as one of them needs memory, with the gradient of all.
  devices: each has all parameters, and reads its share of every batch.
  A later process goes on from `state`, tensors by name, and `drawn`.
  """

  def __init__(
    self,
    model,
    loss: Callable[..., Tensor],
    weight_decay: float = 0.1,
    clip: float = math.inf,
    b2: float = 0.95,
    measured: Callable[..., Tensor] | None = None,
    pieces: int = 1,
    devices: Sequence[str] = (),
  ):
    self.pieces, self.devices = pieces, tuple(devices)
    params = nn.state.get_parameters(model)
    for p in params:
      p.replace(self.copied(p))
    for device in self.devices or (Device.DEFAULT,):
      Tensor._next_counter(Device.canonicalize(device), 0)
    Tensor.realize(
      *params, *Tensor._device_seeds.values(), *Tensor._device_rng_counters.values()
    )  # a counter that is made in a trace is made again in each step
    adam = [
      nn.optim.AdamW([p for p in params if p.ndim > 1], b2=b2, weight_decay=weight_decay),
      nn.optim.AdamW([p for p in params if p.ndim < 2], b2=b2, weight_decay=0),
    ]
    optimizer = nn.optim.OptimizerGroup(*adam)
    sums = (
      [self.copied(Tensor.zeros(*p.shape).contiguous()).realize() for p in params]
      if pieces > 1
      else []
    )

    def shared(batch: Sequence[Tensor]) -> list[Tensor]:
      return [b.shard(self.devices, 0) if self.devices else b for b in batch]

    def training() -> Context:
      return Context(
        TRAINING=1, USE_ATOMICS=int(Device.DEFAULT == "CPU")
      )  # an embedding's gradient as a sum into rows, not as a product

    def gradients(batch: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
      optimizer.zero_grad()
      value = loss(*shared(batch)).backward()
      return value, [p.grad for p in params if p.grad is not None]

    def follow(rate: Tensor, gradients: list[Tensor]) -> list[Tensor]:
      for o in adam:
        o.lr = self.copied(rate)
      length = Tensor.stack(*[g.square().sum() for g in gradients]).sum().sqrt()
      for p, g in zip(params, gradients):
        p.grad = g * (clip / length).minimum(1).contiguous() if math.isfinite(clip) else g
      return [length, *optimizer.schedule_step()]

    def step(rate: Tensor, *batch: Tensor) -> Tensor:
      with training():
        value, found = gradients(batch)
        return value.realize(*follow(rate, found))

    def add(keep: Tensor, *batch: Tensor) -> Tensor:
      with training():
        value, found = gradients(batch)
        for s, g in zip(sums, found):
          s.assign(s * self.copied(keep) + g / pieces)
        return value.realize(*sums)

    def end(rate: Tensor) -> Tensor:
      with training():
        length, *rest = follow(rate, sums)
        return length.realize(*rest)

    self.step, self.add, self.end = CompiledStep(step), CompiledStep(add), CompiledStep(end)
    self.look = CompiledStep(lambda *batch: (measured or loss)(*shared(batch)).realize())
    self.state = {f"model.{name}": t for name, t in nn.state.get_state_dict(model).items()}
    for i, o in enumerate(adam):
      self.state |= {
        f"optimizer.{i}.{name}": t
        for name, t in nn.state.get_state_dict([o.m, o.v, o.b1_t, o.b2_t]).items()
      }
    Tensor.realize(*self.state.values())

  def copied(self, t: Tensor) -> Tensor:
    """On every device, if there are several."""
    return t.shard(self.devices) if self.devices else t

  def restore(self, state: dict[str, np.ndarray], rng_state: dict[str, list[int]]) -> None:
    """Goes on from what `state` and `drawn` were."""
    for name, t in self.state.items():
      t.assign(self.copied(Tensor(state[name]))).realize()
    for device, count in rng_state.items():
      Tensor._device_rng_counters[device].assign(
        Tensor(count, dtype=dtypes.uint32, device=device)
      ).realize()

  def copy_to(self, model) -> None:
    """Gives a model of the same parameters, on one device, what this one has learned, in place: its traced steps read that."""
    for name, t in nn.state.get_state_dict(model).items():
      t.assign(Tensor(self.state[f"model.{name}"].numpy())).realize()

  @property
  def rng_state(self) -> dict[str, list[int]]:
    """How many random numbers dropout and the initialisation have drawn on each device, low and high half: tinygrad's generators are counters."""
    return {device: count.numpy().tolist() for device, count in Tensor._device_rng_counters.items()}

  def train_step(self, rate: float, *batch: np.ndarray) -> float:
    """One step at a learning rate -> the loss before it."""
    now = np.array([rate], np.float32)
    if self.pieces == 1:
      return self.step(now, *batch).item()
    losses = [
      self.add(np.array([i > 0], np.float32), *piece).item()
      for i, piece in enumerate(zip(*(np.split(b, self.pieces) for b in batch)))
    ]
    self.end(now)
    return sum(losses) / self.pieces

  def evaluate(self, *batch: np.ndarray) -> float:
    """The loss, with nothing learned."""
    return self.look(*batch).item()
