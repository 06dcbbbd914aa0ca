"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017, arXiv:1706.03762).

The sections, words and symbols are the paper's, so read this file alongside it.
`python transformer.py -v` runs each section and checks it. layers/ contains what came after 2017;
models/ contains the architectures that people built from both.

Shapes: B batch, T queries, S keys, D model width (d_model), H heads, K head width (d_k),
F feed-forward width (d_ff), V vocabulary.
Masks add: 0 where attention is allowed, -inf where it is not.
"""

import functools
import math
from collections.abc import Callable

from tinygrad import Tensor, UOp, nn

Size = int | UOp  # A dimension: an int, or a symbolic variable bound on each JIT call.
Memory = Tensor | tuple[Tensor, Tensor]  # What cross-attention reads: vectors, or keys and values.


def materialize(x: Tensor) -> Tensor:
  """Return x, computed and stored once.

  Otherwise tinygrad fuses x into the next matmul and recomputes it for every output row.
  """
  return x.contiguous_backward().contiguous()


# **************** 3.1 Encoder and Decoder Stacks ****************


def post_norm(x: Tensor, sublayer: Callable, norm: Callable, dropout: float = 0.0) -> Tensor:
  """Return LayerNorm(x + Sublayer(x)), the paper's residual connection, with dropout (sec. 5.4)."""
  return norm(x + sublayer(x).dropout(dropout))


def pre_norm(x: Tensor, sublayer: Callable, norm: Callable, dropout: float = 0.0) -> Tensor:
  """Return x + Sublayer(LayerNorm(x)), which leaves the residual stream unnormalized.

  Source: Xiong et al. 2020, sec. 3.
  """
  return x + sublayer(norm(x)).dropout(dropout)


class Block:
  """One layer: self-attention, optional cross-attention, and a feed-forward network.

  attn, cross: a MultiHeadAttention or a compatible callable.  ff: x -> x of the same shape.
  norm: a function that makes a new norm.  residual: pre_norm, post_norm or a compatible function.
  """

  def __init__(
    self, attn, ff: Callable, norm: Callable, residual: Callable = post_norm, cross=None
  ):
    self.attn, self.attn_norm = attn, norm()
    self.cross, self.cross_norm = cross, norm() if cross else None
    self.ff, self.ff_norm = ff, norm()
    self.residual = residual

  def __call__(
    self,
    x: Tensor,
    memory: Memory | None = None,
    mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    cache=None,
    rope=None,
  ) -> Tensor:
    """x (B, T, D), encoder output `memory` (B, S, D) -> (B, T, D).

    The other arguments are those of MultiHeadAttention. Raises ValueError if the block has
    cross-attention and memory is None.
    """
    if self.cross and memory is None:
      raise ValueError("this block has cross-attention: pass the encoder's output as memory")
    x = self.residual(x, lambda x: self.attn(x, mask=mask, cache=cache, rope=rope), self.attn_norm)
    if self.cross:
      x = self.residual(x, lambda x: self.cross(x, memory, memory_mask), self.cross_norm)
    return self.residual(x, self.ff, self.ff_norm)


def encoder_block(dim: int, heads: int, ff_dim: int, dropout: float = 0.1) -> Block:
  """Return a block of self-attention and a feed-forward network (left half of figure 1)."""
  attn, ff = MultiHeadAttention(dim, heads), FeedForward(dim, ff_dim)
  residual = functools.partial(post_norm, dropout=dropout)
  return Block(attn, ff, lambda: nn.LayerNorm(dim), residual)


def decoder_block(dim: int, heads: int, ff_dim: int, dropout: float = 0.1) -> Block:
  """Return a block that also attends to the encoder's output (right half of figure 1)."""
  attn, ff, cross = (
    MultiHeadAttention(dim, heads),
    FeedForward(dim, ff_dim),
    MultiHeadAttention(dim, heads),
  )
  residual = functools.partial(post_norm, dropout=dropout)
  return Block(attn, ff, lambda: nn.LayerNorm(dim), residual, cross)


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
      y = block(y, memory, mask, memory_mask)
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


