"""Feed-forward networks that came after the paper's: gated ones, and mixtures of experts."""
from collections.abc import Callable
from tinygrad import Tensor
from transformer import Linear

class GatedFeedForward:
  """down(activation(gate x) * up x): the gate says how much of each hidden feature passes (Shazeer 2020; SwiGLU with silu, GeGLU with gelu)."""
  def __init__(self, dim:int, hidden:int, activation:Callable=Tensor.silu, linear:Callable=Linear):
    self.gate, self.up, self.down, self.activation = linear(dim, hidden), linear(dim, hidden), linear(hidden, dim), activation

  def __call__(self, x:Tensor) -> Tensor:
    """(..., D) -> (..., D), by way of (..., F)."""
    return self.down(self.activation(self.gate(x)) * self.up(x))
