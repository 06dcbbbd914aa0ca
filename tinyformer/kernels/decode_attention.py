"""Attention of single queries to a KV cache, as one kernel for any device with workgroups.

tinygrad's own kernels for it are five: the scores, their maximum, their sum, the weights, and the
weighted mean of the values. Here, a workgroup does all of this for one head. Long caches are split
into parts, whose results a second kernel combines (Dao et al. 2023, "Flash-Decoding").
"""

import functools
import math
import operator
from collections.abc import Callable

from tinygrad import Tensor, UOp

from tinyformer.kernels import fused, workgroup
from tinyformer.kernels.attention import cache_buffers
from tinyformer.kernels.tinygrad_internals import AxisType, KernelInfo, Ops
from tinyformer.kernels.workgroup import (
  MAX_THREADS,
  contiguous_buffer,
  fold,
  fold_workgroup,
  local_memory,
  static_shape,
)
from transformer import dot_product, scaled_dot_product

# The number of keys whose scores are kept in local memory.
MAX_KEYS = 1024
# exp(-inf - LOWEST) is 0, as is the weight of a part without keys, but exp(-inf + inf) is NaN.
LOWEST = -1e30


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """Return fused.attention(q, k, v, mask, similarity), computed by one kernel if possible.

  q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K). The kernel is for a single query (T = 1) and
  keys in a KV cache, which has no gradient. All other calls are passed on to fused.attention.
  """
  if not supports(q, k, v, mask, similarity):
    return fused.attention(q, k, v, mask, similarity)
  scale = 1.0 if similarity is dot_product else int(q.shape[3]) ** -0.5
  return decode_attention(q, cache_buffers(k, v), mask, scale, int(k.shape[2]))


def supports(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, similarity: Callable) -> bool:
  """Return whether the kernel computes `attention` for these arguments."""
  return (
    similarity in (scaled_dot_product, dot_product)
    and all(is_stored(x) for x in (k, v))
    and workgroup.supports(q, k, v, *([] if mask is None else [mask]))
    and static_shape(q)[2] == 1
    and static_shape(q)[3] <= MAX_THREADS
  )


def is_stored(x: Tensor) -> bool:
  """Return whether keys or values are rows of a buffer, and not the result of a computation."""
  u = x.uop
  while u.op in (Ops.SHRINK, Ops.RESHAPE):
    u = u.src[0]
  return u.op in (Ops.AFTER, Ops.BUFFER)


