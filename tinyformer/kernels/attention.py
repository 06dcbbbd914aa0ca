"""Attention as kernels of its own for the CPU: the same numbers as the plain one, and no (T, S) matrix (Dao et al. 2022, algorithm 1)."""

import math
from collections.abc import Callable
from typing import Any

from tinygrad import Tensor, UOp, dtypes
from tinygrad.uop.ops import Ops

import transformer
from tinyformer.kernels.c_kernel import (
  EXPONENTIAL,
  has_clang,
  num_tasks,
  empty,
  kernel,
  contiguous_buffer,
)
from tinyformer.kernels.linear import product
from transformer import causal_mask, scaled_dot_product

SOFTMAX = (
  EXPONENTIAL
  + r"""
#define INFINITE __builtin_inff()
"""
)
# Tiles of queries by keys: C keys, s and the following, of which n are there; `rows` queries, t and the following.
BLOCKS = (
  SOFTMAX
  + r"""
enum { BLOCK = 48, VALUES = K >= 4*W ? 4 : (K + W - 1) / W, PANEL = VALUES*W, PANELS = (K + PANEL - 1) / PANEL, WIDE = PANEL*PANELS };
TILE(mix, 4, VALUES)
INLINE void add(float *to, const float *a, long ra, long pa, const float *b, int depth) { mix(to, WIDE, a, ra, pa, b, depth, to, WIDE); }
INLINE int seen(int keys, long t, int rows) { return CAUSAL ? least(keys, keys - T + t + rows) : keys; }   // how many keys some of these queries see
INLINE void load(float *to, const float *from, int rows, float scale) { for (int i = 0; i < BLOCK*K; i++) to[i] = i < rows*K ? from[i] * scale : 0; }
INLINE void turn(float *to, const float *from, int n) {
  for (int j = 0; j < C; j += 4) {
    const float *row[4];
    int p = 0;
    ALL for (int i = 0; i < 4; i++) row[i] = from + least(j + i, n - 1)*K;
    for (; p + 4 <= K; p += 4) {
      four r[4];
      ALL for (int i = 0; i < 4; i++) r[i] = (four){row[i][p], row[i][p+1], row[i][p+2], row[i][p+3]};
      turn4(to + p*C + j, C, r);
    }
    for (; p < K; p++) ALL for (int i = 0; i < 4; i++) to[p*C + j + i] = row[i][p];
  }
}
INLINE void pack(float *to, const float *from, int n, int depth) {   // the columns PANEL by PANEL
  for (int g = 0; g < PANELS; g++) for (int j = 0; j < depth; j++) for (int p = 0; p < PANEL; p++)
    to[(g*depth + j)*PANEL + p] = j < n && g*PANEL + p < K ? from[j*K + g*PANEL + p] : 0;
}
INLINE void dots(float *to, const float *a, const float *turned, int rows) { for (int i = 0; i < rows; i += R) tile(to + i*C, C, a + i*K, K, 1, turned, K, 0, 0); }
INLINE void hide(float *row, int keys, long t, long s, int n) {   // what query t may not see
  int end = CAUSAL ? least(n, keys - T + t + 1 - s) : n;
  for (int j = end < 0 ? 0 : end; j < C; j++) row[j] = -INFINITE;
}
INLINE float highest(const float *row, float old) {
  vec high = *(const vec *)row;
  ALL for (int j = 1; j < NV; j++) high = __builtin_elementwise_max(high, *(const vec *)(row + j*W));
  return old > most(high) ? old : most(high);
}
INLINE void rise(float *top, float *now, float *fade) {   // from the maxima before these keys to those now; e^(now - now) is 1, and what was summed before fades
  for (int i = 0; i < BLOCK; i += W) {
    vec *old = (vec *)(top + i), *high = (vec *)(now + i), level = (vec)((whole)*high & (*high != -INFINITE));   // nothing to see yet: all e^-inf are 0
    *(vec *)(fade + i) = exponential(*old - level);
    *old = *high;
    *high = level;
  }
}
"""
)
# For each head and BLOCK queries of it, C keys at a time: scores, their maximum so far, and the sums of exp(score) and of exp(score) v that go with
# it. Row s of head h of k and v begins at (h*ROOM + s)*K; S of the ROOM rows count. HEADS heads share the k and v of HEADS/GROUP.
MANY = (
  BLOCKS
  + r"""
enum { EACH = (T + BLOCK - 1) / BLOCK, UNITS = HEADS*EACH };
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict q, const float *restrict k, const float *restrict v, MASK VARIABLES int part) {
  ALIGNED float query[BLOCK*K], keys[K*C], values[PANELS*C*PANEL], scores[BLOCK*C], mixed[BLOCK*WIDE], top[BLOCK], now[BLOCK], fade[BLOCK], total[BLOCK*W];
  for (long unit = UNITS*part/PARTS; unit < UNITS*(part + 1)/PARTS; unit++) {
    long head = unit / EACH, t = unit % EACH * BLOCK;
    int rows = least(BLOCK, T - t);
    const float *hk = k + head/GROUP*ROOM*K, *hv = v + head/GROUP*ROOM*K;
    load(query, q + (head*T + t)*K, rows, SCALE);
    for (int i = 0; i < BLOCK*WIDE; i++) mixed[i] = 0;
    for (int i = 0; i < BLOCK; i++) { top[i] = now[i] = -INFINITE; *(vec *)(total + i*W) = 0.0f; }
    for (int s = 0, limit = seen(S, t, rows); s < limit; s += C) {
      int n = least(C, limit - s);
      turn(keys, hk + s*K, n);
      pack(values, hv + s*K, n, C);
      dots(scores, query, keys, rows);
      for (int i = 0; i < rows; i++) {
        float *row = scores + i*C;
        if (MASKED) for (int j = 0; j < n; j++) row[j] += BIAS;
        hide(row, S, t + i, s, n);
        now[i] = highest(row, top[i]);
      }
      rise(top, now, fade);
      for (int i = 0; i < rows; i++) {
        vec *row = (vec *)(scores + i*C), sums = *(vec *)(total + i*W) * fade[i];
        ALL for (int j = 0; j < NV; j++) sums += row[j] = exponential(row[j] - now[i]);
        *(vec *)(total + i*W) = sums;
        if (fade[i] != 1) for (int p = 0; p < WIDE; p++) mixed[i*WIDE + p] *= fade[i];
      }
      for (int i = 0; i < rows; i += 4) for (int g = 0; g < PANELS; g++) add(mixed + i*WIDE + g*PANEL, scores + i*C, C, 1, values + g*C*PANEL, n);
    }
    for (int i = 0; i < rows; i++) {
      float all = sum(*(vec *)(total + i*W));
      for (int p = 0; p < K; p++) out[(head*T + t + i)*K + p] = all == 0 ? 0 : mixed[i*WIDE + p] / all;
    }
  }
}
"""
)
# The gradients of q, k and v, one after the other in out, from that of the output: with the weights P computed again (Dao et al. 2022, algorithm 4),
# dP = dy v^T and dS = P (dP - sum of P dP over the keys), they are dS k, dS^T q and P^T dy.
BACK = (
  BLOCKS
  + r"""
// P and dP of a tile of queries by keys; dP becomes dS
INLINE void slopes(float *weights, float *ds, const float *top, const float *total, const float *delta, int rows, long t, long s, int n) {
  for (int i = 0; i < rows; i++) {
    hide(weights + i*C, S, t + i, s, n);
    ALL for (int j = 0; j < NV; j++) {
      vec *p = (vec *)(weights + i*C + j*W), *d = (vec *)(ds + i*C + j*W);
      *p = total[t + i] == 0 ? (vec)0.0f : exponential(*p - top[t + i]) / total[t + i];
      *d = *p * (*d - delta[t + i]);
    }
  }
}
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict q, const float *restrict k, const float *restrict v, const float *restrict dy, int part) {
  ALIGNED float query[BLOCK*K], slope[BLOCK*K], keys[K*C], values[K*C], packed[PANELS*BLOCK*PANEL], other[PANELS*BLOCK*PANEL], columns[PANELS*C*PANEL];
  ALIGNED float weights[BLOCK*C], ds[BLOCK*C], first[BLOCK*WIDE], second[BLOCK*WIDE], now[BLOCK], fade[BLOCK], top[T + BLOCK], total[T], delta[T];
  float *dq = out + (long)HEADS*(T + 2*S)*K + part*(T + BLOCK)*WIDE;   // of one head, as it grows
  for (long head = HEADS*part/PARTS; head < HEADS*(part + 1)/PARTS; head++) {
    const float *hq = q + head*T*K, *hd = dy + head*T*K, *hk = k + head/GROUP*S*K, *hv = v + head/GROUP*S*K;
    for (long t = 0; t < T; t += BLOCK) {
      int rows = least(BLOCK, T - t), limit = seen(S, t, rows);
      load(query, hq + t*K, rows, SCALE); load(slope, hd + t*K, rows, 1);
      for (int i = 0; i < BLOCK; i++) top[t + i] = now[i] = -INFINITE;
      for (int i = 0; i < rows; i++) total[t + i] = delta[t + i] = 0;
      for (long s = 0; s < limit; s += C) {
        int n = least(C, limit - s);
        turn(keys, hk + s*K, n); turn(values, hv + s*K, n);
        dots(weights, query, keys, rows); dots(ds, slope, values, rows);
        for (int i = 0; i < rows; i++) {
          hide(weights + i*C, S, t + i, s, n);
          now[i] = highest(weights + i*C, top[t + i]);
        }
        rise(top + t, now, fade);
        for (int i = 0; i < rows; i++) {
          vec sums = 0.0f, products = 0.0f;
          ALL for (int j = 0; j < NV; j++) { vec e = exponential(*(vec *)(weights + i*C + j*W) - now[i]); sums += e; products += e * *(vec *)(ds + i*C + j*W); }
          total[t + i] = total[t + i] * fade[i] + sum(sums);
          delta[t + i] = delta[t + i] * fade[i] + sum(products);
        }
      }
      for (int i = 0; i < rows; i++) if (total[t + i] != 0) delta[t + i] /= total[t + i];
    }
    for (long i = 0; i < (T + BLOCK)*WIDE; i++) dq[i] = 0;
    for (long s = 0; s < S; s += C) {
      int n = least(C, S - s);
      turn(keys, hk + s*K, n); turn(values, hv + s*K, n); pack(columns, hk + s*K, n, C);
      for (int i = 0; i < BLOCK*WIDE; i++) first[i] = second[i] = 0;
      for (long t = 0; t < T; t += BLOCK) {
        int rows = least(BLOCK, T - t);
        if (seen(S, t, rows) <= s) continue;
        load(query, hq + t*K, rows, SCALE); load(slope, hd + t*K, rows, 1);
        dots(weights, query, keys, rows); dots(ds, slope, values, rows);
        slopes(weights, ds, top, total, delta, rows, t, s, n);
        for (int i = 0; i < rows; i += 4) for (int g = 0; g < PANELS; g++) add(dq + (t + i)*WIDE + g*PANEL, ds + i*C, C, 1, columns + g*C*PANEL, n);
        pack(packed, query, rows, BLOCK); pack(other, slope, rows, BLOCK);
        for (int j = 0; j < C; j += 4) for (int g = 0; g < PANELS; g++) {
          add(first + j*WIDE + g*PANEL, ds + j, 1, C, packed + g*BLOCK*PANEL, rows);
          add(second + j*WIDE + g*PANEL, weights + j, 1, C, other + g*BLOCK*PANEL, rows);
        }
      }
      float *dk = out + ((long)HEADS*T + head*S + s)*K, *dv = dk + (long)HEADS*S*K;
      for (int j = 0; j < n; j++) for (int p = 0; p < K; p++) { dk[j*K + p] = first[j*WIDE + p]; dv[j*K + p] = second[j*WIDE + p]; }
    }
    for (int t = 0; t < T; t++) for (int p = 0; p < K; p++) out[(head*T + t)*K + p] = dq[t*WIDE + p] * SCALE;
  }
}
"""
)
# The same for one query: a step of generation, where each key and value is read once.
SINGLE = (
  SOFTMAX
  + r"""
enum { BLOCK = 64, VECTORS = (K + W - 1) / W };
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict q, const float *restrict k, const float *restrict v, MASK VARIABLES int part) {
  for (long head = HEADS*part/PARTS, t = 0, i = 0; head < HEADS*(part + 1)/PARTS; head++) {
    const float *hk = k + head/GROUP*ROOM*K, *hv = v + head/GROUP*ROOM*K, *hq = q + head*K;
    ALIGNED float top = -INFINITE, total = 0, scores[BLOCK];
    vec mixed[VECTORS] = {};
    ALIGNED float rest[W] = {};
    for (int s = 0; s < S; s += BLOCK) {
      int n = least(BLOCK, S - s);
      float now = top;
      for (int j = 0; j < BLOCK; j++) scores[j] = -INFINITE;
      for (int j = 0; j < n; j++) {
        scores[j] = dot(hq, hk + (s + j)*K, K) * SCALE + BIAS;
        if (!(scores[j] <= now)) now = scores[j];   // also what is no number
      }
      float old = top;
      top = now;
      if (now == -INFINITE) continue;
      vec parts = 0.0f, fade = exponential((vec)(old - now));
      for (int j = 0; j < BLOCK; j += W) { vec e = exponential(*(vec *)(scores + j) - now); *(vec *)(scores + j) = e; parts += e; }
      total = total * fade[0] + sum(parts);
      ALL for (int p = 0; p < VECTORS; p++) mixed[p] *= fade[0];
      for (int j = 0; j < n; j++) {
        const float *row = hv + (s + j)*K;
        ALL for (int p = 0; p < VECTORS; p++) {
          if (p*W + W <= K) mixed[p] += scores[j] * *(const vec *)(row + p*W);
          else { for (int l = 0; p*W + l < K; l++) rest[l] = row[p*W + l]; mixed[p] += scores[j] * *(vec *)rest; }
        }
      }
    }
    for (int p = 0; p < K; p++) out[head*K + p] = total == 0 ? 0 : mixed[p / W][p % W] / total;
  }
}
"""
)


