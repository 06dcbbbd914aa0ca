"""Compute attention on the CPU without materializing the (T, S) score matrix (FlashAttention).

The kernels compute the function of transformer.attention. Source: Dao et al. 2022, algorithms 1
and 4.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from tinygrad import Tensor, UOp, dtypes

from layers.attention import repeat_kv
from tinyformer.kernels import fused
from tinyformer.kernels.c_kernel import (
  contiguous_buffer,
  empty,
  has_clang,
  kernel,
  num_tasks,
  static_size,
)
from tinyformer.kernels.fused import Size
from tinyformer.kernels.linear import matmul
from tinyformer.kernels.tinygrad_internals import Ops
from transformer import attention_weights, causal_mask, dot_product, scaled_dot_product

# The types in which C kernels read keys and values.
KV_TYPES = {dtypes.float32: "float", dtypes.float16: "_Float16"}
# Queries per tile of the forward and backward kernels.
QUERIES = 48


def cache_buffer(x: Tensor) -> Tensor:
  """Return the KV cache of which x (B, H, S, K) is the first S rows: (B, H, capacity, K).

  Any other x is returned as a contiguous buffer of its own.
  """
  u = x.uop
  if u.op is not Ops.SHRINK:
    return contiguous_buffer(x)
  cache = u.src[0]
  same_sizes = cache.shape[:2] == x.shape[:2] and cache.shape[3] == x.shape[3]
  from_zero = all(s.op is Ops.CONST and s.val == 0 for s in u.src[1].src)
  return Tensor(cache) if same_sizes and from_zero else contiguous_buffer(x)


def cache_buffers(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
  """Return cache_buffer of k and v, or copies of both if the two buffers' capacities differ."""
  buffers = cache_buffer(k), cache_buffer(v)
  if buffers[0].shape == buffers[1].shape:
    return buffers
  return k.contiguous(), v.contiguous()


def gradient_of_buffer(gradient: Tensor, buffer: Tensor) -> Tensor:
  """Return the gradient of a buffer (B, G, capacity, K) of keys or values.

  gradient: that of the first S rows for each query head (B, H, S, K), of which H / G share each
  head of the buffer.
  """
  B, G, capacity, K = buffer.shape
  S = gradient.shape[2]
  if gradient.shape[1] != G:
    gradient = gradient.reshape(B, G, -1, S, K).sum(2)
  return gradient if capacity == S else gradient.pad((None, None, (0, capacity - S), None))


