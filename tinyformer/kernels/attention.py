"""Compute attention on the CPU without materializing the (T, S) score matrix (FlashAttention).

The kernels compute the function of transformer.attention. Source: Dao et al. 2022, algorithms 1
and 4.
"""

import math
from collections.abc import Callable
from typing import Any

from tinygrad import Tensor, UOp, dtypes

import transformer
from tinyformer.kernels.c_kernel import (
  VEC_EXP,
  contiguous_buffer,
  empty,
  has_clang,
  kernel,
  num_tasks,
)
from tinyformer.kernels.linear import matmul
from tinyformer.kernels.tinygrad_internals import Ops
from transformer import Size, causal_mask, scaled_dot_product

# Queries per tile of FORWARD and BACKWARD; TILES defines QUERIES with the same value.
QUERIES = 48

SOFTMAX = (
  VEC_EXP
  + r"""
#define INFINITY __builtin_inff()
"""
)

# Functions on a tile of QUERIES queries, from query t on, by C keys, from key s on.
# `rows` of the queries and `n` of the keys exist; the rest is padding.
TILES = (
  SOFTMAX
  + r"""
// A value of width K, padded to PADDED_K, is split into PANELS panels of PANEL columns.
enum { QUERIES = 48 };
enum { PANEL_VECTORS = K >= 4 * W ? 4 : (K + W - 1) / W };
enum { PANEL = PANEL_VECTORS * W, PANELS = (K + PANEL - 1) / PANEL, PADDED_K = PANEL * PANELS };
GEMM_TILE(panel_tile, 4, PANEL_VECTORS)

// out (4, PANEL) += a (4, depth) b (depth, PANEL), where row i of out begins at out + i * PADDED_K.
INLINE void accumulate_panel(float *out, const float *a, long a_row, long a_col, const float *b,
                             int depth) {
  panel_tile(out, PADDED_K, a, a_row, a_col, b, depth, out, PADDED_K);
}

// Return the number of keys that at least one of the queries t to t + rows - 1 attends to.
// Under a causal mask, query t attends to keys 0 to keys - T + t.
INLINE int visible_keys(int keys, long t, int rows) {
  return CAUSAL ? min_int(keys, keys - T + t + rows) : keys;
}

// out (QUERIES, K) = scale * in (rows, K), padded with zero rows.
INLINE void load_scaled(float *out, const float *in, int rows, float scale) {
  for (int i = 0; i < QUERIES * K; i++)
    out[i] = i < rows * K ? in[i] * scale : 0;
}

// out (K, C) = transpose of in (n, K), padded with copies of the last row.
INLINE void transpose_tile(float *out, const float *in, int n) {
  for (int j = 0; j < C; j += 4) {
    const float *row[4];
    int p = 0;
    UNROLL
    for (int i = 0; i < 4; i++)
      row[i] = in + min_int(j + i, n - 1) * K;
    for (; p + 4 <= K; p += 4) {
      vec4 r[4];
      UNROLL
      for (int i = 0; i < 4; i++)
        r[i] = (vec4){row[i][p], row[i][p + 1], row[i][p + 2], row[i][p + 3]};
      transpose4x4(out + p * C + j, C, r);
    }
    for (; p < K; p++) {
      UNROLL
      for (int i = 0; i < 4; i++)
        out[p * C + j + i] = row[i][p];
    }
  }
}

// out (PANELS, depth, PANEL) = the columns of in (n, K), panel by panel, padded with zeros.
INLINE void pack_panels(float *out, const float *in, int n, int depth) {
  for (int g = 0; g < PANELS; g++)
    for (int j = 0; j < depth; j++)
      for (int p = 0; p < PANEL; p++)
        out[(g * depth + j) * PANEL + p] =
            j < n && g * PANEL + p < K ? in[j * K + g * PANEL + p] : 0;
}

// out (rows, C) = a (rows, K) b (K, C).
INLINE void matmul_tile(float *out, const float *a, const float *b, int rows) {
  for (int i = 0; i < rows; i += R)
    gemm_tile(out + i * C, C, a + i * K, K, 1, b, K, 0, 0);
}

// Set the scores (C) of query t to -inf for padding and, under a causal mask, for later keys.
INLINE void apply_causal_mask(float *row, int keys, long t, long s, int n) {
  int end = CAUSAL ? min_int(n, keys - T + t + 1 - s) : n;
  for (int j = end < 0 ? 0 : end; j < C; j++)
    row[j] = -INFINITY;
}

// Return the maximum of the scores (C) of one query and its previous maximum.
INLINE float max_score(const float *row, float old) {
  vec high = *(const vec *)row;
  UNROLL
  for (int j = 1; j < NV; j++)
    high = __builtin_elementwise_max(high, *(const vec *)(row + j * W));
  return old > hmax(high) ? old : hmax(high);
}

// Update the running row maximum; rescale = exp(row_max - new_max) corrects the partial sums.
// new_max becomes the number to subtract from the scores. That is 0 for a row without any visible
// key so far, whose scores and maximum are -inf, so that exp gives 0 and not NaN.
// Source: the online softmax of Milakov & Gimelshein 2018, algorithm 3.
INLINE void update_row_max(float *row_max, float *new_max, float *rescale) {
  for (int i = 0; i < QUERIES; i += W) {
    vec *old = (vec *)(row_max + i);
    vec *high = (vec *)(new_max + i);
    vec shift = (vec)((int_vec)*high & (*high != -INFINITY));
    *(vec *)(rescale + i) = vec_exp(*old - shift);
    *old = *high;
    *high = shift;
  }
}
"""
)