def decode_attention(
  q: Tensor, buffers: tuple[Tensor, Tensor], mask: Tensor | None, scale: float, keys: int
) -> Tensor:
  """Return softmax(scale * q k^T + mask) v for single queries.

  q (B, H, 1, K); buffers of keys and values (B, G, rows, K), of which the first `keys` rows are
  used and each head serves H / G heads of q; the mask broadcasts to (B, H, 1, keys)
  -> (B, H, 1, K). At least one key of each query must not be masked.
  """
  B, H, _, K = static_shape(q)
  parts = -(-keys // MAX_KEYS)
  masks = [] if mask is None else [mask.reshape(*[1] * (4 - mask.ndim), *mask.shape).contiguous()]
  means = Tensor.empty(B, H, parts, K, device=q.device)
  statistics = Tensor.empty(B, H, parts, 2, device=q.device)
  function = part_kernel(scale, keys, parts)
  means, statistics, *_ = means.custom_kernel(
    statistics, contiguous_buffer(q), *buffers, *masks, fxn=function
  )
  if parts == 1:
    return means
  out = Tensor.empty(B, H, 1, K, device=q.device)
  return out.custom_kernel(means, statistics, fxn=combine_kernel)[0]


def part_kernel(scale: float, keys: int, parts: int) -> Callable:
  """Return the kernel that computes attention to each part of the keys.

  Its outputs are the weighted means of the values (B, H, parts, K), and for each part the maximum
  of the scores and the sum of exp(score - maximum) (B, H, parts, 2).
  """
  size = -(-keys // parts)

  def program(means: UOp, statistics: UOp, q: UOp, k: UOp, v: UOp, *masks: UOp) -> UOp:
    B, H, _, K = static_shape(q)
    groups = MAX_THREADS // K  # work items that share one component of the output
    threads = K * groups
    steps = -(-size // threads)
    head = UOp.range(B * H, 0, AxisType.GLOBAL)
    part = UOp.range(parts, 1, AxisType.GLOBAL)
    thread = UOp.range(threads, 2, AxisType.LOCAL)
    b, h = head // H, head % H
    g = h // (H // static_shape(k)[1])

    def row(key: UOp) -> UOp:
      """Return the row of a key of this part. The keys that do not exist share the last row."""
      return (part * size + key).minimum(keys - 1)

    # 1. The scores. They are -inf for keys that do not exist, which therefore have no weight.
    step = UOp.range(steps, 3, AxisType.LOOP)
    key = step * threads + thread
    score = score_of(q, k, (b, h, g), row(key)) * scale
    for mask in masks:
      B_mask, H_mask, *_ = static_shape(mask)
      score = score + mask[b if B_mask > 1 else 0, h if H_mask > 1 else 0, 0, row(key)]
    score = ((key < size) & (part * size + key < keys)).where(score, -math.inf)
    scores = local_memory(0, steps * threads)
    scores = scores.after(scores[key].store(score).end(step).barrier())
    # 2. Their maximum, and the sum of the weights.
    highest = fold(Ops.MAX, steps, 5, lambda i: scores[i * threads + thread])
    highest = fold_workgroup(Ops.MAX, highest, thread, local_memory(1, threads), 6).maximum(LOWEST)
    total = fold(Ops.ADD, steps, 7, lambda i: (scores[i * threads + thread] - highest).exp())
    total = fold_workgroup(Ops.ADD, total, thread, local_memory(2, threads), 8)

    # 3. The weighted mean of the values. Each group of work items adds up some of the keys.
    def weighted_value(step: UOp) -> UOp:
      key = step * groups + thread // K
      return (scores[key] - highest).exp() * v[b, g, row(key), thread % K]

    value = fold(Ops.ADD, -(-size // groups), 9, weighted_value)
    values = local_memory(3, threads)
    values = values.after(values[thread].store(value).barrier())
    value = fold(Ops.ADD, groups, 10, lambda i: values[i * K + thread % K])
    stores = UOp.group(
      means[b, h, part, thread % K].store(value / (total > 0).where(total, 1.0)),
      statistics[b, h, part, 0].store(highest),
      statistics[b, h, part, 1].store(total),
    )
    info = KernelInfo(name=f"decode_attention_{B * H}_{keys}_{K}", opts_to_apply=())
    return stores.end(thread, part, head).sink(arg=info)

  return program


def score_of(q: UOp, k: UOp, indices: tuple[UOp, UOp, UOp], row: UOp) -> UOp:
  """Return the dot product of a query and a key. indices: text, query head and key head."""
  b, h, g = indices
  K = static_shape(q)[3]
  width = 4 if K % 4 == 0 else 1  # components that are loaded together

  def products(i: UOp) -> UOp:
    components = [i * width + j for j in range(width)]
    return functools.reduce(operator.add, [q[b, h, 0, n] * k[b, g, row, n] for n in components])

  return fold(Ops.ADD, K // width, 4, products)


def combine_kernel(out: UOp, means: UOp, statistics: UOp) -> UOp:
  """Combine part_kernel's means (B, H, parts, K) into attention to all keys (B, H, 1, K)."""
  B, H, parts, K = static_shape(means)
  head = UOp.range(B * H, 0, AxisType.GLOBAL)
  component = UOp.range(K, 1, AxisType.LOCAL)
  b, h = head // H, head % H
  highest = fold(Ops.MAX, parts, 2, lambda i: statistics[b, h, i, 0])

  def total(part: UOp) -> UOp:
    return (statistics[b, h, part, 0] - highest).exp() * statistics[b, h, part, 1]

  value = fold(Ops.ADD, parts, 3, lambda i: total(i) * means[b, h, i, component])
  mean = value / fold(Ops.ADD, parts, 4, total)
  info = KernelInfo(name=f"combine_attention_{B * H}_{parts}_{K}", opts_to_apply=())
  return out[b, h, 0, component].store(mean).end(component, head).sink(arg=info)
