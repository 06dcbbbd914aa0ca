"""Multi-head attention after 2017: a KV cache, grouped queries and rotary positions."""

from collections.abc import Callable
from typing import Any

from tinygrad import Tensor

from transformer import Linear, attention, merge_heads, scaled_dot_product, split_heads


def repeat_kv(x: Tensor, q: Tensor) -> Tensor:
  """Repeat keys or values (B, G, S, K) to match the heads of q (B, H, T, K).

  Each is used by H / G consecutive heads. Source: Ainslie et al. 2023, sec. 2.2.
  """
  if x.shape[:-2] == q.shape[:-2]:
    return x
  return x.repeat_interleave(int(q.shape[-3] // x.shape[-3]), -3)


def grouped_attention(
  q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, similarity=scaled_dot_product
) -> Tensor:
  """Return transformer.attention, with each head of k and v used by H / G heads of q.

  q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K).
  """
  return attention(q, repeat_kv(k, q), repeat_kv(v, q), mask, similarity)


class CachedAttention:
  """A MultiHeadAttention with an optional KV cache and rotary positions, for generation.

  kv_heads: G, if several of the H query heads share one head of keys and values.
  head_dim: K, if it is not D / H.
  linear: (in, out) -> a projection.  attention_fn: a function like grouped_attention.
  Raises ValueError if heads is not a multiple of kv_heads, or if dim is not a multiple of heads and
  head_dim is None.
  """

  def __init__(
    self,
    dim: int,
    heads: int,
    linear: Callable = Linear,
    attention_fn: Callable = grouped_attention,
    kv_heads: int | None = None,
    head_dim: int | None = None,
  ):
    kv_heads = kv_heads or heads
    if dim % heads and not head_dim:
      raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
    if heads % kv_heads:
      raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}")
    self.kv_heads = kv_heads
    self.head_dim = head_dim or dim // heads
    self.attention_fn = attention_fn
    self.q = linear(dim, heads * self.head_dim)
    self.k = linear(dim, kv_heads * self.head_dim)
    self.v = linear(dim, kv_heads * self.head_dim)
    self.out = linear(heads * self.head_dim, dim)

  def queries(self, x: Tensor, rope: Callable | None = None) -> Tensor:
    """Return the queries (B, H, T, K) of x (B, T, D)."""
    q = split_heads(self.q(x), self.head_dim)
    return rope(q) if rope else q

  def keys_values(self, x: Tensor, rope: Callable | None = None) -> tuple[Tensor, Tensor]:
    """Return the keys and values (B, G, S, K) of x (B, S, D)."""
    k, v = (split_heads(y, self.head_dim) for y in (self.k(x), self.v(x)))
    return rope(k) if rope else k, v

  def __call__(self, x: Tensor, memory=None, mask=None, cache=None, rope=None) -> Tensor:
    """x (B, T, D) -> (B, T, D).

    memory: None for self-attention; for cross-attention (B, S, D), or its keys_values.
    mask: broadcasts to (B, H, T, S).  cache: maps the k and v of T positions to those of all S.
    rope: applies rotary position embeddings to q and k (layers/positions.py).
    """
    q = self.queries(x, rope)
    if isinstance(memory, tuple):
      k, v = memory
    else:
      k, v = self.keys_values(x if memory is None else memory, rope)
    if cache:
      k, v = cache(k, v)
    return self.out(merge_heads(self.attention_fn(q, k, v, mask)))


class NoPEAttention(CachedAttention):
  """A CachedAttention that ignores RoPE, so that only its mask depends on positions.

  Source: Kazemnejad et al. 2023.
  """

  def queries(self, x: Tensor, rope: Callable | None = None) -> Tensor:
    """Return the queries (B, H, T, K) of x (B, T, D)."""
    return super().queries(x)

  def keys_values(self, x: Tensor, rope: Callable | None = None) -> tuple[Tensor, Tensor]:
    """Return the keys and values (B, G, S, K) of x (B, S, D)."""
    return super().keys_values(x)


class QKNormAttention(CachedAttention):
  """A CachedAttention that normalizes each head of q and k before it applies RoPE.

  norm: function that makes a norm of vectors of width K. The other arguments are those of
  CachedAttention. Source: Dehghani et al. 2023, sec. 2.
  """

  def __init__(self, norm: Callable, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self.q_norm = norm(self.head_dim)
    self.k_norm = norm(self.head_dim)

  def queries(self, x: Tensor, rope: Callable | None = None) -> Tensor:
    """Return the normalized queries (B, H, T, K) of x (B, T, D)."""
    q = self.q_norm(super().queries(x))
    return rope(q) if rope else q

  def keys_values(self, x: Tensor, rope: Callable | None = None) -> tuple[Tensor, Tensor]:
    """Return the normalized keys and the values (B, G, S, K) of x (B, S, D)."""
    k, v = super().keys_values(x)
    k = self.k_norm(k)
    return rope(k) if rope else k, v
