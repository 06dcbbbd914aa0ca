"""Feed-forward networks that came after the paper's: gated ones, and mixtures of experts."""

from collections.abc import Callable

from tinygrad import Tensor

from tinyformer.kernels.linear import gather_rows
from transformer import Linear


class GatedFeedForward:
  """down(activation(gate x) * up x): the gate says how much of each hidden feature passes (Shazeer 2020; SwiGLU with silu, GeGLU with gelu)."""

  def __init__(
    self, dim: int, ff_dim: int, activation: Callable = Tensor.silu, linear: Callable = Linear
  ):
    self.gate, self.up, self.down, self.activation = (
      linear(dim, ff_dim),
      linear(dim, ff_dim),
      linear(ff_dim, dim),
      activation,
    )

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D), by way of (..., F)."""
    return self.down(self.activation(self.gate(x)) * self.up(x))


class MixtureOfExperts:
  """E gated networks and a router, which gives each token to the `chosen` that it finds best (Shazeer et al. 2017, sec. 2; Mixtral, Jiang et al. 2024, sec. 2.1).

  The output is the chosen networks' by the router's probabilities, which are made to add up to 1 again. A single token's step reads the chosen
  networks' weights alone. The experts' matrices stand one below the other: gate and up (E F, D), down (E D, F). Raises ValueError if chosen > experts.
  """

  def __init__(
    self,
    experts: int,
    chosen: int,
    dim: int,
    ff_dim: int,
    activation: Callable = Tensor.silu,
    linear: Callable = Linear,
  ):
    if chosen > experts:
      raise ValueError(f"{chosen} experts cannot be chosen of {experts}")
    self.experts, self.chosen, self.activation = experts, chosen, activation
    self.router = linear(dim, experts, bias=False)
    self.gate, self.up = (
      linear(dim, experts * ff_dim, bias=False),
      linear(dim, experts * ff_dim, bias=False),
    )
    self.down = linear(ff_dim, experts * dim, bias=False)

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D), by way of (..., F) in each chosen expert."""
    share, choice = self.router(x).softmax(-1).topk(self.chosen)  # (..., chosen)
    share = share / share.sum(-1, keepdim=True)
    tokens = x.numel() // x.shape[-1]
    return self.some(x, share, choice) if tokens == 1 else self.all(x, share, choice)

  def some(self, x: Tensor, share: Tensor, choice: Tensor) -> Tensor:
    """One token through the chosen experts."""

    def apply(
      y: Tensor, matrices: Tensor
    ) -> Tensor:  # y (chosen or 1, inputs) -> (chosen, outputs)
      return (
        y.unsqueeze(1)
        * gather_rows(matrices.reshape(self.experts, -1, matrices.shape[-1]), choice.flatten())
      ).sum(-1)

    y = x.reshape(1, -1)
    y = (self.activation(apply(y, self.gate.weight)) * apply(y, self.up.weight)).contiguous()
    return (apply(y, self.down.weight) * share.reshape(-1, 1)).sum(0).reshape(x.shape)

  def all(self, x: Tensor, share: Tensor, choice: Tensor) -> Tensor:
    """Many tokens through every expert, each by its share, 0 where it was not chosen."""
    shares = (
      (choice.unsqueeze(-1) == Tensor.arange(self.experts)).where(share.unsqueeze(-1), 0).sum(-2)
    )  # (..., E)
    product = self.gate.product

    def expert(e: int) -> Tensor:
      gate, up, down = (
        m.weight[e * (n := m.weight.shape[0] // self.experts) : (e + 1) * n]
        for m in (self.gate, self.up, self.down)
      )
      return product((self.activation(product(x, gate)) * product(x, up)).contiguous(), down)

    return sum(
      (expert(e) * shares[..., e : e + 1] for e in range(self.experts)), Tensor.zeros_like(x)
    )
