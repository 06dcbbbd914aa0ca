"""Attention as kernels of its own for the CPU: the same numbers as the plain one, and no (T, S) matrix (Dao et al. 2022, algorithm 1)."""
import math
from collections.abc import Callable
from typing import Any
from tinygrad import Tensor, UOp, dtypes
from tinygrad.uop.ops import Ops
import transformer
from parts.kernel import compiles, cut, empty, kernel, laid
from parts.linear import product
from transformer import causal_mask, scaled_dot_product

SOFTMAX = r"""
typedef int whole __attribute__((ext_vector_type(W)));
// e^x of each of the numbers, to 2e-7 of it: 2^n for the nearest n, times a polynomial of what remains. Below -87 it is 0.
INLINE vec exponential(vec x) {
  vec y = x * 1.442695041f, n = (y + 12582912.0f) - 12582912.0f, f = y - n;
  vec p = 1.0f + f*(0.6931471806f + f*(0.2402265070f + f*(0.0555041087f + f*(0.0096181291f + f*(0.0013333558f + f*0.0001540353f)))));
  return (vec)((whole)(p * (vec)((__builtin_convertvector(n, whole) + 127) << 23)) & ~(x < -87.0f));
}
#define INFINITE __builtin_inff()
"""
# For each head and BLOCK queries of it, C keys at a time: scores, their maximum so far, and the sums of exp(score) and of exp(score) v that go with
# it. Row s of head h of k and v begins at (h*ROOM + s)*K; S of the ROOM rows count. HEADS heads share the k and v of HEADS/GROUP.
MANY = SOFTMAX + r"""
enum { BLOCK = 48, VALUES = K >= 4*W ? 4 : (K + W - 1) / W, PANEL = VALUES*W, PANELS = (K + PANEL - 1) / PANEL, WIDE = PANEL*PANELS };
enum { BLOCKS = (T + BLOCK - 1) / BLOCK, UNITS = HEADS*BLOCKS };
TILE(mix, 4, VALUES)
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict q, const float *restrict k, const float *restrict v, MASK VARIABLES int part) {
  float query[BLOCK*K], keys[K*C], values[PANELS*C*PANEL], scores[BLOCK*C], mixed[BLOCK*WIDE], top[BLOCK], total[BLOCK];
  for (long unit = UNITS*part/PARTS; unit < UNITS*(part + 1)/PARTS; unit++) {
    long head = unit / BLOCKS, t = unit % BLOCKS * BLOCK;
    int rows = least(BLOCK, T - t), seen = CAUSAL ? least(S, S - T + t + rows) : S;
    const float *hk = k + head/GROUP*ROOM*K, *hv = v + head/GROUP*ROOM*K;
    for (int i = 0; i < BLOCK*K; i++) query[i] = i < rows*K ? q[(head*T + t)*K + i] * SCALE : 0;
    for (int i = 0; i < BLOCK*WIDE; i++) mixed[i] = 0;
    for (int i = 0; i < BLOCK; i++) { top[i] = -INFINITE; total[i] = 0; }
    for (int s = 0; s < seen; s += C) {
      int n = least(C, seen - s);
      for (int j = 0; j < C; j++) for (int p = 0; p < K; p++) keys[p*C + j] = j < n ? hk[(s + j)*K + p] : 0;
      for (int g = 0; g < PANELS; g++) for (int j = 0; j < C; j++) for (int p = 0; p < PANEL; p++)
        values[(g*C + j)*PANEL + p] = j < n && g*PANEL + p < K ? hv[(s + j)*K + g*PANEL + p] : 0;
      for (int i = 0; i < rows; i += R) tile(scores + i*C, C, query + i*K, K, 1, keys, K, 0);
      for (int i = 0; i < rows; i++) {
        float *row = scores + i*C;
        int end = CAUSAL ? least(n, S - T + t + i + 1 - s) : n;
        for (int j = end < 0 ? 0 : end; j < C; j++) row[j] = -INFINITE;
        for (int j = 0; j < end; j++) row[j] += BIAS;
        vec high = *(vec *)row;
        ALL for (int j = 1; j < NV; j++) high = __builtin_elementwise_max(high, *(vec *)(row + j*W));
        float now = most(high), old = top[i];
        if (old > now) now = old;
        top[i] = now;
        if (now == -INFINITE) now = 0;   // nothing to see yet: all e^-inf are 0
        vec parts = 0.0f, fade = exponential((vec)(old - now));
        ALL for (int j = 0; j < NV; j++) { vec e = exponential(*(vec *)(row + j*W) - now); *(vec *)(row + j*W) = e; parts += e; }
        total[i] = total[i] * fade[0] + sum(parts);
        if (fade[0] != 1) for (int p = 0; p < WIDE; p++) mixed[i*WIDE + p] *= fade[0];
      }
      for (int i = 0; i < rows; i += 4) for (int g = 0; g < PANELS; g++) mix(mixed + i*WIDE + g*PANEL, WIDE, scores + i*C, C, 1, values + g*C*PANEL, n, 1);
    }
    for (int i = 0; i < rows; i++) for (int p = 0; p < K; p++) out[(head*T + t + i)*K + p] = total[i] == 0 ? 0 : mixed[i*WIDE + p] / total[i];
  }
}
"""
# The same for one query: a step of generation, where each key and value is read once.
SINGLE = SOFTMAX + r"""
enum { BLOCK = 64, VECTORS = (K + W - 1) / W };
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict q, const float *restrict k, const float *restrict v, MASK VARIABLES int part) {
  for (long head = HEADS*part/PARTS, t = 0, i = 0; head < HEADS*(part + 1)/PARTS; head++) {
    const float *hk = k + head/GROUP*ROOM*K, *hv = v + head/GROUP*ROOM*K, *hq = q + head*K;
    float top = -INFINITE, total = 0, scores[BLOCK];
    vec mixed[VECTORS] = {};
    float rest[W] = {};
    for (int s = 0; s < S; s += BLOCK) {
      int n = least(BLOCK, S - s);
      float now = top;
      for (int j = 0; j < BLOCK; j++) scores[j] = -INFINITE;
      for (int j = 0; j < n; j++) {
        const float *row = hk + (s + j)*K;
        vec y = 0.0f;
        int p = 0;
        for (; p + W <= K; p += W) y += *(const vec *)(hq + p) * *(const vec *)(row + p);
        float dot = sum(y);
        for (; p < K; p++) dot += hq[p] * row[p];
        scores[j] = dot * SCALE + BIAS;
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

def all_rows(x:Tensor) -> Tensor:
  """Keys or values (B, H, S, K) that are the first S rows of a larger tensor: that tensor, the cache. Others: themselves, as they lie in memory."""
  u = x.uop
  if u.op is Ops.SHRINK and u.src[0].shape[:2] == x.shape[:2] and u.src[0].shape[3] == x.shape[3] and all(s.op is Ops.CONST and s.val == 0 for s in u.src[1].src):
    return Tensor(u.src[0])
  return laid(x)

def gradient(scale:Any, causal:Any) -> Callable:
  def backward(dy:UOp, call:UOp) -> tuple[UOp|None, ...]:
    """Of softmax(scale q k^T + mask) v, with the weights computed once more."""
    d, q, k, v, *mask = (Tensor(u) for u in (dy, *call.src[2:]))
    seen = causal_mask(q.shape[2], k.shape[2]) if causal else mask[0] if mask else None
    group = q.shape[1] // k.shape[1]
    def share(x:Tensor) -> Tensor: return x if group == 1 else x.unsqueeze(2).expand(*x.shape[:2], group, *x.shape[2:]).reshape(*q.shape[:2], *x.shape[2:])
    def collect(x:Tensor) -> Tensor: return x if group == 1 else x.reshape(*k.shape[:2], group, *k.shape[2:]).sum(2)
    weights = transformer.attention_weights(q, share(k), seen, lambda q, k: product(q, k, turned_b=True) * scale).contiguous()
    slopes = product(d, share(v), turned_b=True)
    scores = (weights * (slopes - (weights * slopes).sum(-1, keepdim=True))).contiguous()
    dq, dk, dv = product(scores, share(k)) * scale, product(scores, q, turned_a=True) * scale, product(weights, d, turned_a=True)
    return None, dq.uop, collect(dk).uop, collect(dv).uop, *(scores.sum([i for i, n in enumerate(m.shape) if n == 1], keepdim=True).uop for m in mask)
  return backward

def attention(q:Tensor, k:Tensor, v:Tensor, mask:Tensor|None=None, similarity:Callable=scaled_dot_product) -> Tensor:
  """transformer.attention as a kernel above: q (B, H, T, K), k and v (B, G, S, K), where H/G heads share keys and values -> (B, H, T, K).

  It serves on the CPU, in float32, for dot products, scaled or not; other calls go to transformer.attention.
  """
  (B, H, T, K), S = q.shape, k.shape[2]
  scale = {scaled_dot_product: K**-0.5, transformer.dot_product: 1.0}.get(similarity)
  causal = mask is not None and T > 1 and mask.ndim == 2 and mask.uop is causal_mask(T, S).uop   # equal expressions are one UOp
  masks = [] if mask is None or causal else [mask.reshape(*[1]*(4 - mask.ndim), *mask.shape)]
  fits = isinstance(T, int) and (isinstance(S, int) or not masks) and all(a in (1, b) for m in masks for a, b in zip(m.shape, (B, H, T, S)))
  if scale is None or not fits or not T or {t.dtype for t in (q, k, v)} != {dtypes.float32} or not all(compiles(str(t.device)) for t in (q, k, v)):
    return transformer.attention(q, k, v, mask, similarity)
  k, v, masks = all_rows(k), all_rows(v), [laid(m.float()) for m in masks]
  bias = "0"
  for m in masks:
    strides = [0 if n == 1 else math.prod(m.shape[i + 1:]) for i, n in enumerate(m.shape)]
    bias = f"mask[head/{H}*{strides[0]} + head%{H}*{strides[1]} + (t + i)*{strides[2]} + (s + j)*{strides[3]}]"
  names = () if isinstance(S, int) else tuple(S.unbind_all()[0].variables())
  length = S if isinstance(S, int) else f"({S.unbind_all()[0].render()})"
  fxn = kernel("attention", MANY if T > 1 else SINGLE, 4 + len(masks), cut(B*H*T*k.shape[2]*K * (8 if T == 1 else 1)), names, HEADS=B*H, GROUP=H // k.shape[1], T=T, S=length, ROOM=k.shape[2], K=K,
               SCALE=f"{scale!r}f", CAUSAL=int(causal), BIAS=bias, MASK="const float *restrict mask," * len(masks), VARIABLES="".join(f"int {v.expr}, " for v in names))
  return empty(B, H, T, K).custom_kernel(laid(q), k, v, *masks, fxn=fxn, grad_fxn=gradient(scale, causal))[0]
