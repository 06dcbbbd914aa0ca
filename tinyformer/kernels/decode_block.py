"""Parts of a block for the next token of one text, in fewer kernels than tinygrad's own.

A projection of a single token is a kernel, and so is RoPE. Here, one kernel computes queries, keys
and values with RoPE, and another computes both products of a gated feed-forward network.
"""

import copy
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tinygrad import Tensor, UOp, dtypes

from layers.attention import CachedAttention
from layers.feedforward import GatedFeedForward
from tinyformer.kernels import fused, workgroup
from tinyformer.kernels.decode_linear import READABLE, THREADS, row_scale
from tinyformer.kernels.tinygrad_internals import AxisType, KernelInfo, Ops
from tinyformer.kernels.workgroup import (
  contiguous_buffer,
  fold,
  fold_workgroup,
  local_memory,
  static_shape,
)
from transformer import merge_heads, split_heads


def decode_block(block: Any) -> Any:
  """Return a block that computes what this one does, in fewer kernels for a single token."""
  copied = copy.copy(block)
  if type(block.attn) is CachedAttention:
    copied.attn = DecodeAttention(block.attn)
  if type(block.ff) is GatedFeedForward:
    copied.ff = DecodeFeedForward(block.ff)
  return copied


def supports(x: Tensor, *modules: Any) -> bool:
  """Return whether the kernels compute these projections of x (B, T, D): one text and token."""
  kinds = {(m.weight.dtype, m.bias is None) for m in modules}
  return (
    static_shape(x)[:2] == (1, 1)
    and len(kinds) == 1
    and modules[0].weight.dtype in READABLE
    and workgroup.supports(x)
  )


class DecodeAttention:
  """A CachedAttention whose projections and RoPE are one kernel for a single token."""

  def __init__(self, attn: CachedAttention):
    self.attn = attn

  def __call__(self, x: Tensor, memory=None, mask=None, cache=None, rope=None) -> Tensor:
    """x (B, T, D) -> (B, T, D). The arguments are those of CachedAttention."""
    attn = self.attn
    is_rope = isinstance(rope, functools.partial) and rope.func is fused.apply_rope
    is_supported = supports(x, attn.q, attn.k, attn.v)
    # tinygrad drops a condition that only one head meets, even of a store.
    if memory is not None or not is_rope or attn.kv_heads == 1 or not is_supported:
      return attn(x, memory, mask, cache, rope)
    q, k, v = queries_keys_values(attn, x, rope.keywords["cos"], rope.keywords["sin"])
    if cache:
      k, v = cache(k, v)
    return attn.out(merge_heads(attn.attention_fn(q, k, v, mask)))


