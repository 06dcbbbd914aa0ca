"""Where the norm of a residual connection goes."""

from collections.abc import Callable

from tinygrad import Tensor


def pre_norm(x: Tensor, sublayer: Callable, norm: Callable, dropout: float = 0.0) -> Tensor:
  """Return x + Sublayer(LayerNorm(x)), which leaves the residual stream unnormalized.

  Source: Xiong et al. 2020, sec. 3.
  """
  return x + sublayer(norm(x)).dropout(dropout)
