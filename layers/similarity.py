"""Similarity functions of a query and a key, besides the paper's dot products.

Each can be passed to the attentions of transformer.py as `similarity`. Each takes q (..., T, K) and
k (..., S, K), and returns scores (..., T, S). The heads share the parameters of the learned ones.
"""

from tinygrad import Tensor


class General:
  """q^T W k, for keys that may differ in width from the queries.

  Source: Luong et al. 2015, equation 8.
  """

  def __init__(self, query_dim: int, key_dim: int):
    self.weight = Tensor.glorot_uniform(query_dim, key_dim)

  def __call__(self, q: Tensor, k: Tensor) -> Tensor:
    """(..., T, K), (..., S, K) -> (..., T, S)."""
    return q @ self.weight @ k.transpose(-2, -1)


class Additive:
  """w_q^T q + w_k^T k: the sum of a score for the query and a score for the key.

  The softmax over the keys cancels the query's score, so the weights depend on the keys only.
  """

  def __init__(self, query_dim: int, key_dim: int):
    self.q = Tensor.glorot_uniform(query_dim, 1)
    self.k = Tensor.glorot_uniform(key_dim, 1)

  def __call__(self, q: Tensor, k: Tensor) -> Tensor:
    """(..., T, K), (..., S, K) -> (..., T, S)."""
    return q @ self.q + (k @ self.k).transpose(-2, -1)


class Bahdanau:
  """v^T tanh(W q + U k): additive attention with a hidden layer, so that queries matter.

  Source: Bahdanau et al. 2015, appendix A.1.2.
  """

  def __init__(self, query_dim: int, key_dim: int, hidden_dim: int):
    self.q = Tensor.glorot_uniform(query_dim, hidden_dim)
    self.k = Tensor.glorot_uniform(key_dim, hidden_dim)
    self.v = Tensor.glorot_uniform(hidden_dim, 1)

  def __call__(self, q: Tensor, k: Tensor) -> Tensor:
    """(..., T, K), (..., S, K) -> (..., T, S, hidden_dim) -> (..., T, S)."""
    hidden = ((q @ self.q).unsqueeze(-2) + (k @ self.k).unsqueeze(-3)).tanh()
    return hidden.matmul(self.v).squeeze(-1)


def cosine(q: Tensor, k: Tensor) -> Tensor:
  """Return the cosine similarity, between -1 and 1; it is 0 for a zero vector.

  (..., T, K), (..., S, K) -> (..., T, S). Source: Graves et al. 2014, equation 6.
  """

  def normalize(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt().maximum(1e-12)

  return normalize(q) @ normalize(k).transpose(-2, -1)