def attention_backward(scale: float, S: Size, macros: dict[str, Any]) -> Callable:
  """Return the gradient function of the forward kernel with S keys and these macros."""

  def backward(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
    dy = Tensor(grad).contiguous()
    q, k, v, *masks = (Tensor(u) for u in call.src[2:])
    # k and v may be buffers of which the first S rows are used; see cache_buffer.
    used_k, used_v = (contiguous_buffer(buffer[:, :, :S].float()) for buffer in (k, v))
    if masks:
      dq, dk, dv, dmask = masked_backward(scale, dy, (q, used_k, used_v, masks[0]))
      others = [dmask]
    else:
      dq, dk, dv = unmasked_backward(macros, dy, (q, used_k, used_v))
      others = []
    gradients = (dq, gradient_of_buffer(dk, k), gradient_of_buffer(dv, v), *others)
    pairs = zip(gradients, call.src[2:], strict=True)
    return None, *(gradient.cast(u.dtype).uop for gradient, u in pairs)

  return backward


def unmasked_backward(
  macros: dict[str, Any], dy: Tensor, inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
  """Return the gradients of q, k and v; those of k and v for each query head (B, H, S, K)."""
  B, H, T, K = inputs[0].shape
  S = inputs[1].shape[2]
  # A task is a range of heads.
  tasks = min(B * H, num_tasks(B * H * S * 8 * T * K))
  # The PADDED_K of attention_tiles.h is at most K + 63.
  workspace = tasks * (T + QUERIES) * (K + 63 + 3)
  function = kernel("attention_backward", 5, tasks, **macros, S=S, KV=KV_TYPES[dtypes.float32])
  size = B * H * (T + 2 * S) * K
  out = empty(size + workspace).custom_kernel(*inputs, dy, fxn=function)[0]
  dq_end = B * H * T * K
  dk_end = B * H * (T + S) * K
  dq = out[:dq_end].reshape(B, H, T, K)
  dk = out[dq_end:dk_end].reshape(B, H, S, K)
  dv = out[dk_end:size].reshape(B, H, S, K)
  return dq, dk, dv


def masked_backward(
  scale: float, dy: Tensor, inputs: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
  """Return the gradients of q, k, v and mask; those of k and v for each query head (B, H, S, K).

  The mask's gradient needs dS (B, H, T, S) as a whole. The formulas are those of
  attention_backward.c.
  """
  q, k, v, mask = inputs
  all_k = repeat_kv(k, q)
  all_v = repeat_kv(v, q)

  def similarity(q: Tensor, k: Tensor) -> Tensor:
    return matmul(q, k, transpose_b=True) * scale

  weights = attention_weights(q, all_k, mask, similarity).contiguous()
  dp = matmul(dy, all_v, transpose_b=True)
  delta = (weights * dp).sum(-1, keepdim=True)
  ds = (weights * (dp - delta)).contiguous()
  dq = matmul(ds, all_k) * scale
  dk = matmul(ds, q, transpose_a=True) * scale
  dv = matmul(weights, dy, transpose_a=True)
  broadcast_axes = [i for i, n in enumerate(mask.shape) if n == 1]
  return dq, dk, dv, ds.sum(broadcast_axes, keepdim=True)


def mask_macros(masks: list[Tensor], heads: Size) -> dict[str, Any]:
  """Return the macros of attention_mask.h for at most one mask that broadcasts to (B, H, T, S)."""
  strides: list[Any] = [0] * 4
  for mask in masks:
    strides = [0 if n == 1 else math.prod(mask.shape[i + 1 :]) for i, n in enumerate(mask.shape)]
  names = ("MASK_TEXT", "MASK_HEAD", "MASK_QUERY", "MASK_KEY")
  return {"HAS_MASK": len(masks), "HEADS_PER_TEXT": heads, **dict(zip(names, strides, strict=True))}


def sum_of_variables(n: Size) -> tuple[tuple[UOp, ...], int] | None:
  """Return at most two variables and a constant whose sum is n, or None if n has another form."""
  if isinstance(n, int):
    return (), n
  unbound = n.unbind_all()[0]
  variables = tuple(unbound.variables())
  constant = (unbound - sum(variables)).simplify()
  if len(variables) > 2 or constant.vmin != constant.vmax:
    return None
  return variables, int(constant.vmin)


def broadcasts_to(mask: Tensor, shape: tuple[Size, ...]) -> bool:
  """Return whether each of the mask's sizes is 1 or the size in `shape`."""
  return all(n in (1, size) for n, size in zip(mask.shape, shape, strict=False))


@functools.lru_cache(maxsize=4)
def causal_mask_expression(T: Size, S: Size) -> UOp:
  """Return the UOp of causal_mask(T, S). tinygrad represents equal expressions by one UOp."""
  return causal_mask(T, S).uop


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """Return fused.attention(q, k, v, mask, similarity), computed by a kernel if possible.

  q (B, H, T, K), k and v (B, G, S, K), where H / G query heads share each head of k and v
  -> (B, H, T, K). The kernels support (scaled) dot products on the CPU, of queries in float32 with
  keys and values in float32 or float16. All other calls are passed on to fused.attention.
  """
  B, H, T, K = q.shape
  S = k.shape[2]
  scale = {scaled_dot_product: static_size(K) ** -0.5, dot_product: 1.0}.get(similarity)
  causal = mask is not None and mask.ndim == 2 and mask.uop is causal_mask_expression(T, S)
  if causal and isinstance(T, int) and T == 1:  # a single query sees all keys
    mask, causal = None, False
  masks = [] if mask is None or causal else [mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)]
  num_keys = sum_of_variables(S)
  supported = (
    isinstance(T, int)
    and (isinstance(S, int) or not masks)
    and all(broadcasts_to(m, (B, H, T, S)) for m in masks)
    and T
    and q.dtype == dtypes.float32
    and k.dtype == v.dtype
    and k.dtype in KV_TYPES
    and all(has_clang(str(t.device)) for t in (q, k, v))
  )
  if not supported or scale is None or num_keys is None:
    return fused.attention(q, k, v, mask, similarity)
  k, v = cache_buffers(k, v)
  if not all(isinstance(t.shape[2], int) for t in (k, v)):  # not the first rows of a buffer
    return fused.attention(q, k, v, mask, similarity)
  masks = [contiguous_buffer(m.float()) for m in masks]
  variables, constant = num_keys
  macros: dict[str, Any] = {
    "HEADS": B * H,
    "GROUP": H // k.shape[1],
    "T": T,
    "K": K,
    "SCALE": f"{scale!r}f",
    "CAUSAL": int(causal),
    "QUERIES": QUERIES,
  }
  function = kernel(
    "attention_forward" if T > 1 else "attention_decode",
    4 + len(masks),
    num_tasks(B * H * T * k.shape[2] * K * (8 if T == 1 else 1)),
    variables,
    **macros,
    CAPACITY=k.shape[2],
    KV=KV_TYPES[k.dtype],
    NUM_VARIABLES=len(variables),
    S_CONSTANT=constant,
    **mask_macros(masks, H),
  )
  out = empty(B, H, T, K)
  inputs = (contiguous_buffer(q), k, v, *masks)
  grad_fxn = attention_backward(scale, S, macros)
  return out.custom_kernel(*inputs, fxn=function, grad_fxn=grad_fxn)[0]
