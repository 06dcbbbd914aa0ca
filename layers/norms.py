"""Where the norm of a residual connection goes, and a norm without a bias."""

from collections.abc import Callable

from tinygrad import Tensor, nn


def pre_norm(x: Tensor, sublayer: Callable, norm: Callable, dropout: float = 0.0) -> Tensor:
  """Return x + Sublayer(LayerNorm(x)), which leaves the residual stream unnormalized.

  Source: Xiong et al. 2020, sec. 3.
  """
  return x + sublayer(norm(x)).dropout(dropout)


class UnbiasedLayerNorm(nn.LayerNorm):
  """A LayerNorm with a learned weight and no bias."""

  def __init__(self, dim: int, eps: float = 1e-5):
    super().__init__(dim, eps)
    self.weight: Tensor = Tensor.ones(dim)
    self.bias = None

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered * (variance + self.eps).rsqrt() * self.weight