FORWARD = (
  TILES
  + r"""
// FlashAttention, forward pass (Dao et al. 2022, algorithm 1). For each head h and query t:
//
//   score[s] = SCALE * dot(q[h][t], k[h / GROUP][s]) + mask[h][t][s]         for s < S
//   weight[s] = exp(score[s] - max(score)) / sum(exp(score - max(score)))
//   out[h][t] = sum over s of weight[s] * v[h / GROUP][s]
//
// q and out have shape (HEADS, T, K), k and v (HEADS / GROUP, CAPACITY, K), with S <= CAPACITY keys
// in use. HEADS counts the heads of the whole batch. GROUP query heads share each key-value head.
// A query whose keys are all masked gets zeros. MASK_VALUE refers to head, t, i, s and j.
//
// For each block of queries, C keys at a time update the maximum of the scores so far, the sum of
// exp(score - max) and the sum of exp(score - max) v. A task is a range of blocks of queries.
enum { BLOCKS_PER_HEAD = (T + QUERIES - 1) / QUERIES, BLOCKS = HEADS * BLOCKS_PER_HEAD };
KERNEL NAME(float *restrict out, const float *restrict q, const float *restrict k,
            const float *restrict v, MASK_PARAM VARIABLE_PARAMS int task) {
  ALIGNED float query[QUERIES * K], keys[K * C], values[PANELS * C * PANEL];
  ALIGNED float scores[QUERIES * C], acc[QUERIES * PADDED_K];
  ALIGNED float row_max[QUERIES], new_max[QUERIES], rescale[QUERIES], row_sum[QUERIES * W];
  for (long block = BLOCKS * task / NUM_TASKS; block < BLOCKS * (task + 1) / NUM_TASKS; block++) {
    long head = block / BLOCKS_PER_HEAD;
    long t = block % BLOCKS_PER_HEAD * QUERIES;
    int rows = min_int(QUERIES, T - t);
    const float *head_k = k + head / GROUP * CAPACITY * K;
    const float *head_v = v + head / GROUP * CAPACITY * K;
    load_scaled(query, q + (head * T + t) * K, rows, SCALE);
    for (int i = 0; i < QUERIES * PADDED_K; i++)
      acc[i] = 0;
    for (int i = 0; i < QUERIES; i++) {
      row_max[i] = new_max[i] = -INFINITY;
      *(vec *)(row_sum + i * W) = 0.0f;
    }
    for (int s = 0, limit = visible_keys(S, t, rows); s < limit; s += C) {
      int n = min_int(C, limit - s);
      transpose_tile(keys, head_k + s * K, n);
      pack_panels(values, head_v + s * K, n, C);
      matmul_tile(scores, query, keys, rows);
      for (int i = 0; i < rows; i++) {
        float *row = scores + i * C;
        if (HAS_MASK)
          for (int j = 0; j < n; j++)
            row[j] += MASK_VALUE;
        apply_causal_mask(row, S, t + i, s, n);
        new_max[i] = max_score(row, row_max[i]);
      }
      update_row_max(row_max, new_max, rescale);
      for (int i = 0; i < rows; i++) {
        vec *row = (vec *)(scores + i * C);
        vec sums = *(vec *)(row_sum + i * W) * rescale[i];
        UNROLL
        for (int j = 0; j < NV; j++) {
          row[j] = vec_exp(row[j] - new_max[i]);
          sums += row[j];
        }
        *(vec *)(row_sum + i * W) = sums;
        if (rescale[i] != 1)
          for (int p = 0; p < PADDED_K; p++)
            acc[i * PADDED_K + p] *= rescale[i];
      }
      for (int i = 0; i < rows; i += 4)
        for (int g = 0; g < PANELS; g++)
          accumulate_panel(acc + i * PADDED_K + g * PANEL, scores + i * C, C, 1,
                           values + g * C * PANEL, n);
    }
    for (int i = 0; i < rows; i++) {
      float total = hsum(*(vec *)(row_sum + i * W));
      for (int p = 0; p < K; p++)
        out[(head * T + t + i) * K + p] = total == 0 ? 0 : acc[i * PADDED_K + p] / total;
    }
  }
}
"""
)

