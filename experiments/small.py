"""A small decoder-only model, and synthetic texts whose lowest possible loss is known."""

import math
from collections.abc import Callable

import numpy as np
from tinygrad import Tensor

from layers.norms import pre_norm
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.fused import materialize
from tinyformer.kernels.parts import CPU_KERNELS
from transformer import (
  Block,
  FeedForward,
  MultiHeadAttention,
  causal_mask,
  merge_heads,
  scaled_dot_product,
  split_heads,
)


class RotaryAttention(MultiHeadAttention):
  """Causal self-attention with optional rotary positions."""

  def __call__(  # type: ignore[override]
    self, x: Tensor, mask: Tensor | None = None, rope: Callable | None = None
  ) -> Tensor:
    """x (B, T, D) -> (B, T, D). rope: applied to queries and keys."""
    q, k, v = (split_heads(y, self.head_dim) for y in (self.q(x), self.k(x), self.v(x)))
    if rope:
      q, k = rope(q), rope(k)
    return self.out(merge_heads(self.attention_fn(q, k, v, mask, self.similarity)))


class Decoder:
  """A decoder-only model built from the parts passed in.

  Embeddings and output projection share one matrix, as in Vaswani et al. 2017, sec. 3.4.

  residual, attention_fn: as in Block and MultiHeadAttention.
  similarity: a function without arguments that creates the similarity of a layer.
  mask: (T, S) -> an additive mask (T, S), or None.
  """

  def __init__(  # noqa: PLR0913
    self,
    vocab_size: int,
    dim: int,
    heads: int,
    num_layers: int,
    residual: Callable = pre_norm,
    similarity: Callable = lambda: scaled_dot_product,
    mask: Callable = causal_mask,
    attention_fn: Callable = CPU_KERNELS.attention,
  ):
    linear = CPU_KERNELS.linear
    norm = CPU_KERNELS.layer_norm
    self.tokens = CPU_KERNELS.embedding(vocab_size, dim)
    self.tokens.weight = Tensor.normal(vocab_size, dim, std=dim**-0.5)
    self.blocks = [
      Block(
        RotaryAttention(dim, heads, linear, similarity(), attention_fn),
        FeedForward(dim, 4 * dim, linear=linear),
        lambda: norm(dim),
        residual,
      )
      for _ in range(num_layers)
    ]
    self.norm = norm(dim)
    self.dim = dim
    self.mask = mask

  def __call__(
    self,
    ids: Tensor,
    positions: Tensor | None = None,
    rope: Callable | None = None,
    bias: Tensor | None = None,
  ) -> Tensor:
    """Return logits (B, T, V) for the token after each of the ids (B, T).

    positions: (T, D), added to the embeddings.
    rope: applied to queries and keys.
    bias: (H, T, T), added to the attention scores.
    """
    T = ids.shape[1]
    x = self.tokens(ids) * math.sqrt(self.dim)
    x = materialize(x if positions is None else x + positions)
    mask = self.mask(T, T)
    if bias is not None:
      mask = materialize(bias if mask is None else mask + bias)
    for block in self.blocks:
      x = block(x, mask=mask, rope=rope)
    return self.tokens.as_linear(self.norm(x))


def token_losses(model: Callable) -> CompiledStep:
  """Return a compiled step that computes the loss of each token in nats (B, T).

  The arguments of the step are the model's arguments, then the target ids (B, T).
  """

  def step(*batch: Tensor) -> Tensor:
    *inputs, target = batch
    log_p = model(*inputs).log_softmax(-1)
    return -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1).realize()

  return CompiledStep(step)


# **************** random sequences and their reversals ****************

START_ID = 0
NUM_SYMBOLS = 10  # their ids are 1 to 10
CHANCE_LOSS = math.log(NUM_SYMBOLS)  # nats per symbol at chance level


def random_sequences(count: int, length: int, *seed: int) -> np.ndarray:
  """Return sequences (count, length) of independent, uniformly distributed symbols."""
  symbols = np.random.default_rng(seed).integers(1, NUM_SYMBOLS + 1, (count, length))
  return symbols.astype(np.int32)


def shift_right(target: np.ndarray) -> np.ndarray:
  """Return the decoder's input for a target (B, T): the start id, then all but the last symbol."""
  return np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=START_ID)


def reversal_batch(length: int, *seed: int, count: int = 64) -> tuple[np.ndarray, ...]:
  """Return source, decoder input and target of the reversal task, (count, length) each."""
  source = random_sequences(count, length, *seed)
  target = source[:, ::-1].copy()
  return source, shift_right(target), target


def palindrome_batch(length: int, *seed: int, count: int = 64) -> tuple[np.ndarray, ...]:
  """Return decoder input and target, (count, 2 length) each: sequences, then their reversals."""
  source = random_sequences(count, length, *seed)
  text = np.concatenate([source, source[:, ::-1]], 1)
  return shift_right(text), text


# **************** a second-order Markov chain ****************

# The favorite follows a pair of symbols with this probability. Otherwise any symbol may follow.
FAVORITE_PROBABILITY = 0.8
# (first symbol, second symbol) -> the favorite of the pair
FAVORITES = (
  np.random.default_rng(0)
  .integers(1, NUM_SYMBOLS + 1, (NUM_SYMBOLS + 1, NUM_SYMBOLS + 1))
  .astype(np.int32)
)


def entropy_rate() -> float:
  """Return the entropy of a symbol given the two before it: the lowest possible loss, in nats."""
  p_other = (1 - FAVORITE_PROBABILITY) / NUM_SYMBOLS
  distribution = [FAVORITE_PROBABILITY + p_other] + [p_other] * (NUM_SYMBOLS - 1)
  return -sum(p * math.log(p) for p in distribution)


ENTROPY_RATE = entropy_rate()


def markov_batch(length: int, *seed: int, count: int = 32) -> tuple[np.ndarray, ...]:
  """Return decoder input and target, (count, length) each, of texts from the Markov chain."""
  rng = np.random.default_rng(seed)
  text = rng.integers(1, NUM_SYMBOLS + 1, (count, length + 1)).astype(np.int32)
  is_favorite = rng.random(text.shape) < FAVORITE_PROBABILITY
  for t in range(2, length + 1):
    favorite = FAVORITES[text[:, t - 2], text[:, t - 1]]
    text[:, t] = np.where(is_favorite[:, t], favorite, text[:, t])
  return text[:, :-1].copy(), text[:, 1:].copy()
