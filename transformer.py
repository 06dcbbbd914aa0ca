"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017, arXiv 1706.03762), section by section.

Read it beside the paper: the words and the numbers of the sections are the paper's. `python transformer.py -v` walks through it.
What was invented since is in parts/; what people built from both is in models/.

Shapes: B batch, T queries, S keys, D model width (d_model), H heads, K head width (d_k), F hidden width (d_ff), V vocabulary.
Masks add: 0 where attending is allowed, -inf where not.
"""

import functools
import math
from collections.abc import Callable

from tinygrad import Tensor, UOp, nn

Size = int | UOp  # a UOp is a size that a traced step is told each time it runs
Memory = Tensor | tuple[Tensor, Tensor]


def materialize(x: Tensor) -> Tensor:
  """x itself, computed once and kept: tinygrad would fuse x into the next product and compute it again for each output row."""
  return x.contiguous_backward().contiguous()


# **************** 3.1 Encoder and decoder stacks ****************


def post_norm(x: Tensor, sublayer: Callable, norm: Callable, dropout: float = 0.0) -> Tensor:
  """LayerNorm(x + Sublayer(x)), the paper's residual connection (3.1), with its dropout (5.4). Any shape in, the same out."""
  return norm(x + sublayer(x).dropout(dropout))


def pre_norm(x: Tensor, sublayer: Callable, norm: Callable, dropout: float = 0.0) -> Tensor:
  """x + Sublayer(LayerNorm(x)): x itself passes untouched from the first layer to the last (Xiong et al. 2020, sec. 3)."""
  return x + sublayer(norm(x)).dropout(dropout)


class Block:
  """One layer of a stack: attention, then attention to another sequence if `cross` is given, then a feed-forward network.

  attn: a MultiHeadAttention, or what is called like one.  ff: x -> x of the same shape.
  norm: makes a norm each time it is called.  residual: pre_norm or post_norm, or what is called like them.
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
    """x (B, T, D), the encoder's output `memory` (B, S, D) -> (B, T, D). Masks as in attention_weights; memory, cache, turn as in MultiHeadAttention."""
    if self.cross and memory is None:
      raise ValueError("this block attends to a memory too: give it one")
    x = self.residual(x, lambda x: self.attn(x, mask=mask, cache=cache, rope=rope), self.attn_norm)
    if self.cross:
      x = self.residual(x, lambda x: self.cross(x, memory, memory_mask), self.cross_norm)
    return self.residual(x, self.ff, self.ff_norm)


def encoder_block(dim: int, heads: int, ff_dim: int, dropout: float = 0.1) -> Block:
  """Self-attention and a feed-forward network, as in the left half of the paper's figure 1."""
  return Block(
    MultiHeadAttention(dim, heads),
    FeedForward(dim, ff_dim),
    lambda: nn.LayerNorm(dim),
    functools.partial(post_norm, dropout=dropout),
  )


def decoder_block(dim: int, heads: int, ff_dim: int, dropout: float = 0.1) -> Block:
  """The same with attention to the encoder's output between the two, the right half of figure 1."""
  return Block(
    MultiHeadAttention(dim, heads),
    FeedForward(dim, ff_dim),
    lambda: nn.LayerNorm(dim),
    functools.partial(post_norm, dropout=dropout),
    cross=MultiHeadAttention(dim, heads),
  )


class Encoder:
  """A stack of identical layers on vectors."""

  def __init__(
    self,
    num_layers: int = 6,
    dim: int = 512,
    heads: int = 8,
    ff_dim: int = 2048,
    dropout: float = 0.1,
  ):
    self.blocks = [encoder_block(dim, heads, ff_dim, dropout) for _ in range(num_layers)]

  def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """x (B, S, D) -> (B, S, D). mask: usually a padding_mask."""
    for block in self.blocks:
      x = block(x, mask=mask)
    return x


