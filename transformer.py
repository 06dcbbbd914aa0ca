"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017, arXiv:1706.03762).

The sections have the paper's numbers, so read this file alongside it. `python transformer.py -v`
runs each section and checks it. layers/ contains what is not in the paper; models/ contains the
architectures that people built from both.

Shapes: B batch, T queries, S keys, D model width (d_model), H heads, K head width (d_k),
F feed-forward width (d_ff), V vocabulary. Masks add: 0 where attention is allowed, else -inf.
"""

import math
from collections.abc import Callable
from functools import partial

from tinygrad import Tensor, nn

# **************** 3.1 Encoder and Decoder Stacks ****************


def post_norm(x: Tensor, sublayer: Callable, norm: Callable, dropout: float = 0.0) -> Tensor:
  """Return LayerNorm(x + Sublayer(x)), with dropout of Sublayer(x) (sec. 5.4)."""
  return norm(x + sublayer(x).dropout(dropout))


class Block:
  """One layer: self-attention, optional cross-attention, and a feed-forward network.

  attn, cross: a MultiHeadAttention or a compatible callable.  ff: x -> x of the same shape.
  norm: a function that makes a new norm.  residual: post_norm or a compatible function.
  """

  def __init__(self, attn, ff, norm: Callable, residual: Callable = post_norm, cross=None):
    self.attn, self.attn_norm = attn, norm()
    self.cross, self.cross_norm = cross, norm() if cross else None
    self.ff, self.ff_norm = ff, norm()
    self.residual = residual

  def __call__(self, x: Tensor, memory=None, memory_mask=None, **inputs) -> Tensor:
    """x (B, T, D) -> (B, T, D).

    memory, memory_mask: the encoder's output (B, S, D) and its padding_mask, for cross-attention.
    inputs: keyword arguments of attn, such as its mask.
    Raises ValueError if the block has cross-attention and memory is None.
    """
    if self.cross and memory is None:
      raise ValueError("this block has cross-attention: pass the encoder's output as memory")
    x = self.residual(x, lambda x: self.attn(x, **inputs), self.attn_norm)
    if self.cross:
      x = self.residual(x, lambda x: self.cross(x, memory, memory_mask), self.cross_norm)
    return self.residual(x, self.ff, self.ff_norm)


def encoder_block(dim: int, heads: int, ff_dim: int, dropout: float = 0.1) -> Block:
  """Return a block of self-attention and a feed-forward network (left half of figure 1)."""
  attn, ff = MultiHeadAttention(dim, heads), FeedForward(dim, ff_dim)
  return Block(attn, ff, lambda: nn.LayerNorm(dim), partial(post_norm, dropout=dropout))


def decoder_block(dim: int, heads: int, ff_dim: int, dropout: float = 0.1) -> Block:
  """Return a block that also attends to the encoder's output (right half of figure 1)."""
  attn, ff = MultiHeadAttention(dim, heads), FeedForward(dim, ff_dim)
  cross = MultiHeadAttention(dim, heads)
  return Block(attn, ff, lambda: nn.LayerNorm(dim), partial(post_norm, dropout=dropout), cross)


class Encoder:
  """A stack of identical encoder blocks. It takes vectors, not token ids."""

  def __init__(self, num_layers=6, dim=512, heads=8, ff_dim=2048, dropout=0.1):
    self.blocks = [encoder_block(dim, heads, ff_dim, dropout) for _ in range(num_layers)]

  def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """x (B, S, D) -> (B, S, D). mask: a padding_mask, if the batch is padded."""
    for block in self.blocks:
      x = block(x, mask=mask)
    return x