def all_rows(x: Tensor) -> Tensor:
  """Keys or values (B, H, S, K) that are the first S rows of a larger tensor: that tensor, the cache. Others: themselves, as they lie in memory."""
  u = x.uop
  if (
    u.op is Ops.SHRINK
    and u.src[0].shape[:2] == x.shape[:2]
    and u.src[0].shape[3] == x.shape[3]
    and all(s.op is Ops.CONST and s.val == 0 for s in u.src[1].src)
  ):
    return Tensor(u.src[0])
  return contiguous_buffer(x)


def gradient(sizes: dict[str, Any]) -> Callable:
  """The gradient function of the kernel of these sizes."""

  def collect(x: Tensor, like: Tensor) -> Tensor:  # of heads that shared keys
    return x if x.shape == like.shape else x.reshape(*like.shape[:2], -1, *like.shape[2:]).sum(2)

  def backward(dy: UOp, call: UOp) -> tuple[UOp | None, ...]:
    d, q, k, v, *mask = Tensor(dy).contiguous(), *(Tensor(u) for u in call.src[2:])
    if mask:
      return None, *masked(d, q, k, v, mask[0])
    (B, H, T, K), S = q.shape, k.shape[2]
    parts = num_tasks(sizes["HEADS"] * sizes["S"] * 8 * T * K)
    room = parts * (T + 48) * (K + 63)  # no less than each part needs for a head's dq
    out = empty(B * H * (T + 2 * S) * K + room).custom_kernel(
      q, k, v, d, fxn=kernel("attention_back", BACK, 5, **sizes, parts=parts)
    )[0]
    dk, dv = (
      out[B * H * (T + i * S) * K : B * H * (T + (i + 1) * S) * K].reshape(B, H, S, K)
      for i in range(2)
    )
    return None, out[: B * H * T * K].reshape(q.shape).uop, collect(dk, k).uop, collect(dv, v).uop

  def masked(d: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[UOp, ...]:
    """The same with the mask's own gradient, which needs all of dS."""
    scale, ks, vs = (
      float(sizes["SCALE"][:-1]),
      transformer.repeat_kv(k, q),
      transformer.repeat_kv(v, q),
    )
    weights = transformer.attention_weights(
      q, k, mask, lambda q, k: product(q, k, turned_b=True) * scale
    ).contiguous()
    slopes = product(d, vs, turned_b=True)
    scores = (weights * (slopes - (weights * slopes).sum(-1, keepdim=True))).contiguous()
    dq, dk, dv = (
      product(scores, ks) * scale,
      product(scores, q, turned_a=True) * scale,
      product(weights, d, turned_a=True),
    )
    return (
      dq.uop,
      collect(dk, k).uop,
      collect(dv, v).uop,
      scores.sum([i for i, n in enumerate(mask.shape) if n == 1], keepdim=True).uop,
    )

  return backward


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | None = None,
  similarity: Callable = scaled_dot_product,
) -> Tensor:
  """transformer.attention as a kernel above: q (B, H, T, K), k and v (B, G, S, K), where H/G heads share keys and values -> (B, H, T, K).

  It serves on the CPU, in float32, for dot products, scaled or not; other calls go to transformer.attention.
  """
  (B, H, T, K), S = q.shape, k.shape[2]
  scale = {scaled_dot_product: K**-0.5, transformer.dot_product: 1.0}.get(similarity)
  causal = (
    mask is not None and T > 1 and mask.ndim == 2 and mask.uop is causal_mask(T, S).uop
  )  # equal expressions are one UOp
  masks = [] if mask is None or causal else [mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)]
  fits = (
    isinstance(T, int)
    and (isinstance(S, int) or not masks)
    and all(a in (1, b) for m in masks for a, b in zip(m.shape, (B, H, T, S)))
  )
  if (
    scale is None
    or not fits
    or not T
    or {t.dtype for t in (q, k, v)} != {dtypes.float32}
    or not all(has_clang(str(t.device)) for t in (q, k, v))
  ):
    return transformer.attention(q, k, v, mask, similarity)
  k, v, masks = all_rows(k), all_rows(v), [contiguous_buffer(m.float()) for m in masks]
  bias = "0"
  for m in masks:
    strides = [0 if n == 1 else math.prod(m.shape[i + 1 :]) for i, n in enumerate(m.shape)]
    bias = f"mask[head/{H}*{strides[0]} + head%{H}*{strides[1]} + (t + i)*{strides[2]} + (s + j)*{strides[3]}]"
  names = () if isinstance(S, int) else tuple(S.unbind_all()[0].variables())
  length = S if isinstance(S, int) else f"({S.unbind_all()[0].render()})"
  sizes = dict(
    HEADS=B * H, GROUP=H // k.shape[1], T=T, S=length, K=K, SCALE=f"{scale!r}f", CAUSAL=int(causal)
  )
  fxn = kernel(
    "attention",
    MANY if T > 1 else SINGLE,
    4 + len(masks),
    num_tasks(B * H * T * k.shape[2] * K * (8 if T == 1 else 1)),
    names,
    **sizes,
    ROOM=k.shape[2],
    MASKED=int(bool(masks)),
    BIAS=bias,
    MASK="const float *restrict mask," * len(masks),
    VARIABLES="".join(f"int {v.expr}, " for v in names),
  )
  return empty(B, H, T, K).custom_kernel(
    contiguous_buffer(q), k, v, *masks, fxn=fxn, grad_fxn=gradient(sizes)
  )[0]