class DecodeFeedForward:
  """A GatedFeedForward whose first two products are one kernel for a single token."""

  def __init__(self, ff: GatedFeedForward):
    self.ff = ff

  def __call__(self, x: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    ff = self.ff
    activation = getattr(ff.activation, "args", [None])[0]
    if activation is None or x.ndim != 3 or not supports(x, ff.gate, ff.up):
      return ff(x)
    return ff.down(gated_product(ff, x, activation))


def queries_keys_values(attn: CachedAttention, x: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
  """Return q (1, H, 1, K), k and v (1, G, 1, K) of x (1, 1, D), with RoPE of q and k.

  cos and sin (1, K / 2) are those of the position.
  """
  projections = (attn.q, attn.k, attn.v)
  outputs = [Tensor.empty(1, 1, p.weight.shape[0], device=x.device) for p in projections]
  angles = [contiguous_buffer(t.reshape(-1)) for t in (cos, sin)]
  inputs = [contiguous_buffer(x.reshape(-1)), *angles, *parameters(projections)]
  kernel = rope_kernel(attn.head_dim)
  outputs = outputs[0].custom_kernel(*outputs[1:], *inputs, fxn=kernel)[:3]
  return [split_heads(y, attn.head_dim) for y in outputs]


def gated_product(ff: GatedFeedForward, x: Tensor, activation: Callable) -> Tensor:
  """Return activation(gate(x)) * up(x) (1, 1, F) for x (1, 1, D)."""
  projections = (ff.gate, ff.up)
  out = Tensor.empty(1, 1, static_shape(ff.up.weight)[0], device=x.device)
  inputs = [contiguous_buffer(x.reshape(-1)), *parameters(projections)]
  return out.custom_kernel(*inputs, fxn=gated_kernel(activation))[0]


def parameters(projections: tuple[Any, ...]) -> list[Tensor]:
  """Return the weights, and then the biases if there are any."""
  tensors = [p.weight for p in projections] + [p.bias for p in projections]
  return [contiguous_buffer(t) for t in tensors if t is not None]


def rope_kernel(head_dim: int) -> Callable:
  """Return the kernel in which a workgroup computes two components that RoPE rotates together."""

  def program(*buffers: UOp) -> UOp:
    outputs, (x, cos, sin), parameters = buffers[:3], buffers[3:6], buffers[6:]
    weights, biases = parameters[:3], parameters[3:]
    heads = [static_shape(weight)[0] // head_dim for weight in weights]
    head = UOp.range(sum(heads), 0, AxisType.GLOBAL)
    pair = UOp.range(head_dim // 2, 1, AxisType.GLOBAL)
    thread = UOp.range(THREADS, 2, AxisType.LOCAL)

    # Whether the head is one of q, of k and of v, and its index among those.
    firsts = [sum(heads[:i]) for i in range(3)]
    is_own = [(head >= n) & (head < n + count) for n, count in zip(firsts, heads, strict=True)]
    own_head = [head - first for first in firsts]

    def rows(component: UOp) -> list[UOp]:
      """Return the component's row in the weights of q, k and v, two of which are invalid."""
      return [
        (own_head[i] * head_dim + component).valid(condition) for i, condition in enumerate(is_own)
      ]

    first, second = rows(pair), rows(pair + head_dim // 2)
    matrices = Matrices(x, weights, biases, is_own)
    a, b = (row_product(matrices, rows, thread, i) for i, rows in enumerate((first, second)))
    has_rope = head < heads[0] + heads[1]
    c, s = has_rope.where(cos[pair], 1.0), has_rope.where(sin[pair], 0.0)
    stores = []
    for i, out in enumerate(outputs):
      stores.append(out[0, 0, first[i]].store(a * c - b * s))
      stores.append(out[0, 0, second[i]].store(b * c + a * s))
    info = KernelInfo(name=f"qkv_rope_{sum(heads)}_{head_dim}_{x.shape[0]}", opts_to_apply=())
    return UOp.group(*stores).end(thread, pair, head).sink(arg=info)

  return program


def gated_kernel(activation: Callable) -> Callable:
  """Return the kernel in which a workgroup computes activation(gate(x)) * up(x)."""

  def program(out: UOp, x: UOp, gate: UOp, up: UOp, *biases: UOp) -> UOp:
    row = UOp.range(static_shape(up)[0], 0, AxisType.GLOBAL)
    thread = UOp.range(THREADS, 1, AxisType.LOCAL)
    values = [
      row_product(Matrices(x, [weight], biases[i : i + 1], [UOp.const(True)]), [row], thread, i)
      for i, weight in enumerate((gate, up))
    ]
    store = out[0, 0, row].store(activation(values[0]) * values[1])
    info = KernelInfo(name=f"gated_{up.shape[0]}_{x.shape[0]}", opts_to_apply=())
    return store.end(thread, row).sink(arg=info)

  return program


class Matrices(NamedTuple):
  """A vector x (K), weights to multiply by it, and their biases, if there are any.

  Only one weight is multiplied: that whose condition is true.
  """

  x: UOp
  weights: Sequence[UOp]
  biases: Sequence[UOp]
  conditions: Sequence[UOp]

  def total(self, values: Sequence[UOp]) -> UOp:
    """Return the value of the weight that is multiplied."""
    own = [c.where(value, 0) for c, value in zip(self.conditions, values, strict=True)]
    return functools.reduce(operator.add, own)


def row_product(matrices: Matrices, rows: Sequence[UOp], thread: UOp, slot: int) -> UOp:
  """Return a component of the product, which the work items compute together.

  rows: the row to multiply of each weight.
  """
  x, weights, biases, _ = matrices
  total = matrices.total
  [K] = static_shape(x)

  def term(step: UOp) -> UOp:
    k = step * THREADS + thread
    last = k.minimum(K - 1)
    values = [w[row, last].cast(dtypes.float32) for w, row in zip(weights, rows, strict=True)]
    return (k < K).where(x[last] * total(values), 0.0)

  value = fold(Ops.ADD, -(-K // THREADS), 10, term)
  value = fold_workgroup(Ops.ADD, value, thread, local_memory(slot, THREADS), 11 + slot)
  if weights[0].dtype == dtypes.int8:
    value = value * total([row_scale(w, row, K) for w, row in zip(weights, rows, strict=True)])
  if biases:
    value = value + total([bias[row] for bias, row in zip(biases, rows, strict=True)])
  return value