BACKWARD = (
  TILES
  + r"""
// FlashAttention, backward pass (Dao et al. 2022, algorithm 4), without a mask other than CAUSAL.
// The weights P = softmax(SCALE q k^T) are recomputed. For each head, with dy the gradient of y:
//
//   dP = dy v^T    dS = P * (dP - delta), where delta = sum over the keys of P * dP
//   dq = SCALE dS k    dk = SCALE dS^T q    dv = P^T dy
//
// q and dy have shape (HEADS, T, K), k and v (HEADS / GROUP, S, K). out holds dq (HEADS, T, K),
// then dk and dv (HEADS, S, K), not yet summed over the heads that share a key-value head, then one
// buffer (T + QUERIES, PADDED_K) per task, in which the dq of one head is accumulated.
// A task is a range of heads.

// Turn the scores and dP of a tile of queries by keys into P and dS.
INLINE void softmax_grad(float *weights, float *ds, const float *row_max, const float *row_sum,
                         const float *delta, int rows, long t, long s, int n) {
  for (int i = 0; i < rows; i++) {
    apply_causal_mask(weights + i * C, S, t + i, s, n);
    UNROLL
    for (int j = 0; j < NV; j++) {
      vec *p = (vec *)(weights + i * C + j * W);
      vec *d = (vec *)(ds + i * C + j * W);
      *p = row_sum[t + i] == 0 ? (vec)0.0f : vec_exp(*p - row_max[t + i]) / row_sum[t + i];
      *d = *p * (*d - delta[t + i]);
    }
  }
}

KERNEL NAME(float *restrict out, const float *restrict q, const float *restrict k,
            const float *restrict v, const float *restrict dy, int task) {
  ALIGNED float query[QUERIES * K], grad[QUERIES * K], keys[K * C], values[K * C];
  ALIGNED float packed_query[PANELS * QUERIES * PANEL], packed_grad[PANELS * QUERIES * PANEL];
  ALIGNED float packed_keys[PANELS * C * PANEL], weights[QUERIES * C], ds[QUERIES * C];
  ALIGNED float acc_dk[QUERIES * PADDED_K], acc_dv[QUERIES * PADDED_K];
  ALIGNED float new_max[QUERIES], rescale[QUERIES];
  ALIGNED float row_max[T + QUERIES], row_sum[T], delta[T];
  float *dq = out + (long)HEADS * (T + 2 * S) * K + task * (T + QUERIES) * PADDED_K;
  for (long head = HEADS * task / NUM_TASKS; head < HEADS * (task + 1) / NUM_TASKS; head++) {
    const float *head_q = q + head * T * K;
    const float *head_dy = dy + head * T * K;
    const float *head_k = k + head / GROUP * S * K;
    const float *head_v = v + head / GROUP * S * K;

    // row_max, row_sum and delta of each query
    for (long t = 0; t < T; t += QUERIES) {
      int rows = min_int(QUERIES, T - t);
      int limit = visible_keys(S, t, rows);
      load_scaled(query, head_q + t * K, rows, SCALE);
      load_scaled(grad, head_dy + t * K, rows, 1);
      for (int i = 0; i < QUERIES; i++)
        row_max[t + i] = new_max[i] = -INFINITY;
      for (int i = 0; i < rows; i++)
        row_sum[t + i] = delta[t + i] = 0;
      for (long s = 0; s < limit; s += C) {
        int n = min_int(C, limit - s);
        transpose_tile(keys, head_k + s * K, n);
        transpose_tile(values, head_v + s * K, n);
        matmul_tile(weights, query, keys, rows);
        matmul_tile(ds, grad, values, rows);
        for (int i = 0; i < rows; i++) {
          apply_causal_mask(weights + i * C, S, t + i, s, n);
          new_max[i] = max_score(weights + i * C, row_max[t + i]);
        }
        update_row_max(row_max + t, new_max, rescale);
        for (int i = 0; i < rows; i++) {
          vec sums = 0.0f;
          vec products = 0.0f;
          UNROLL
          for (int j = 0; j < NV; j++) {
            vec e = vec_exp(*(vec *)(weights + i * C + j * W) - new_max[i]);
            sums += e;
            products += e * *(vec *)(ds + i * C + j * W);
          }
          row_sum[t + i] = row_sum[t + i] * rescale[i] + hsum(sums);
          delta[t + i] = delta[t + i] * rescale[i] + hsum(products);
        }
      }
      for (int i = 0; i < rows; i++)
        if (row_sum[t + i] != 0)
          delta[t + i] /= row_sum[t + i];
    }

    // dq, dk and dv
    for (long i = 0; i < (T + QUERIES) * PADDED_K; i++)
      dq[i] = 0;
    for (long s = 0; s < S; s += C) {
      int n = min_int(C, S - s);
      transpose_tile(keys, head_k + s * K, n);
      transpose_tile(values, head_v + s * K, n);
      pack_panels(packed_keys, head_k + s * K, n, C);
      for (int i = 0; i < QUERIES * PADDED_K; i++)
        acc_dk[i] = acc_dv[i] = 0;
      for (long t = 0; t < T; t += QUERIES) {
        int rows = min_int(QUERIES, T - t);
        if (visible_keys(S, t, rows) <= s)
          continue;
        load_scaled(query, head_q + t * K, rows, SCALE);
        load_scaled(grad, head_dy + t * K, rows, 1);
        matmul_tile(weights, query, keys, rows);
        matmul_tile(ds, grad, values, rows);
        softmax_grad(weights, ds, row_max, row_sum, delta, rows, t, s, n);
        for (int i = 0; i < rows; i += 4)
          for (int g = 0; g < PANELS; g++)
            accumulate_panel(dq + (t + i) * PADDED_K + g * PANEL, ds + i * C, C, 1,
                             packed_keys + g * C * PANEL, n);
        pack_panels(packed_query, query, rows, QUERIES);
        pack_panels(packed_grad, grad, rows, QUERIES);
        for (int j = 0; j < C; j += 4)
          for (int g = 0; g < PANELS; g++) {
            int at = j * PADDED_K + g * PANEL;
            accumulate_panel(acc_dk + at, ds + j, 1, C, packed_query + g * QUERIES * PANEL, rows);
            accumulate_panel(acc_dv + at, weights + j, 1, C, packed_grad + g * QUERIES * PANEL,
                             rows);
          }
      }
      float *dk = out + ((long)HEADS * T + head * S + s) * K;
      float *dv = dk + (long)HEADS * S * K;
      for (int j = 0; j < n; j++)
        for (int p = 0; p < K; p++) {
          dk[j * K + p] = acc_dk[j * PADDED_K + p];
          dv[j * K + p] = acc_dv[j * PADDED_K + p];
        }
    }
    for (int t = 0; t < T; t++)
      for (int p = 0; p < K; p++)
        out[(head * T + t) * K + p] = dq[t * PADDED_K + p] * SCALE;
  }
}
"""
)

