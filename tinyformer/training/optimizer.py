"""AdamW, and gradient clipping by the norm of all gradients."""

import math
from collections.abc import Sequence

from tinygrad import Tensor, dtypes


def clip_grad_norm(params: Sequence[Tensor], max_norm: float) -> Tensor:
  """Scale the gradients so that their total norm is at most `max_norm`, and return that norm.

  The result is the norm before scaling. Parameters without a gradient are skipped. An infinite
  `max_norm` turns clipping off. Raises ValueError if no parameter has a gradient.
  Source: Pascanu et al. 2013, algorithm 1.
  """
  squares = [p.grad.square().sum() for p in params if p.grad is not None]
  if not squares:
    raise ValueError("the loss depends on no parameter of the model: compute it from the model")
  norm = Tensor.stack(*squares).sum().sqrt()
  if math.isfinite(max_norm):
    scale = (max_norm / norm).minimum(1).contiguous()
    for p in params:
      if p.grad is not None:
        p.grad = p.grad * scale
  return norm


class AdamW:
  """Update parameters with AdamW (Loshchilov & Hutter 2019, algorithm 2).

  A parameter without a gradient is skipped, as in PyTorch: neither the parameter nor its moments
  change.

  params: at least one parameter, all on the same devices.
  m, v: running means of each parameter's gradient and squared gradient, float32.
  beta1_t, beta2_t: beta1 and beta2 to the power of the number of steps.
  """

  def __init__(
    self, params: Sequence[Tensor], betas: tuple[float, float], weight_decay: float, eps=1e-8
  ):
    self.params = list(params)
    self.beta1, self.beta2 = betas
    self.weight_decay = weight_decay
    self.eps = eps
    self.m = [Tensor.zeros_like(p, dtype=dtypes.float32) for p in self.params]
    self.v = [Tensor.zeros_like(p, dtype=dtypes.float32) for p in self.params]
    device = self.params[0].device
    self.beta1_t = Tensor.ones(1, device=device)
    self.beta2_t = Tensor.ones(1, device=device)

  def state(self) -> list[Tensor | list[Tensor]]:
    """Return the tensors that a checkpoint must contain."""
    return [self.m, self.v, self.beta1_t, self.beta2_t]

  def step(self, learning_rate: Tensor) -> list[Tensor]:
    """Assign the next values to the parameters, and return all tensors to realize."""
    self.beta1_t *= self.beta1
    self.beta2_t *= self.beta2
    for p, m, v in zip(self.params, self.m, self.v, strict=True):
      if p.grad is None:
        continue
      m.assign(self.beta1 * m + (1 - self.beta1) * p.grad)
      v.assign(self.beta2 * v + (1 - self.beta2) * (p.grad * p.grad))
      m_hat = m / (1 - self.beta1_t)
      v_hat = v / (1 - self.beta2_t)
      update = m_hat / (v_hat.sqrt() + self.eps) + self.weight_decay * p.detach()
      p.assign(p.detach() - (learning_rate * update).cast(p.dtype))
    return [self.beta1_t, self.beta2_t, *self.m, *self.v, *self.params]
