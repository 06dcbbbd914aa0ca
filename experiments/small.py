"""The small decoder that experiments learn with, and the texts that it learns: made by lot, so that what can be known of them is known."""

import math
from collections.abc import Callable

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.parts import CPU_KERNELS
from transformer import (
  Block,
  FeedForward,
  MultiHeadAttention,
  add_positions,
  causal_mask,
  pre_norm,
  scaled_dot_product,
  materialize,
)


class Decoder:
  """A decoder of the parts that are handed in; its embeddings are as the paper has them (3.4).

  residual, attend: as in Block and MultiHeadAttention.  similarity: makes one for each layer.  mask: (T, S) -> (T, S) or None.
  """

  def __init__(
    self,
    vocab: int,
    dim: int,
    heads: int,
    layers: int,
    residual: Callable = pre_norm,
    similarity: Callable = lambda: scaled_dot_product,
    mask: Callable = causal_mask,
    attention_fn: Callable = CPU_KERNELS["attention_fn"],
  ):
    linear, norm = CPU_KERNELS["linear"], CPU_KERNELS["layer_norm"]
    self.tokens = nn.Embedding(vocab, dim)
    self.tokens.weight = Tensor.normal(vocab, dim, std=dim**-0.5)
    self.blocks = [
      Block(
        MultiHeadAttention(dim, heads, linear, similarity(), attention_fn),
        FeedForward(dim, 4 * dim, linear=linear),
        lambda: norm(dim),
        residual,
      )
      for _ in range(layers)
    ]
    self.norm, self.product, self.dim, self.mask = norm(dim), linear.product, dim, mask

  def __call__(
    self,
    ids: Tensor,
    positions: Tensor | None = None,
    rope: Callable | None = None,
    bias: Tensor | None = None,
  ) -> Tensor:
    """ids (B, T) -> logits (B, T, V) for what follows each. positions (T, D): added.  turn: of queries and keys.  bias (H, T, T): added to the scores."""
    x, mask = self.tokens(ids) * math.sqrt(self.dim), self.mask(ids.shape[1], ids.shape[1])
    x = materialize(x if positions is None else add_positions(x, positions))
    if bias is not None:
      mask = materialize(bias if mask is None else mask + bias)
    for block in self.blocks:
      x = block(x, mask=mask, rope=rope)
    return self.product(materialize(self.norm(x)), self.tokens.weight)


def losses(model: Callable) -> CompiledStep:
  """A traced step that measures: what the model takes, and the symbols that follow, (B, T) -> nats at each place (B, T)."""
  return CompiledStep(
    lambda *batch: (
      -model(*batch[:-1]).log_softmax(-1).gather(-1, batch[-1].unsqueeze(-1)).squeeze(-1).realize()
    )
  )


# **************** sequences and their reversals ****************

START, SYMBOLS = 0, 10  # the symbols are 1 to 10


def sequences(count: int, length: int, *seed: int) -> np.ndarray:
  """(count, length): each symbol by lot."""
  return np.random.default_rng(seed).integers(1, SYMBOLS + 1, (count, length)).astype(np.int32)


def shifted(target: np.ndarray) -> np.ndarray:
  """What a decoder reads as it learns to write the target (B, T): the same, one place later."""
  return np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=START)


def reversal(length: int, *seed: int, count: int = 64) -> tuple[np.ndarray, ...]:
  """Sequences, what a decoder reads, and what it shall write: their reversals. (count, length) each."""
  source = sequences(count, length, *seed)
  target = source[:, ::-1].copy()
  return source, shifted(target), target


def palindromes(length: int, *seed: int, count: int = 64) -> tuple[np.ndarray, ...]:
  """Sequences followed by their reversals as one text: what a decoder reads, and what it shall write. (count, 2 length) each."""
  source = sequences(count, length, *seed)
  text = np.concatenate([source, source[:, ::-1]], 1)
  return shifted(text), text


# **************** a text that its last two symbols foretell ****************

FAVOUR = 0.8
FAVOURITE = (
  np.random.default_rng(0).integers(1, SYMBOLS + 1, (SYMBOLS + 1, SYMBOLS + 1)).astype(np.int32)
)
FLOOR = -sum(
  p * math.log(p)
  for p in [FAVOUR + (1 - FAVOUR) / SYMBOLS] + [(1 - FAVOUR) / SYMBOLS] * (SYMBOLS - 1)
)  # nats a symbol: nobody foretells it better


def markov(length: int, *seed: int, count: int = 32) -> tuple[np.ndarray, ...]:
  """Texts whose next symbol is, four times out of five, the favourite of the last two, else one by lot: what a decoder reads, and what it shall write."""
  draw = np.random.default_rng(seed)
  text = draw.integers(1, SYMBOLS + 1, (count, length + 1)).astype(np.int32)
  favoured = draw.random(text.shape) < FAVOUR
  for t in range(2, length + 1):
    text[:, t] = np.where(favoured[:, t], FAVOURITE[text[:, t - 2], text[:, t - 1]], text[:, t])
  return text[:, :-1].copy(), text[:, 1:].copy()
