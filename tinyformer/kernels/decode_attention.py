"""Attention to a KV cache, as one kernel for any device with workgroups.

tinygrad's own kernels for it are five: the scores, their maximum, their sum, the weights, and the
weighted mean of the values. Here, a workgroup does all of this for one head, and a few queries, so
that no buffer holds all scores. Long caches are split into parts, whose results a second kernel
combines (Dao et al. 2023, "Flash-Decoding").
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

from tinygrad import Tensor, UOp

from tinyformer.kernels import fused, workgroup
from tinyformer.kernels.attention import cache_buffers
from tinyformer.kernels.tinygrad_internals import AxisType, KernelInfo, Ops
from tinyformer.kernels.workgroup import (
  MAX_THREADS,
  contiguous_buffer,
  fold,
  local_memory,
  static_shape,
)
from transformer import dot_product, scaled_dot_product

# The number of keys whose scores are kept in local memory for a single query. For several queries,
# it is half, so that a workgroup needs at most 16 KiB.
MAX_KEYS = 1024
# The number of queries for which a workgroup reads the keys once.
QUERIES = 4
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

  q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K). The kernel is for keys in a KV cache, which
  has no gradient. All other calls are passed on to fused.attention.
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
  """Return softmax(scale * q k^T + mask) v.

  q (B, H, T, K); buffers of keys and values (B, G, rows, K), of which the first `keys` rows are
  used and each head serves H / G heads of q; the mask broadcasts to (B, H, T, keys)
  -> (B, H, T, K). At least one key of each query must not be masked.
  """
  B, H, T, K = static_shape(q)
  queries = min(T, QUERIES)
  parts = -(-keys // (MAX_KEYS if queries == 1 else MAX_KEYS // 2))
  masks = [] if mask is None else [mask.reshape(*[1] * (4 - mask.ndim), *mask.shape).contiguous()]
  means = Tensor.empty(B, H, T, parts, K, device=q.device)
  statistics = Tensor.empty(B, H, T, parts, 2, device=q.device)
  function = part_kernel(scale, keys, queries)
  means, statistics, *_ = means.custom_kernel(
    statistics, contiguous_buffer(q), *buffers, *masks, fxn=function
  )
  if parts == 1:
    return means.reshape(B, H, T, K)
  out = Tensor.empty(B, H, T, K, device=q.device)
  return out.custom_kernel(means, statistics, fxn=combine_kernel)[0]


class Workgroup(NamedTuple):
  """What a workgroup computes: attention of some queries of one head to a part of the keys.

  text, head, kv_head, part, thread: indices.  queries: the indices of its queries.
  parts: the number of parts of the `keys`.  threads: the number of work items.
  """

  text: UOp
  head: UOp
  kv_head: UOp
  part: UOp
  thread: UOp
  queries: list[UOp]
  parts: int
  keys: int
  threads: int

  @property
  def part_size(self) -> int:
    """Return the number of keys in a part. The last part may have fewer."""
    return -(-self.keys // self.parts)

  @property
  def steps(self) -> int:
    """Return the number of keys of which a work item computes the scores."""
    return -(-self.part_size // self.threads)

  def row(self, key: UOp) -> UOp:
    """Return the row of a key of this part. The keys that do not exist share the last row."""
    return (self.part * self.part_size + key).minimum(self.keys - 1)

  def exists(self, key: UOp) -> UOp:
    """Return whether there is a key with this index in this part."""
    return (key < self.part_size) & (self.part * self.part_size + key < self.keys)

  def slot(self, n: int, step: UOp) -> UOp:
    """Return the index in local memory of the work item's score of its n-th query."""
    return (n * self.steps + step) * self.threads + self.thread


