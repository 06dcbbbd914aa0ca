"""Mixtures of experts."""

from collections.abc import Callable

from tinygrad import Tensor

from tinyformer.kernels.linear import gather_rows
from transformer import Linear


class MixtureOfExperts:
  """E gated feed-forward networks and a router that sends each token to a few of them.

  The output is the sum of the selected experts' outputs, weighted by the router's probabilities,
  which are renormalized to sum to 1. The experts' matrices are stacked along the first axis:
  gate and up (E F, D), down (E D, F). For a single token only the selected rows are read.
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

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., F) in each selected expert -> (..., D)."""
    weights, indices = self.router(x).softmax(-1).topk(self.experts_per_token)
    weights = weights / weights.sum(-1, keepdim=True)
    num_tokens = x.numel() // x.shape[-1]
    forward = self.forward_token if num_tokens == 1 else self.forward_dense
    return forward(x, weights, indices)

  def forward_token(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Run one token through the selected experts, reading only their weights."""

    def project(y: Tensor, stacked: Tensor) -> Tensor:  # y (selected or 1, in) -> (selected, out)
      matrices = stacked.reshape(self.experts, -1, stacked.shape[-1])
      return (y.unsqueeze(1) * gather_rows(matrices, indices.flatten())).sum(-1)

    y = x.reshape(1, -1)
    gate = self.activation(project(y, self.gate.weight))
    y = (gate * project(y, self.up.weight)).contiguous()
    outputs = project(y, self.down.weight)
    return (outputs * weights.reshape(-1, 1)).sum(0).reshape(x.shape)

  def forward_dense(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Run all tokens through all experts; the weight of an expert that is not selected is 0."""
    selected = indices.unsqueeze(-1) == Tensor.arange(self.experts)
    dense_weights = selected.where(weights.unsqueeze(-1), 0).sum(-2)  # (..., E)
    product = self.gate.product

    def expert_rows(stacked: Tensor, e: int) -> Tensor:
      rows = stacked.shape[0] // self.experts
      return stacked[e * rows : (e + 1) * rows]

    def expert(e: int) -> Tensor:
      gate = product(x, expert_rows(self.gate.weight, e))
      up = product(x, expert_rows(self.up.weight, e))
      y = (self.activation(gate) * up).contiguous()
      return product(y, expert_rows(self.down.weight, e))

    outputs = (expert(e) * dense_weights[..., e : e + 1] for e in range(self.experts))
    return sum(outputs, Tensor.zeros_like(x))
