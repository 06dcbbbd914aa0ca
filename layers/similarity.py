"""How alike a query and a key are, beside the paper's dot products: each a part to pass to any attention as `similarity`.

All take q (..., T, K) and k (..., S, K) and give (..., T, S); the learned ones have one set of parameters for all heads.
"""

from tinygrad import Tensor


class General:
  """q^T W k: a dot product after a learned map of the keys, which need not be as wide as the queries (Luong et al. 2015, eq. 8)."""

  def __init__(self, query_dim: int, key_dim: int):
    self.weight = Tensor.glorot_uniform(query_dim, key_dim)

  def __call__(self, q: Tensor, k: Tensor) -> Tensor:
    return q @ self.weight @ k.transpose(-2, -1)


class Additive:
  """w_q^T q + w_k^T k: a score for the query plus one for the key. Through a softmax over keys, the query's part has no effect."""

  def __init__(self, query_dim: int, key_dim: int):
    self.q, self.k = Tensor.glorot_uniform(query_dim, 1), Tensor.glorot_uniform(key_dim, 1)

  def __call__(self, q: Tensor, k: Tensor) -> Tensor:
    return q @ self.q + (k @ self.k).transpose(-2, -1)


class Bahdanau:
  """v^T tanh(W q + U k): a network with one hidden layer (Bahdanau et al. 2015, A.1.2); the additive form that queries do matter in."""

  def __init__(self, query_dim: int, key_dim: int, hidden_dim: int):
    self.q, self.k, self.v = (
      Tensor.glorot_uniform(query_dim, hidden_dim),
      Tensor.glorot_uniform(key_dim, hidden_dim),
      Tensor.glorot_uniform(hidden_dim, 1),
    )

  def __call__(self, q: Tensor, k: Tensor) -> Tensor:
    return (
      ((q @ self.q).unsqueeze(-2) + (k @ self.k).unsqueeze(-3)).tanh().matmul(self.v).squeeze(-1)
    )  # by way of (..., T, S, hidden)


def cosine(q: Tensor, k: Tensor) -> Tensor:
  """The cosine of the angle between query and key, from -1 to 1 whatever their lengths (Graves et al. 2014, eq. 6). Of a zero vector it is 0."""

  def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt().maximum(1e-12)

  return unit(q) @ unit(k).transpose(-2, -1)
