"""A step of learning: the gradient of a loss, clipped (Pascanu et al. 2013, algorithm 1), through AdamW (Loshchilov & Hutter 2019)."""
import math
from collections.abc import Callable
import numpy as np
from tinygrad import Context, Device, Tensor, dtypes, nn
from parts.jit import Jitted

class Learner:
  """Teaches a model. loss: tensors of a batch -> a number; its first call fixes the shapes of the batches.

  Matrices decay, norms and biases do not. A later process goes on from `state`, tensors by name, and `drawn`.
  """
  def __init__(self, model, loss:Callable[..., Tensor], weight_decay:float=0.1, clip:float=math.inf, b2:float=0.95):
    params = nn.state.get_parameters(model)
    Tensor.realize(*params)
    adam = [nn.optim.AdamW([p for p in params if p.ndim > 1], b2=b2, weight_decay=weight_decay),
            nn.optim.AdamW([p for p in params if p.ndim < 2], b2=b2, weight_decay=0)]
    optimizer = nn.optim.OptimizerGroup(*adam)
    def step(rate:Tensor, *batch:Tensor) -> Tensor:
      for o in adam: o.lr = rate
      with Context(TRAINING=1, USE_ATOMICS=int(Device.DEFAULT == "CPU")):   # an embedding's gradient as a sum into rows, not as a product
        optimizer.zero_grad()
        value = loss(*batch).backward()
        gradients = [p.grad for p in params if p.grad is not None]
        length = Tensor.stack(*[g.square().sum() for g in gradients]).sum().sqrt()
        for p, g in zip(params, gradients): p.grad = g * (clip / length).minimum(1).contiguous() if math.isfinite(clip) else g
        return value.realize(*optimizer.schedule_step())
    self.step, self.look = Jitted(step), Jitted(lambda *batch: loss(*batch).realize())
    self.state = {f"model.{name}": t for name, t in nn.state.get_state_dict(model).items()}
    for i, o in enumerate(adam): self.state |= {f"optimizer.{i}.{name}": t for name, t in nn.state.get_state_dict([o.m, o.v, o.b1_t, o.b2_t]).items()}
    Tensor.realize(*self.state.values())

  @property
  def drawn(self) -> list[int]:
    """How many random numbers dropout and the initialisation have drawn, low and high half: tinygrad's generator is a counter."""
    Tensor._next_counter(Device.DEFAULT, 0)   # there may have been none
    return Tensor._device_rng_counters[Device.DEFAULT].numpy().tolist()

  @drawn.setter
  def drawn(self, count:list[int]) -> None:
    Tensor._next_counter(Device.DEFAULT, 0)
    Tensor._device_rng_counters[Device.DEFAULT].assign(Tensor(count, dtype=dtypes.uint32)).realize()

  def learn(self, rate:float, *batch:np.ndarray) -> float:
    """One step at a learning rate -> the loss before it."""
    return self.step(np.array([rate], np.float32), *batch).item()

  def measure(self, *batch:np.ndarray) -> float:
    """The loss, with nothing learned."""
    return self.look(*batch).item()
