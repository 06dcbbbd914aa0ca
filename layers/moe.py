"""Mixtures of experts."""

from collections.abc import Callable

from tinygrad import Tensor

from transformer import Linear


class MixtureOfExperts:
  """E gated feed-forward networks and a router that sends each token to a few of them.

  The output is the sum of the selected experts' outputs, weighted by the router's probabilities,
  which are renormalized to sum to 1. The experts' matrices are stacked along the first axis:
  gate and up (E F, D), down (E D, F).
  Raises ValueError if experts_per_token > experts.
  Source: Shazeer et al. 2017, sec. 2; Jiang et al. 2024 (Mixtral), sec. 2.1.
  """

  def __init__(
    self,
    experts: int,
    experts_per_token: int,
    dim: int,
    ff_dim: int,
    activation: Callable = Tensor.silu,
    linear: Callable = Linear,
  ):
    if experts_per_token > experts:
      raise ValueError(f"experts_per_token {experts_per_token} is more than experts {experts}")
    self.experts, self.experts_per_token = experts, experts_per_token
    self.activation = activation
    self.router = linear(dim, experts, bias=False)
    self.gate = linear(dim, experts * ff_dim, bias=False)
    self.up = linear(dim, experts * ff_dim, bias=False)
    self.down = linear(ff_dim, experts * dim, bias=False)

  def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and the indices of each token's experts: (..., D) -> (..., selected)."""
    weights, indices = self.router(x).softmax(-1).topk(self.experts_per_token)
    return weights / weights.sum(-1, keepdim=True), indices

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., E, F) -> (..., E, D) -> (..., D).

    All experts run. Those that are not selected have weight 0.
    """
    weights, indices = self.route(x)
    is_selected = indices.unsqueeze(-1) == Tensor.arange(self.experts)  # (..., selected, E)
    expert_weights = is_selected.where(weights.unsqueeze(-1), 0).sum(-2)  # (..., E)
    hidden = self.activation(self.gate(x)) * self.up(x)
    hidden = hidden.reshape(*x.shape[:-1], self.experts, 1, -1)
    down = self.down.weight.reshape(self.experts, x.shape[-1], -1)
    outputs = (hidden @ down.transpose(-2, -1)).squeeze(-2)
    return (expert_weights.unsqueeze(-1) * outputs).sum(-2)
