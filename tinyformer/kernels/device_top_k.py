"""Select the largest logits on any device with workgroups, so that few numbers leave it.

Each workgroup ranks a chunk of the logits: the rank of one is the number of those that precede it.
The largest ones of all chunks are then ranked in the same way, until one chunk remains.
"""

import math

import numpy as np
from tinygrad import Device, Tensor, UOp, dtypes

from tinyformer.kernels import workgroup
from tinyformer.kernels.tinygrad_internals import AxisType, KernelInfo, Ops
from tinyformer.kernels.workgroup import contiguous_buffer, fold, local_memory, static_shape

# The number of logits that a workgroup ranks, and of its work items.
CHUNK = 512
THREADS = 128
# The largest top k. It is smaller than a chunk, so that each step leaves fewer logits.
MAX_TOP_K = 255
# Indices are float32 numbers, which are exact up to this one.
MAX_VOCAB_SIZE = 1 << 24


class DeviceTopK:
  """Selects the largest logits of a batch on the device, and expands them to all logits again.

  Logits that are equal to the smallest of the top k belong to them, whatever their number. One more
  candidate than k shows whether there are any. If so, all logits are read.
  """

  def __init__(self, batch: int, vocab_size: int, top_k: int):
    # The number of candidates, a power of two above top_k.
    self.count = 1 << top_k.bit_length()
    self.top_k = top_k
    # All logits of the last step.
    self.logits = Tensor.empty(batch, vocab_size).realize()

  def select(self, logits: Tensor) -> Tensor:
    """Return the candidates of logits (B, ..., V): values and indices (B, 2, count), sorted."""
    B, V = static_shape(self.logits)
    return largest(logits.reshape(B, V), self.count, self.logits)

  def expand(self, candidates: np.ndarray) -> np.ndarray:
    """Return the logits (B, V) of candidates (B, 2, count). All others are -inf."""
    values, indices = candidates[:, 0], candidates[:, 1].astype(np.int64)
    if (values[:, self.top_k - 1] == values[:, -1]).any():
      return self.logits.numpy()
    expanded = np.full(self.logits.shape, -np.inf, np.float32)
    np.put_along_axis(expanded, indices, values, 1)
    return expanded


def top_k_selection(batch: int, vocab_size: int, top_k: int) -> DeviceTopK | None:
  """Return a DeviceTopK, or None if the default device cannot select, or would select most."""
  supported = (
    workgroup.has_local_memory(Device.DEFAULT)
    and 0 < top_k <= MAX_TOP_K
    and 2 * top_k < vocab_size <= MAX_VOCAB_SIZE
  )
  return DeviceTopK(batch, vocab_size, top_k) if supported else None


def largest(logits: Tensor, count: int, copy: Tensor) -> Tensor:
  """Return the `count` largest logits (B, N), and their indices as float32: (B, 2, count).

  They are sorted; equal ones keep their order. `copy` (B, N), which is realized, receives all
  logits. A logit that is not a number counts as infinite.
  """
  B, N = static_shape(logits)
  inputs = [copy, contiguous_buffer(logits)]
  chunks = N
  while chunks > 1:
    chunks = -(-N // CHUNK)
    N = chunks * count
    out = Tensor.empty(B, 2, N, device=logits.device)
    inputs = [out.custom_kernel(*inputs, fxn=rank_kernel)[0]]
  return inputs[0]


def rank_kernel(out: UOp, *inputs: UOp) -> UOp:
  """Store the largest values of each chunk, and their indices, in out (B, 2, chunks * count).

  inputs: what this kernel has stored before (B, 2, N), or a buffer for a copy and values (B, N).
  """
  *copies, values = inputs
  B, N = static_shape(values)[0], static_shape(values)[-1]
  chunks = -(-N // CHUNK)
  count = static_shape(out)[2] // chunks
  steps = -(-min(N, CHUNK) // THREADS)
  b = UOp.range(B, 0, AxisType.GLOBAL)
  chunk = UOp.range(chunks, 1, AxisType.GLOBAL)
  thread = UOp.range(THREADS, 2, AxisType.LOCAL)
  numbers = local_memory(0, steps * THREADS)

  # 1. The numbers of this chunk. They are -inf beyond the last one.
  step = UOp.range(steps, 3, AxisType.LOOP)
  position = step * THREADS + thread
  i = chunk * CHUNK + position
  last = i.minimum(N - 1)
  value = values[b, last] if copies else values[b, 0, last]
  stores = [copy[b, i.valid(i < N)].store(value) for copy in copies]
  value = value.ne(value).where(math.inf, value)
  stores.append(numbers[position].store((i < N).where(value, -math.inf)))
  numbers = numbers.after(UOp.group(*stores).end(step).barrier())

  # 2. Their ranks. Of equal numbers, the first one has the lowest rank.
  step = UOp.range(steps, 4, AxisType.LOOP)
  position = step * THREADS + thread
  own = numbers[position]

  def precedes(j: UOp) -> UOp:
    before = (numbers[j] > own) | (numbers[j].eq(own) & (j < position))
    return before.cast(dtypes.int32)

  rank = fold(Ops.ADD, steps * THREADS, 5, precedes)
  slot = (chunk * count + rank).valid(rank < count)
  last = (chunk * CHUNK + position).minimum(N - 1)
  index = last.cast(dtypes.float32) if copies else values[b, 1, last]
  store = UOp.group(out[b, 0, slot].store(own), out[b, 1, slot].store(index))
  info = KernelInfo(name=f"largest_{B}_{N}_{count}", opts_to_apply=())
  return store.end(step, thread, chunk, b).sink(arg=info)
