"""AdamW."""

import numpy as np


class AdamW:
  """Update parameters by AdamW (Loshchilov & Hutter 2019, algorithm 2).

  m, v: running means of each gradient and of its square. Parameters without a gradient are skipped.
  """

  def __init__(self, params, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01):
    self.params: list = list(params)
    self.lr, self.b1, self.b2, self.eps, self.weight_decay = lr, b1, b2, eps, weight_decay
    self.m = [np.zeros_like(p.data) for p in self.params]
    self.v = [np.zeros_like(p.data) for p in self.params]
    self.steps = 0

  def zero_grad(self) -> None:
    """Forget the gradients. Otherwise `backward` adds to them."""
    for p in self.params:
      p.grad = None

  def step(self) -> None:
    """Update each parameter from its gradient."""
    self.steps += 1
    for p, m, v in zip(self.params, self.m, self.v, strict=True):
      if p.grad is None:
        continue
      g = p.grad.data
      m += (1 - self.b1) * (g - m)
      v += (1 - self.b2) * (g * g - v)
      m_hat = m / (1 - self.b1**self.steps)
      v_hat = v / (1 - self.b2**self.steps)
      update = m_hat / (np.sqrt(v_hat) + self.eps) + self.weight_decay * p.data
      p.data -= self.lr * update
