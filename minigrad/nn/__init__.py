"""Layers, under tinygrad's names."""

import math

from minigrad.nn import optim, state
from minigrad.tensor import Tensor

__all__ = ["Conv1d", "Embedding", "LayerNorm", "RMSNorm", "optim", "state"]


class LayerNorm:
  """Normalize the last axis to mean 0 and variance 1, then scale and shift (Ba et al. 2016)."""

  def __init__(self, dim: int, eps: float = 1e-5):
    self.eps = eps
    self.weight = Tensor.ones(dim)
    self.bias = Tensor.zeros(dim)

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered * (variance + self.eps).rsqrt() * self.weight + self.bias


class RMSNorm:
  """Divide by the root of the mean square of the last axis (Zhang & Sennrich 2019)."""

  def __init__(self, dim: int, eps: float = 1e-6):
    self.eps = eps
    self.weight = Tensor.ones(dim)

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


class Embedding:
  """A learned vector for each of V ids."""

  def __init__(self, vocab_size: int, dim: int):
    self.weight = Tensor.glorot_uniform(vocab_size, dim)

  def __call__(self, ids: Tensor) -> Tensor:
    """(...) -> (..., D)."""
    return self.weight[ids]


class Conv1d:
  """A convolution over the last axis. Each group of outputs reads its group of inputs only."""

  def __init__(self, inputs: int, outputs: int, width: int, padding: int = 0, groups: int = 1):
    self.width, self.padding, self.groups = width, padding, groups
    bound = 1 / math.sqrt(inputs * width)
    self.weight = Tensor.uniform(outputs, inputs // groups, width, low=-bound, high=bound)
    self.bias = Tensor.uniform(outputs, low=-bound, high=bound)

  def __call__(self, x: Tensor) -> Tensor:
    """(B, in, T) -> (B, out, T + 2 * padding - width + 1)."""
    zeros = Tensor.zeros(*x.shape[:2], self.padding, dtype=x.dtype)
    x = zeros.cat(x, zeros, dim=2).rearrange("b (g i) t -> b g i t", g=self.groups)
    weight = self.weight.rearrange("(g o) i w -> g o i w", g=self.groups)
    T = x.shape[-1] - self.width + 1
    # One product per offset within the window, with the inputs shifted by that offset.
    y = sum(weight[..., w] @ x[..., w : w + T] for w in range(self.width))
    return y.rearrange("b g o t -> b (g o) t") + self.bias.reshape(-1, 1)