DECODE = (
  SOFTMAX
  + r"""
// Attention of one query per head, as in a step of generation: FORWARD with T = 1. Each key and
// each value is read once. A task is a range of heads.
enum { KEYS = 64, VECTORS = (K + W - 1) / W };
KERNEL NAME(float *restrict out, const float *restrict q, const float *restrict k,
            const float *restrict v, MASK_PARAM VARIABLE_PARAMS int task) {
  // MASK_VALUE refers to t and i.
  long t = 0;
  long i = 0;
  for (long head = HEADS * task / NUM_TASKS; head < HEADS * (task + 1) / NUM_TASKS; head++) {
    const float *head_k = k + head / GROUP * CAPACITY * K;
    const float *head_v = v + head / GROUP * CAPACITY * K;
    const float *head_q = q + head * K;
    ALIGNED float row_max = -INFINITY, row_sum = 0, scores[KEYS];
    vec acc[VECTORS] = {};
    ALIGNED float tail[W] = {};
    for (int s = 0; s < S; s += KEYS) {
      int n = min_int(KEYS, S - s);
      float new_max = row_max;
      for (int j = 0; j < KEYS; j++)
        scores[j] = -INFINITY;
      for (int j = 0; j < n; j++) {
        scores[j] = dot(head_q, head_k + (s + j) * K, K) * SCALE + MASK_VALUE;
        // The negation makes a NaN the maximum too.
        if (!(scores[j] <= new_max))
          new_max = scores[j];
      }
      float old_max = row_max;
      row_max = new_max;
      if (new_max == -INFINITY)
        continue;
      vec sums = 0.0f;
      vec rescale = vec_exp((vec)(old_max - new_max));
      for (int j = 0; j < KEYS; j += W) {
        vec e = vec_exp(*(vec *)(scores + j) - new_max);
        *(vec *)(scores + j) = e;
        sums += e;
      }
      row_sum = row_sum * rescale[0] + hsum(sums);
      UNROLL
      for (int p = 0; p < VECTORS; p++)
        acc[p] *= rescale[0];
      for (int j = 0; j < n; j++) {
        const float *row = head_v + (s + j) * K;
        UNROLL
        for (int p = 0; p < VECTORS; p++) {
          if (p * W + W <= K) {
            acc[p] += scores[j] * *(const vec *)(row + p * W);
          } else {
            for (int l = 0; p * W + l < K; l++)
              tail[l] = row[p * W + l];
            acc[p] += scores[j] * *(vec *)tail;
          }
        }
      }
    }
    for (int p = 0; p < K; p++)
      out[head * K + p] = row_sum == 0 ? 0 : acc[p / W][p % W] / row_sum;
  }
}
"""
)


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


