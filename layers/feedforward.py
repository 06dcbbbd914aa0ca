"""Gated feed-forward networks."""

from collections.abc import Callable

from tinygrad import Tensor

from transformer import Linear


class GatedFeedForward:
  """down(activation(gate(x)) * up(x)): SwiGLU with SiLU, GEGLU with GELU.

  Source: Shazeer 2020, equations 5 and 6.
  """

  def __init__(
    self, dim: int, ff_dim: int, activation: Callable = Tensor.silu, linear: Callable = Linear
  ):
    self.gate = linear(dim, ff_dim)
    self.up = linear(dim, ff_dim)
    self.down = linear(ff_dim, dim)
    self.activation = activation

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., F) -> (..., D)."""
    return self.down(self.activation(self.gate(x)) * self.up(x))