def part_kernel(scale: float, keys: int, num_queries: int) -> Callable:
  """Return the kernel that computes attention to each part of the keys.

  Its outputs are the weighted means of the values (B, H, T, parts, K), and for each part the
  maximum of the scores and the sum of exp(score - maximum) (B, H, T, parts, 2). A workgroup reads
  the keys and values of a part once for this number of queries.
  """

  def program(means: UOp, statistics: UOp, q: UOp, k: UOp, v: UOp, *masks: UOp) -> UOp:
    B, H, T, parts, K = static_shape(means)
    threads = MAX_THREADS // K * K
    index = UOp.range(B * H, 0, AxisType.GLOBAL)
    part = UOp.range(parts, 1, AxisType.GLOBAL)
    block = UOp.range(-(-T // num_queries), 2, AxisType.GLOBAL)
    thread = UOp.range(threads, 3, AxisType.LOCAL)
    text, head = index // H, index % H
    kv_head = head // (H // static_shape(k)[1])
    # The last workgroup may compute the last query several times.
    queries = [(block * num_queries + n).minimum(T - 1) for n in range(num_queries)]
    work = Workgroup(text, head, kv_head, part, thread, queries, parts, keys, threads)
    scores = store_scores(work, q, k, masks, scale)
    weights, highest, totals = store_weights(work, scores)
    stores = []
    for n, value in enumerate(weighted_sums(work, weights, v)):
      mean = value / (totals[n] > 0).where(totals[n], 1.0)
      query = (text, head, queries[n], part)
      stores += [
        means[*query, thread % K].store(mean),
        statistics[*query, 0].store(highest[n]),
        statistics[*query, 1].store(totals[n]),
      ]
    info = KernelInfo(name=f"attention_{B * H}_{T}_{keys}_{K}", opts_to_apply=())
    return UOp.group(*stores).end(thread, block, part, index).sink(arg=info)

  return program


def store_scores(work: Workgroup, q: UOp, k: UOp, masks: tuple[UOp, ...], scale: float) -> UOp:
  """Return local memory with the scores. They are -inf for keys that do not exist."""
  step = UOp.range(work.steps, 4, AxisType.LOOP)
  key = step * work.threads + work.thread
  row = work.row(key)
  scores = local_memory(0, len(work.queries) * work.steps * work.threads)
  stores = []
  for n, query in enumerate(work.queries):
    score = dot(q[work.text, work.head, query], k[work.text, work.kv_head, row]) * scale
    for mask in masks:
      sizes = static_shape(mask)
      indices = (work.text, work.head, query)
      broadcast = [i if size > 1 else 0 for i, size in zip(indices, sizes, strict=False)]
      score = score + mask[*broadcast, row]
    stores.append(scores[work.slot(n, step)].store(work.exists(key).where(score, -math.inf)))
  return scores.after(UOp.group(*stores).end(step).barrier())


def store_weights(work: Workgroup, scores: UOp) -> tuple[UOp, list[UOp], list[UOp]]:
  """Replace the scores by weights exp(score - maximum), and return the maxima and sums too."""

  def fold_scores(op: Ops, buffer: UOp, slot: int, axis: int) -> list[UOp]:
    """Return the maximum or sum of each query's numbers in a buffer like `scores`."""

    def number(n: int, step: UOp) -> UOp:
      return buffer[work.slot(n, step)]

    queries = range(len(work.queries))
    own = [fold(op, work.steps, axis, functools.partial(number, n)) for n in queries]
    results = local_memory(slot, len(own) * work.threads)
    return fold_rows(op, own, work.thread, results, axis + 1)

  highest = [value.maximum(LOWEST) for value in fold_scores(Ops.MAX, scores, 1, 6)]
  step = UOp.range(work.steps, 8, AxisType.LOOP)
  stores = []
  for n, maximum in enumerate(highest):
    score = scores[work.slot(n, step)]
    stores.append(score.store((score - maximum).exp()))
  weights = scores.after(UOp.group(*stores).end(step).barrier())
  return weights, highest, fold_scores(Ops.ADD, weights, 2, 9)


def weighted_sums(work: Workgroup, weights: UOp, v: UOp) -> list[UOp]:
  """Return the work item's component of the weighted sum of the values, for each query."""
  K = static_shape(v)[3]
  groups = work.threads // K  # work items that share one component, and add up some of the keys
  component = work.thread % K

  def weighted_value(n: int, step: UOp) -> UOp:
    key = step * groups + work.thread // K
    weight = weights[n * work.steps * work.threads + key]
    return weight * v[work.text, work.kv_head, work.row(key), component]

  values = local_memory(3, len(work.queries) * work.threads)
  stores = []
  for n in range(len(work.queries)):
    value = fold(Ops.ADD, -(-work.part_size // groups), 11, functools.partial(weighted_value, n))
    stores.append(values[n * work.threads + work.thread].store(value))
  written = values.after(UOp.group(*stores).barrier())

  def group_value(n: int, i: UOp) -> UOp:
    return written[n * work.threads + i * K + component]

  return [
    fold(Ops.ADD, groups, 12, functools.partial(group_value, n)) for n in range(len(work.queries))
  ]


def fold_rows(op: Ops, values: list[UOp], thread: UOp, buffer: UOp, axis: int) -> list[UOp]:
  """Return the sum or maximum of the work items' numbers for each of several values.

  buffer: local memory with a number for each work item and value. axis: the number of the loop.
  """
  threads = static_shape(buffer)[0] // len(values)
  stores = [buffer[n * threads + thread].store(value) for n, value in enumerate(values)]
  written = buffer.after(UOp.group(*stores).barrier())

  def number(n: int, i: UOp) -> UOp:
    return written[n * threads + i]

  return [fold(op, threads, axis, functools.partial(number, n)) for n in range(len(values))]


def dot(a: UOp, b: UOp) -> UOp:
  """Return the dot product of two vectors (K)."""
  [K] = static_shape(a)
  width = 4 if K % 4 == 0 else 1  # components that are loaded together

  def products(i: UOp) -> UOp:
    components = [i * width + j for j in range(width)]
    return functools.reduce(operator.add, [a[n] * b[n] for n in components])

  return fold(Ops.ADD, K // width, 5, products)


def combine_kernel(out: UOp, means: UOp, statistics: UOp) -> UOp:
  """Combine part_kernel's means (B, H, T, parts, K) into attention to all keys (B, H, T, K)."""
  B, H, T, parts, K = static_shape(means)
  head = UOp.range(B * H, 0, AxisType.GLOBAL)
  t = UOp.range(T, 1, AxisType.GLOBAL)
  component = UOp.range(K, 2, AxisType.LOCAL)
  b, h = head // H, head % H
  highest = fold(Ops.MAX, parts, 3, lambda i: statistics[b, h, t, i, 0])

  def total(part: UOp) -> UOp:
    return (statistics[b, h, t, part, 0] - highest).exp() * statistics[b, h, t, part, 1]

  value = fold(Ops.ADD, parts, 4, lambda i: total(i) * means[b, h, t, i, component])
  mean = value / fold(Ops.ADD, parts, 5, total)
  info = KernelInfo(name=f"combine_attention_{B * H}_{T}_{parts}_{K}", opts_to_apply=())
  return out[b, h, t, component].store(mean).end(component, t, head).sink(arg=info)