def sum_shared_heads(gradient: Tensor, kv: Tensor) -> Tensor:
  """Sum the gradients (B, H, S, K) of the query heads that share each head of kv (B, G, S, K)."""
  if gradient.shape == kv.shape:
    return gradient
  return gradient.reshape(*kv.shape[:2], -1, *kv.shape[2:]).sum(2)


def attention_backward(macros: dict[str, Any]) -> Callable:
  """Return the gradient function of the forward kernel that has these macros."""

  def backward(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
    dy = Tensor(grad).contiguous()
    q, k, v, *mask = (Tensor(u) for u in call.src[2:])
    if mask:
      return None, *masked_backward(float(macros["SCALE"][:-1]), dy, (q, k, v, mask[0]))
    B, H, T, K = q.shape
    S = k.shape[2]
    tasks = num_tasks(macros["HEADS"] * macros["S"] * 8 * T * K)
    # PADDED_K is at most K + 63.
    workspace = tasks * (T + QUERIES) * (K + 63)
    function = kernel("attention_back", BACKWARD, 5, **macros, tasks=tasks)
    size = B * H * (T + 2 * S) * K
    out = empty(size + workspace).custom_kernel(q, k, v, dy, fxn=function)[0]
    dq_end = B * H * T * K
    dk_end = B * H * (T + S) * K
    dq = out[:dq_end].reshape(q.shape)
    dk = out[dq_end:dk_end].reshape(B, H, S, K)
    dv = out[dk_end:size].reshape(B, H, S, K)
    return None, dq.uop, sum_shared_heads(dk, k).uop, sum_shared_heads(dv, v).uop

  return backward


def masked_backward(
  scale: float, dy: Tensor, inputs: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[UOp, ...]:
  """Return the gradients of q, k, v and mask, of which the mask's needs dS (B, H, T, S) as a whole.

  The formulas are those of BACKWARD.
  """
  q, k, v, mask = inputs
  all_k = transformer.repeat_kv(k, q)
  all_v = transformer.repeat_kv(v, q)

  def similarity(q: Tensor, k: Tensor) -> Tensor:
    return matmul(q, k, transpose_b=True) * scale

  weights = transformer.attention_weights(q, k, mask, similarity).contiguous()
  dp = matmul(dy, all_v, transpose_b=True)
  delta = (weights * dp).sum(-1, keepdim=True)
  ds = (weights * (dp - delta)).contiguous()
  dq = matmul(ds, all_k) * scale
  dk = matmul(ds, q, transpose_a=True) * scale
  dv = matmul(weights, dy, transpose_a=True)
  broadcast_axes = [i for i, n in enumerate(mask.shape) if n == 1]
  dmask = ds.sum(broadcast_axes, keepdim=True)
  return dq.uop, sum_shared_heads(dk, k).uop, sum_shared_heads(dv, v).uop, dmask.uop


def mask_value(mask: Tensor, heads: Size) -> str:
  """Return the C expression for an element of a mask that broadcasts to (B, H, T, S)."""
  strides = [0 if n == 1 else math.prod(mask.shape[i + 1 :]) for i, n in enumerate(mask.shape)]
  batch, head, query, key = strides
  return f"mask[head/{heads}*{batch} + head%{heads}*{head} + (t + i)*{query} + (s + j)*{key}]"


def broadcasts_to(mask: Tensor, shape: tuple[Size, ...]) -> bool:
  """Return whether each of the mask's sizes is 1 or the size in `shape`."""
  return all(n in (1, size) for n, size in zip(mask.shape, shape, strict=False))


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """Return transformer.attention(q, k, v, mask, similarity), computed by a kernel if possible.

  q (B, H, T, K), k and v (B, G, S, K), where H / G query heads share each head of k and v
  -> (B, H, T, K). The kernels support float32 on the CPU and (scaled) dot products. All other calls
  are passed on to transformer.attention.
  """
  B, H, T, K = q.shape
  S = k.shape[2]
  scale = {scaled_dot_product: K**-0.5, transformer.dot_product: 1.0}.get(similarity)
  # tinygrad represents equal expressions by one UOp.
  causal = mask is not None and mask.ndim == 2 and mask.uop is causal_mask(T, S).uop
  if causal and isinstance(T, int) and T == 1:  # a single query sees all keys
    mask, causal = None, False
  masks = [] if mask is None or causal else [mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)]
  supported = (
    scale is not None
    and isinstance(T, int)
    and (isinstance(S, int) or not masks)
    and all(broadcasts_to(m, (B, H, T, S)) for m in masks)
    and T
    and {t.dtype for t in (q, k, v)} == {dtypes.float32}
    and all(has_clang(str(t.device)) for t in (q, k, v))
  )
  if not supported:
    return transformer.attention(q, k, v, mask, similarity)
  k = cache_buffer(k)
  v = cache_buffer(v)
  masks = [contiguous_buffer(m.float()) for m in masks]
  if isinstance(S, int):
    variables: tuple[UOp, ...] = ()
    num_keys: int | str = S
  else:
    unbound = S.unbind_all()[0]
    variables = tuple(unbound.variables())
    num_keys = f"({unbound.render()})"
  macros = {
    "HEADS": B * H,
    "GROUP": H // k.shape[1],
    "T": T,
    "S": num_keys,
    "K": K,
    "SCALE": f"{scale!r}f",
    "CAUSAL": int(causal),
  }
  function = kernel(
    "attention",
    FORWARD if T > 1 else DECODE,
    4 + len(masks),
    num_tasks(B * H * T * k.shape[2] * K * (8 if T == 1 else 1)),
    variables,
    **macros,
    CAPACITY=k.shape[2],
    HAS_MASK=int(bool(masks)),
    MASK_VALUE=mask_value(masks[0], H) if masks else "0",
    MASK_PARAM="const float *restrict mask," * len(masks),
    VARIABLE_PARAMS="".join(f"int {v.expr}, " for v in variables),
  )
  out = empty(B, H, T, K)
  inputs = (contiguous_buffer(q), k, v, *masks)
  return out.custom_kernel(*inputs, fxn=function, grad_fxn=attention_backward(macros))[0]