class Decoder:
  """A stack of identical layers on vectors, each of which sees the encoder's output, and no later position of its own input."""

  def __init__(
    self,
    num_layers: int = 6,
    dim: int = 512,
    heads: int = 8,
    ff_dim: int = 2048,
    dropout: float = 0.1,
  ):
    self.blocks = [decoder_block(dim, heads, ff_dim, dropout) for _ in range(num_layers)]

  def __call__(self, y: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
    """y (B, T, D), memory (B, S, D) -> (B, T, D). memory_mask: the encoder's padding_mask."""
    mask = causal_mask(y.shape[1], y.shape[1])
    for block in self.blocks:
      y = block(y, memory, mask, memory_mask)
    return y


# **************** 3.2 Attention ****************


def dot_product(q: Tensor, k: Tensor) -> Tensor:
  """(..., T, K), (..., S, K) -> (..., T, S): how alike each query and each key are, q k^T."""
  return q @ k.transpose(-2, -1)


def scaled_dot_product(q: Tensor, k: Tensor) -> Tensor:
  """q k^T / sqrt(d_k), of unit variance if q and k are (3.2.1). Shapes as in dot_product."""
  return dot_product(q, k) / math.sqrt(q.shape[-1])


def attention_weights(
  q: Tensor, k: Tensor, mask: Tensor | None = None, similarity: Callable = scaled_dot_product
) -> Tensor:
  """softmax(similarity(q, k) + mask) over the keys: (..., T, K), (..., S, K) -> (..., T, S).

  Each row sums to 1; the row of a query all of whose keys are masked is 0 everywhere. mask: anything that broadcasts to (..., T, S).
  similarity: (q, k) -> (..., T, S).
  """
  k = repeat_kv(k, q)
  scores = materialize(similarity(q, k) if mask is None else similarity(q, k) + mask)
  top = scores.max(-1, keepdim=True).detach()
  weights = (scores - (top == -math.inf).where(0, top)).exp()  # -inf minus -inf would be NaN
  total = weights.sum(-1, keepdim=True)
  return weights / (total == 0).where(1, total)


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """softmax(q k^T / sqrt(d_k)) v, equation 1: q (..., T, K), k (..., S, K), v (..., S, K) -> (..., T, K)."""
  return materialize(attention_weights(q, k, mask, similarity)) @ repeat_kv(v, q)


def repeat_kv(x: Tensor, q: Tensor) -> Tensor:
  """Keys or values (B, G, S, K) for queries (B, H, T, K), each given to H / G heads in a row (Ainslie et al. 2023, sec. 2.2)."""
  return (
    x if x.shape[:-2] == q.shape[:-2] else x.repeat_interleave(int(q.shape[-3] // x.shape[-3]), -3)
  )


def causal_mask(T: Size, S: Size) -> Tensor:
  """(T, S): the last query sees every key, the one before it all but the last key, and so on (3.2.3: no leftward information flow).

  T queries are the last T of S places: with T < S the first S - T keys are from an earlier call, kept in a cache.
  """
  return Tensor.full((T, S), -math.inf, buffer=False).triu(S - T + 1)


def padding_mask(keep: Tensor) -> Tensor:
  """keep (B, S), true where there is a token and false where there is padding -> (B, 1, 1, S), for all heads and queries."""
  return keep.bool().where(0.0, -math.inf).reshape(keep.shape[0], 1, 1, keep.shape[1])


class Linear:
  """x W^T + b. W (outputs, inputs) starts uniform with variance 2 / (inputs + outputs), b at zero (Glorot & Bengio 2010, eq. 16)."""

  def __init__(self, inputs: int, outputs: int, bias: bool = True):
    self.weight, self.bias = (
      Tensor.glorot_uniform(outputs, inputs),
      Tensor.zeros(outputs) if bias else None,
    )

  @staticmethod
  def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., inputs), weight (outputs, inputs) -> x weight^T (..., outputs)."""
    return x @ weight.T

  def __call__(self, x: Tensor) -> Tensor:
    """(..., inputs) -> (..., outputs)."""
    y = self.product(materialize(x), self.weight)
    return materialize(y if self.bias is None else y + self.bias)


class SingleHeadAttention:
  """Attention between learned projections of its inputs: what each of the heads does (3.2.2)."""

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
    """x (B, T, D), memory (B, S, D) or x itself -> (B, T, K)."""
    memory = x if memory is None else memory
    return attention(self.q(x), self.k(memory), self.v(memory), mask, self.similarity)


class MultiHeadAttention:
  """H heads that attend side by side, each in its own K = D / H dimensions, joined and projected (3.2.2).

  linear: (inputs, outputs) -> a projection.  similarity: as in attention_weights, on (B, H, T, K) and (B, H, S, K).
  attend: `attention`, or what gives the same sooner.  kv_heads: heads of keys and values, fewer if heads share them.  head_dim: K, if not D / H.
  Raises ValueError if dim is not a multiple of heads, or heads of kv_heads.
  """

  def __init__(
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
    self.head_dim, self.similarity, self.attention_fn = (
      head_dim or dim // heads,
      similarity,
      attention_fn,
    )
    self.q, self.k, self.v = (linear(dim, n * self.head_dim) for n in (heads, kv_heads, kv_heads))
    self.out = linear(heads * self.head_dim, dim)

  def split(self, x: Tensor) -> Tensor:
    """(B, T, H K) -> (B, H, T, K)."""
    return x.rearrange("b t (h k) -> b h t k", k=self.head_dim)

  def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, D) -> keys and values, each (B, H, S, K): for a memory that many calls attend to."""
    return self.split(self.k(memory)), self.split(self.v(memory))

  def __call__(
    self,
    x: Tensor,
    memory: Memory | None = None,
    mask: Tensor | None = None,
    cache: Callable | None = None,
    rope: Callable | None = None,
  ) -> Tensor:
    """x (B, T, D) -> (B, T, D). The keys are x's own (self-attention), or those of memory (cross-attention): (B, S, D), or its `keys_values`.

    mask: broadcasts to (B, H, T, S).  cache: (k, v) of these T places -> (k, v) of all S places so far, each (B, H, S, K).
    turn: what is done to q and k, each (B, H, T, K), for their places to count (layers/positions.py).
    """
    q = self.split(self.q(x))
    k, v = (
      memory if isinstance(memory, tuple) else self.keys_values(x if memory is None else memory)
    )
    if rope:
      q, k = rope(q), rope(k)
    if cache:
      k, v = cache(k, v)
    return self.out(
      self.attention_fn(q, k, v, mask, self.similarity).rearrange("b h t k -> b t (h k)")
    )


# **************** 3.3 Position-wise feed-forward networks ****************


class FeedForward:
  """Two linear maps with an activation between, the same at every position: max(0, x W1 + b1) W2 + b2, equation 2."""

  def __init__(
    self, dim: int, ff_dim: int, activation: Callable = Tensor.relu, linear: Callable = Linear
  ):
    self.up, self.down, self.activation = linear(dim, ff_dim), linear(ff_dim, dim), activation

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D), by way of (..., F)."""
    return self.down(self.activation(self.up(x)))


# **************** 3.4 Embeddings and softmax ****************


class Transformer:
  """From the tokens of one sequence and those so far of another to logits for the next token of the other (figure 1).

  The two embeddings and the projection to logits share one matrix, whose rows times sqrt(D) are the embeddings (3.4);
  it starts as N(0, 1/D), so that embeddings and logits both have unit variance. The rest starts as Linear does.
  """

  def __init__(
    self,
    vocab_size: int,
    dim: int = 512,
    heads: int = 8,
    ff_dim: int = 2048,
    num_layers: int = 6,
    dropout: float = 0.1,
  ):
    self.tokens = nn.Embedding(vocab_size, dim)
    self.tokens.weight = Tensor.normal(vocab_size, dim, std=dim**-0.5)
    self.encoder, self.decoder = (
      Encoder(num_layers, dim, heads, ff_dim, dropout),
      Decoder(num_layers, dim, heads, ff_dim, dropout),
    )
    self.dim, self.dropout = dim, dropout

  def embed(self, ids: Tensor) -> Tensor:
    """ids (B, T) -> (B, T, D): embeddings and positions added, with dropout on the sum (5.4)."""
    return materialize(
      add_positions(
        self.tokens(ids) * math.sqrt(self.dim), sinusoids(ids.shape[1], self.dim)
      ).dropout(self.dropout)
    )

  def __call__(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
    """source (B, S) and target (B, T), token ids -> logits (B, T, V). source_mask: a padding_mask; target is masked causally."""
    memory = self.encoder(self.embed(source), source_mask)
    return self.decoder(self.embed(target), memory, source_mask) @ self.tokens.weight.T


# **************** 3.5 Positional encoding ****************


def sinusoids(T: Size, dim: int) -> Tensor:
  """(T, D): sin(p / 10000^(2i/D)) in column 2i and the cosine of the same in column 2i + 1, for place p = 0 .. T - 1.

  Wavelengths run from 2 pi to 10000 * 2 pi; any fixed offset turns one row into another linearly. Raises ValueError if D is odd.
  """
  if dim % 2:
    raise ValueError(f"dim {dim} is odd: sines and cosines come in pairs")
  angle = Tensor.arange(T).reshape(T, 1) / 10000 ** (Tensor.arange(0, dim, 2) / dim)
  return Tensor.stack(angle.sin(), angle.cos(), dim=-1).reshape(
    T, dim
  )  # side by side: sin, cos, sin, cos ...


def add_positions(x: Tensor, positions: Tensor) -> Tensor:
  """x (B, T, D) + positions (T, D) -> (B, T, D), as in the paper."""
  return x + positions


def concatenate_positions(x: Tensor, positions: Tensor) -> Tensor:
  """x (B, T, D), positions (T, P) -> (B, T, D + P): content and place kept apart, at the price of width."""
  return x.cat(positions.expand(x.shape[0], *positions.shape), dim=-1)


# **************** 5.3 Optimizer, 5.4 Regularization ****************


def learning_rate(step: int, dim: int = 512, warmup: int = 4000) -> float:
  """Equation 3: it rises linearly for `warmup` steps, then falls as 1 / sqrt(step). The first step is 1."""
  return dim**-0.5 * min(step**-0.5, step * warmup**-1.5)


def loss(logits: Tensor, target: Tensor, smoothing: float = 0.1, ignore: int = -1) -> Tensor:
  """Mean cross-entropy in nats of logits (B, T, V) against ids (B, T), `ignore` left out, with label smoothing (5.4) -> a number."""
  log_p, keep = logits.log_softmax(-1), target != ignore
  right = log_p.gather(-1, keep.where(target, 0).unsqueeze(-1)).squeeze(-1)
  return (keep.where(-(1 - smoothing) * right - smoothing * log_p.mean(-1), 0)).sum() / keep.sum()


if __name__ == "__main__":
  from tinyformer.walkthrough import main

  raise SystemExit(main())
