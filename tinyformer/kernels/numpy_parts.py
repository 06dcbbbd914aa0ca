"""Parts for minigrad: in inference, each computes in numpy what the plain part composes.

A composed function allocates an array per operation. These reuse arrays, and they read keys and
values that several heads share without repeating them. If a gradient is needed, the plain parts are
used, because these record nothing.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tinygrad import Context, Tensor, nn

import transformer
from layers.activations import ACTIVATIONS, gelu_tanh
from layers.attention import grouped_attention
from layers.parts import PLAIN
from transformer import scaled_dot_product


def needs_graph(*tensors: Any) -> bool:
  """Return whether an operation on these Tensors must be recorded, for a gradient."""
  variables: Any = Context.variables  # type: ignore[attr-defined]
  recording = variables["RECORD"] or variables["TRAINING"]
  return bool(recording) and any(t.needs_grad for t in tensors if t is not None)


def array_of(t: Any) -> np.ndarray:
  """Return the array of a Tensor of minigrad."""
  return t.data


def wrap(array: np.ndarray) -> Tensor:
  """Return a Tensor that shares the memory of an array and needs no gradient."""
  from minigrad.tensor import wrap

  return wrap(array)  # type: ignore[return-value]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
  """Return x W^T + b: (..., in), (out, in), (out) -> (..., out)."""
  if needs_graph(x, weight, bias):
    y = x @ weight.T
    return y if bias is None else y + bias
  inputs = array_of(x)
  rows = inputs.reshape(-1, inputs.shape[-1])
  product = rows @ array_of(weight).T
  if bias is not None:
    product += array_of(bias)
  return wrap(product.reshape(*inputs.shape[:-1], -1))


class NumpyLinear(transformer.Linear):
  """A transformer.Linear that adds the bias in place."""

  def __call__(self, x: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    return linear(x, self.weight, self.bias)


class NumpyLayerNorm(nn.LayerNorm):
  """An nn.LayerNorm that uses one array."""

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    weight, bias = self.weight, self.bias
    if needs_graph(x, weight, bias) or weight is None or bias is None:
      return super().__call__(x)
    y = array_of(x) - array_of(x).mean(-1, keepdims=True)
    variance = np.einsum("...i,...i->...", y, y)[..., None] / y.shape[-1]
    y *= 1 / np.sqrt(variance + np.float32(self.eps))
    y *= array_of(weight)
    y += array_of(bias)
    return wrap(y)


class NumpyRMSNorm(nn.RMSNorm):
  """An nn.RMSNorm that uses one array."""

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    if needs_graph(x, self.weight) or self.weight is None:
      return super().__call__(x)
    y = array_of(x)
    mean_square = np.einsum("...i,...i->...", y, y)[..., None] / y.shape[-1]
    return wrap(y * (1 / np.sqrt(mean_square + np.float32(self.eps))) * array_of(self.weight))


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """Return layers.attention.grouped_attention: q (B, H, T, K), k and v (B, G, S, K).

  The H / G heads that share keys are rows of one matrix product.
  """
  if similarity not in SCALES or needs_graph(q, k, v, mask):
    return grouped_attention(q, k, v, mask, similarity)
  B, H, T, K = (int(n) for n in q.shape)
  G, S = k.shape[1], k.shape[2]
  queries = array_of(q) * np.float32(SCALES[similarity](K))
  weights = queries.reshape(B, G, H // G * T, K) @ array_of(k).swapaxes(-1, -2)
  if mask is not None:
    by_head = weights.reshape(B, H, T, S)
    by_head += array_of(mask)
    weights = by_head.reshape(B, G, H // G * T, S)
  row_max = weights.max(-1, keepdims=True, initial=-np.inf)
  # If every key is masked, subtract 0: -inf minus -inf would be NaN.
  row_max[row_max == -np.inf] = 0
  weights -= row_max
  np.exp(weights, out=weights)
  row_sum = weights.sum(-1, keepdims=True)
  row_sum[row_sum == 0] = 1
  out = weights @ array_of(v)
  out /= row_sum
  return wrap(out.reshape(B, H, T, -1))


# The factor of the scores for keys of width K.
SCALES: dict[Callable, Callable[[int], float]] = {
  scaled_dot_product: lambda K: 1 / math.sqrt(K),
  transformer.dot_product: lambda K: 1.0,
}


def numpy_gelu_tanh(x: Tensor) -> Tensor:
  """Return layers.activations.gelu_tanh."""
  if needs_graph(x):
    return gelu_tanh(x)
  inputs = array_of(x)
  y = inputs * inputs
  y *= np.float32(0.044715)
  y += 1
  y *= inputs
  y *= np.float32(math.sqrt(2 / math.pi))
  np.tanh(y, out=y)
  y += 1
  y *= inputs
  y *= np.float32(0.5)
  return wrap(y)


def numpy_silu(x: Tensor) -> Tensor:
  """Return x sigmoid(x), as x (1 + tanh(x / 2)) / 2, which does not overflow."""
  if needs_graph(x):
    return x.silu()
  inputs = array_of(x)
  y = inputs * np.float32(0.5)
  half = y.copy()
  np.tanh(y, out=y)
  y += 1
  y *= half
  return wrap(y)


NUMPY = replace(
  PLAIN,
  linear=NumpyLinear,
  linear_fn=linear,
  attention=attention,
  layer_norm=NumpyLayerNorm,
  rms_norm=NumpyRMSNorm,
  activations={**ACTIVATIONS, "gelu_tanh": numpy_gelu_tanh, "silu": numpy_silu},
)