class Decoder:
  """A stack of identical decoder blocks with causal self-attention and cross-attention."""

  def __init__(self, num_layers=6, dim=512, heads=8, ff_dim=2048, dropout=0.1):
    self.blocks = [decoder_block(dim, heads, ff_dim, dropout) for _ in range(num_layers)]

  def __call__(self, y: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
    """y (B, T, D), memory (B, S, D) -> (B, T, D). memory_mask: the encoder's padding_mask."""
    mask = causal_mask(y.shape[1], y.shape[1])
    for block in self.blocks:
      y = block(y, memory, memory_mask, mask=mask)
    return y


# **************** 3.2 Attention ****************


def dot_product(q: Tensor, k: Tensor) -> Tensor:
  """Return q k^T: (..., T, K), (..., S, K) -> (..., T, S)."""
  return q @ k.transpose(-2, -1)


def scaled_dot_product(q: Tensor, k: Tensor) -> Tensor:
  """Return q k^T / sqrt(d_k) (sec. 3.2.1).

  It has unit variance if the entries of q and k are independent with mean 0 and variance 1.
  """
  return dot_product(q, k) / math.sqrt(q.shape[-1])


def attention_weights(q, k, mask: Tensor | None = None, similarity=scaled_dot_product) -> Tensor:
  """Return softmax(similarity(q, k) + mask): (..., T, K), (..., S, K) -> (..., T, S).

  Each row sums to 1, or to 0 if every key of that query is masked. mask broadcasts to (..., T, S).
  """
  scores = similarity(q, k) if mask is None else similarity(q, k) + mask
  row_max = scores.max(-1, keepdim=True).detach()
  # If every key is masked, subtract 0: -inf minus -inf would be NaN.
  weights = (scores - (row_max == -math.inf).where(0, row_max)).exp()
  row_sum = weights.sum(-1, keepdim=True)
  return weights / (row_sum == 0).where(1, row_sum)


def attention(q, k, v, mask: Tensor | None = None, similarity=scaled_dot_product) -> Tensor:
  """Return softmax(q k^T / sqrt(d_k)) v (equation 1).

  q (..., T, K), k (..., S, K), v (..., S, K) -> (..., T, K).
  """
  return attention_weights(q, k, mask, similarity) @ v


def causal_mask(T, S) -> Tensor:
  """Return (T, S): -inf for keys that come after the query (sec. 3.2.3).

  The last query is aligned with the last key: if T < S, the first S - T keys precede all queries.
  """
  query_position = Tensor.arange(T).reshape(T, 1) + (S - T)
  return (Tensor.arange(S) > query_position).where(-math.inf, 0.0)


def padding_mask(attention_mask: Tensor) -> Tensor:
  """Turn (B, S), 1 = token and 0 = padding, into an additive mask (B, 1, 1, S)."""
  return attention_mask.bool().where(0.0, -math.inf).unsqueeze(1).unsqueeze(1)


class Linear:
  """x W^T + b, with W (out, in).

  W is initialized uniformly with variance 2 / (in + out) (Glorot & Bengio 2010, eq. 16), b is 0.
  """

  def __init__(self, inputs: int, outputs: int, bias: bool = True):
    self.weight = Tensor.glorot_uniform(outputs, inputs)
    self.bias = Tensor.zeros(outputs) if bias else None

  def __call__(self, x: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    y = x @ self.weight.T
    return y if self.bias is None else y + self.bias


class SingleHeadAttention:
  """Attention over learned projections of the inputs: one of the heads of sec. 3.2.2."""

  def __init__(self, dim: int, head_dim: int, linear=Linear, similarity=scaled_dot_product):
    self.q, self.k, self.v = (linear(dim, head_dim) for _ in "qkv")
    self.similarity = similarity

  def __call__(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """x (B, T, D) -> (B, T, K). Keys and values are computed from memory (B, S, D), or from x."""
    memory = x if memory is None else memory
    return attention(self.q(x), self.k(memory), self.v(memory), mask, self.similarity)


class MultiHeadAttention:
  """H heads of width K = D / H in parallel, concatenated and projected (sec. 3.2.2).

  linear: (in, out) -> a projection.
  similarity: a function like scaled_dot_product.  attention_fn: a function like attention.
  Raises ValueError if dim is not a multiple of heads.
  """

  def __init__(
    self, dim, heads, linear=Linear, similarity=scaled_dot_product, attention_fn=attention
  ):
    if dim % heads:
      raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
    self.head_dim = dim // heads
    self.similarity, self.attention_fn = similarity, attention_fn
    self.q, self.k, self.v, self.out = (linear(dim, dim) for _ in range(4))

  def __call__(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """x (B, T, D) -> (B, T, D). Keys and values are computed from memory (B, S, D), or from x."""
    memory = x if memory is None else memory
    q, k, v = (split_heads(y, self.head_dim) for y in (self.q(x), self.k(memory), self.v(memory)))
    return self.out(merge_heads(self.attention_fn(q, k, v, mask, self.similarity)))


def split_heads(x: Tensor, head_dim: int) -> Tensor:
  """(B, T, H K) -> (B, H, T, K)."""
  return x.rearrange("b t (h k) -> b h t k", k=head_dim)


def merge_heads(x: Tensor) -> Tensor:
  """(B, H, T, K) -> (B, T, H K)."""
  return x.rearrange("b h t k -> b t (h k)")


# **************** 3.3 Position-wise Feed-Forward Networks ****************


class FeedForward:
  """max(0, x W1 + b1) W2 + b2, applied to each position separately (equation 2)."""

  def __init__(self, dim: int, ff_dim: int, activation=Tensor.relu, linear=Linear):
    self.up, self.down = linear(dim, ff_dim), linear(ff_dim, dim)
    self.activation = activation

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., F) -> (..., D)."""
    return self.down(self.activation(self.up(x)))


# **************** 3.4 Embeddings and Softmax ****************


class Embedding(nn.Embedding):
  """A learned vector for each of V tokens. The same matrix can be the output projection."""

  def as_linear(self, x: Tensor) -> Tensor:
    """Return the dot product with each token's vector: (..., D) -> (..., V)."""
    return x @ self.weight.T


class Transformer:
  """The encoder-decoder of figure 1: source and target token ids -> logits of the next token.

  One matrix is both embeddings and the output projection (sec. 3.4). It is initialized with
  variance 1 / D, so that embeddings scaled by sqrt(D) and logits have unit variance.
  """

  def __init__(self, vocab_size, dim=512, heads=8, ff_dim=2048, num_layers=6, dropout=0.1):
    self.tokens = Embedding(vocab_size, dim)
    self.tokens.weight = Tensor.normal(vocab_size, dim, std=dim**-0.5)
    self.encoder = Encoder(num_layers, dim, heads, ff_dim, dropout)
    self.decoder = Decoder(num_layers, dim, heads, ff_dim, dropout)
    self.dim, self.dropout = dim, dropout

  def embed(self, ids: Tensor) -> Tensor:
    """ids (B, T) -> token embeddings plus positions (B, T, D), with dropout (sec. 5.4)."""
    x = self.tokens(ids) * math.sqrt(self.dim) + sinusoids(ids.shape[1], self.dim)
    return x.dropout(self.dropout)

  def __call__(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
    """source (B, S), target (B, T) -> logits (B, T, V). source_mask: a padding_mask."""
    memory = self.encoder(self.embed(source), source_mask)
    return self.tokens.as_linear(self.decoder(self.embed(target), memory, source_mask))


# **************** 3.5 Positional Encoding ****************


def sinusoids(T, dim: int) -> Tensor:
  """Return (T, D): the sine of p / 10000^(2i/D) in column 2i, the cosine in column 2i + 1.

  p is the position, from 0 to T - 1. Raises ValueError if D is odd.
  """
  if dim % 2:
    raise ValueError(f"dim {dim} is odd: sines and cosines come in pairs")
  angle = Tensor.arange(T).reshape(T, 1) / 10000 ** (Tensor.arange(0, dim, 2) / dim)
  return Tensor.stack(angle.sin(), angle.cos(), dim=-1).reshape(T, dim)


# **************** 5.3 Optimizer, 5.4 Regularization ****************


def learning_rate(step: int, dim: int = 512, warmup: int = 4000) -> float:
  """Return the learning rate of a step, counted from 1 (equation 3).

  It increases linearly for `warmup` steps, then decreases as 1 / sqrt(step).
  """
  return dim**-0.5 * min(step**-0.5, step * warmup**-1.5)


def loss(logits: Tensor, target: Tensor, smoothing: float = 0.1, ignore: int = -1) -> Tensor:
  """Return the mean cross-entropy in nats, with label smoothing (sec. 5.4).

  logits (B, T, V), target (B, T) -> a scalar. Targets equal to `ignore` do not count.
  """
  log_probs = logits.log_softmax(-1)
  counted = target != ignore
  target_log_probs = log_probs.gather(-1, counted.where(target, 0).unsqueeze(-1)).squeeze(-1)
  losses = -(1 - smoothing) * target_log_probs - smoothing * log_probs.mean(-1)
  return counted.where(losses, 0).sum() / counted.sum()


if __name__ == "__main__":
  from tinyformer.walkthrough import main

  raise SystemExit(main())