def attention_weights(
  q: Tensor, k: Tensor, mask: Tensor | None = None, similarity: Callable = scaled_dot_product
) -> Tensor:
  """Return softmax(similarity(q, k) + mask): (..., T, K), (..., S, K) -> (..., T, S).

  Each row sums to 1, or is all zeros if every key of that query is masked. The mask broadcasts to
  (..., T, S).
  """
  scores = similarity(q, repeat_kv(k, q))
  scores = materialize(scores if mask is None else scores + mask)
  row_max = scores.max(-1, keepdim=True).detach()
  # If every key is masked, subtract 0: -inf minus -inf would be NaN.
  weights = (scores - (row_max == -math.inf).where(0, row_max)).exp()
  row_sum = weights.sum(-1, keepdim=True)
  return weights / (row_sum == 0).where(1, row_sum)


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """Return softmax(q k^T / sqrt(d_k)) v (equation 1).

  q (..., T, K), k (..., S, K), v (..., S, K) -> (..., T, K).
  """
  return materialize(attention_weights(q, k, mask, similarity)) @ repeat_kv(v, q)


def repeat_kv(x: Tensor, q: Tensor) -> Tensor:
  """Repeat keys or values (B, G, S, K) to match the heads of q (B, H, T, K).

  Each is used by H / G consecutive heads. Source: Ainslie et al. 2023, sec. 2.2.
  """
  if x.shape[:-2] == q.shape[:-2]:
    return x
  return x.repeat_interleave(int(q.shape[-3] // x.shape[-3]), -3)


def causal_mask(T: Size, S: Size) -> Tensor:
  """Return (T, S): -inf for keys that come after the query (sec. 3.2.3).

  The last query is aligned with the last key: if T < S, the first S - T keys are from the KV cache.
  """
  return Tensor.full((T, S), -math.inf, buffer=False).triu(S - T + 1)


def padding_mask(attention_mask: Tensor) -> Tensor:
  """Turn (B, S), 1 = token and 0 = padding, into an additive mask (B, 1, 1, S)."""
  B, S = attention_mask.shape
  return attention_mask.bool().where(0.0, -math.inf).reshape(B, 1, 1, S)


class Linear:
  """x W^T + b, with W (out, in).

  W is initialized uniformly with variance 2 / (in + out), b with zeros.
  Source: Glorot & Bengio 2010, equation 16.
  """

  def __init__(self, inputs: int, outputs: int, bias: bool = True):
    self.weight = Tensor.glorot_uniform(outputs, inputs)
    self.bias = Tensor.zeros(outputs) if bias else None

  @staticmethod
  def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x W^T: (..., in), (out, in) -> (..., out)."""
    return x @ weight.T

  def __call__(self, x: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    y = self.product(materialize(x), self.weight)
    return materialize(y if self.bias is None else y + self.bias)


class SingleHeadAttention:
  """Attention over learned projections of the inputs: one of the heads of sec. 3.2.2."""

  def __init__(
    self,
    dim: int,
    head_dim: int,
    linear: Callable = Linear,
    similarity: Callable = scaled_dot_product,
  ):
    self.q, self.k, self.v = (linear(dim, head_dim) for _ in "qkv")
    self.similarity = similarity

  def __call__(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """x (B, T, D) -> (B, T, K). Keys and values are computed from memory (B, S, D), or from x."""
    memory = x if memory is None else memory
    return attention(self.q(x), self.k(memory), self.v(memory), mask, self.similarity)


class MultiHeadAttention:
  """H heads of width K = D / H in parallel, concatenated and projected (sec. 3.2.2).

  linear: (in, out) -> a projection.  similarity: as in attention_weights.
  attention_fn: `attention` or an equivalent function.  kv_heads: heads of keys and values, if
  several query heads share one.  head_dim: K, if it is not D / H.
  Raises ValueError if dim is not a multiple of heads, or heads of kv_heads.
  """

  def __init__(  # noqa: PLR0913
    self,
    dim: int,
    heads: int,
    linear: Callable = Linear,
    similarity: Callable = scaled_dot_product,
    attention_fn: Callable = attention,
    kv_heads: int | None = None,
    head_dim: int | None = None,
  ):
    kv_heads = kv_heads or heads
    if dim % heads and not head_dim:
      raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
    if heads % kv_heads:
      raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}")
    self.head_dim = head_dim or dim // heads
    self.similarity, self.attention_fn = similarity, attention_fn
    self.q = linear(dim, heads * self.head_dim)
    self.k = linear(dim, kv_heads * self.head_dim)
    self.v = linear(dim, kv_heads * self.head_dim)
    self.out = linear(heads * self.head_dim, dim)

  def split_heads(self, x: Tensor) -> Tensor:
    """(B, T, H K) -> (B, H, T, K)."""
    return x.rearrange("b t (h k) -> b h t k", k=self.head_dim)

  def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values (B, G, S, K) of memory (B, S, D), with G = kv_heads."""
    return self.split_heads(self.k(memory)), self.split_heads(self.v(memory))

  def __call__(
    self,
    x: Tensor,
    memory: Memory | None = None,
    mask: Tensor | None = None,
    cache: Callable | None = None,
    rope: Callable | None = None,
  ) -> Tensor:
    """x (B, T, D) -> (B, T, D).

    memory: None for self-attention; for cross-attention (B, S, D), or its keys_values.
    mask: broadcasts to (B, H, T, S).  cache: maps the k and v of T positions to those of all S.
    rope: applies rotary position embeddings to q and k (layers/positions.py).
    """
    q = self.split_heads(self.q(x))
    if isinstance(memory, tuple):
      k, v = memory
    else:
      k, v = self.keys_values(x if memory is None else memory)
    if rope:
      q, k = rope(q), rope(k)
    if cache:
      k, v = cache(k, v)
    y = self.attention_fn(q, k, v, mask, self.similarity)
    return self.out(y.rearrange("b h t k -> b t (h k)"))


# **************** 3.3 Position-wise Feed-Forward Networks ****************


class FeedForward:
  """max(0, x W1 + b1) W2 + b2, applied to each position separately (equation 2)."""

  def __init__(
    self, dim: int, ff_dim: int, activation: Callable = Tensor.relu, linear: Callable = Linear
  ):
    self.up, self.down = linear(dim, ff_dim), linear(ff_dim, dim)
    self.activation = activation

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., F) -> (..., D)."""
    return self.down(self.activation(self.up(x)))


# **************** 3.4 Embeddings and Softmax ****************


class Transformer:
  """The encoder-decoder of figure 1: source and target token ids -> logits of the next token.

  One matrix is both embeddings and the output projection (sec. 3.4). It is initialized with
  variance 1 / D, so that embeddings scaled by sqrt(D) and logits have unit variance.
  """

  def __init__(self, vocab_size, dim=512, heads=8, ff_dim=2048, num_layers=6, dropout=0.1):
    self.tokens = nn.Embedding(vocab_size, dim)
    self.tokens.weight = Tensor.normal(vocab_size, dim, std=dim**-0.5)
    self.encoder = Encoder(num_layers, dim, heads, ff_dim, dropout)
    self.decoder = Decoder(num_layers, dim, heads, ff_dim, dropout)
    self.dim, self.dropout = dim, dropout

  def embed(self, ids: Tensor) -> Tensor:
    """ids (B, T) -> token embeddings plus positions (B, T, D), with dropout (sec. 5.4)."""
    x = self.tokens(ids) * math.sqrt(self.dim)
    x = add_positions(x, sinusoids(ids.shape[1], self.dim))
    return materialize(x.dropout(self.dropout))

  def __call__(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
    """source (B, S), target (B, T) -> logits (B, T, V). source_mask: a padding_mask."""
    memory = self.encoder(self.embed(source), source_mask)
    return self.decoder(self.embed(target), memory, source_mask) @ self.tokens.weight.T


# **************** 3.5 Positional Encoding ****************


def sinusoids(T: Size, dim: int) -> Tensor:
  """Return (T, D): sin(p / 10000^(2i/D)) in column 2i and its cosine in column 2i + 1.

  p is the position, from 0 to T - 1. Raises ValueError if D is odd.
  """
  if dim % 2:
    raise ValueError(f"dim {dim} is odd: sines and cosines come in pairs")
  angle = Tensor.arange(T).reshape(T, 1) / 10000 ** (Tensor.arange(0, dim, 2) / dim)
  return Tensor.stack(angle.sin(), angle.cos(), dim=-1).reshape(T, dim)


def add_positions(x: Tensor, positions: Tensor) -> Tensor:
  """x (B, T, D) + positions (T, D) -> (B, T, D), as in the paper."""
  return x + positions


def concatenate_positions(x: Tensor, positions: Tensor) -> Tensor:
  """x (B, T, D), positions (T, P) -> (B, T, D + P): the alternative to adding them."""
  return x.cat(positions.expand(x.shape[0], *positions.shape), dim=-1)


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
