"""The product of a linear layer as kernels of its own for the CPU: the same numbers as the plain one, several times sooner; and weights in 8 bits."""

import math
from collections.abc import Callable

import numpy as np
from tinygrad import Tensor, UOp, dtypes, nn

import transformer
from tinyformer.kernels.c_kernel import (
  NARROW,
  TYPES,
  has_clang,
  num_tasks,
  empty,
  kernel,
  contiguous_buffer,
  dtype_macros,
  static_size,
)
from transformer import Size, materialize

# out (BATCH, M, N) = a (M, K) b (K, N), element i, k of a at a[i*AR + k*AC], element k, j of b at b[k*BR + j*BC], a product's a and b AB and BB
# after the last one's; with BIAS (N) added to each row of out. b is packed block by block, so that a tile's columns lie side by side; a tile of `out` stays in registers while k runs
# (Goto & van de Geijn 2008, sec. 4). A part of the work is some of the products, or some of the columns of one, or of its rows.
PRODUCT = (
  NARROW
  + r"""
enum { KB = 384, CB = 384 / C * C, MB = 48, BYTES = sizeof(TYPE) == 1 };   // a block of b, KB by CB, stays in the second cache, R rows of a in the first
enum { UNITS = BATCH > 1 ? BATCH : BY_COLUMN ? (N + C - 1) / C : (M + R - 1) / R };
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict output, const float *restrict as, const TYPE *restrict bs, BIAS int part) {
  ALIGNED float pb[KB*CB], pa[MB*KB];
  long first = UNITS*part/PARTS, last = UNITS*(part + 1)/PARTS, rows0 = 0, rows1 = M, columns0 = 0, columns1 = N;
  if (BATCH == 1 && BY_COLUMN) { columns0 = first*C; columns1 = least(N, last*C); }
  if (BATCH == 1 && !BY_COLUMN) { rows0 = first*R; rows1 = least(M, last*R); }
  for (long n = BATCH > 1 ? first : 0; n < (BATCH > 1 ? last : 1); n++) {
    float *out = output + n*M*N; const float *a = as + n*AB; const TYPE *b = bs + n*BB;
    for (int k = 0; k < K; k += KB) for (int c = columns0; c < columns1; c += CB) {
      int depth = least(KB, K - k), width = least(CB, columns1 - c);
      for (int j = 0; j < width; j += C) {
        float *to = pb + j*depth;
        if (BC == 1) for (int p = 0; p < depth; p++) {
          const TYPE *from = b + (k+p)*BR + c + j;
          if (j + C <= width) ALL for (int v = 0; v < NV; v++) *(vec *)(to + p*C + v*W) = widen(from + v*W);
          else for (int l = 0; l < C; l++) to[p*C + l] = j + l < width ? one(from[l]) : 0;
        }
        else for (int l = 0; l < C; l += 4) {
          const TYPE *from[4]; float scale[4]; int p = 0;
          ALL for (int i = 0; i < 4; i++) {
            from[i] = b + (c + least(j + l + i, width - 1))*BC + k*BR;
            scale[i] = BYTES ? *(const loose *)(from[i] + K - k) : 1;
          }
          if (BR == 1) for (; p + 4 <= depth; p += 4) {   // 4 by 4, turned in registers, the next four asked for
            four r[4];
            ALL for (int i = 0; i < 4; i++) __builtin_prefetch(from[i] + p + 4*BC);
            ALL for (int i = 0; i < 4; i++) r[i] = (four){one(from[i][p]), one(from[i][p+1]), one(from[i][p+2]), one(from[i][p+3])} * scale[i];
            turn4(to + p*C + l, C, r);
          }
          for (; p < depth; p++) ALL for (int i = 0; i < 4; i++) to[p*C + l + i] = one(from[i][p*BR]) * scale[i];
        }
      }
      for (int m = rows0; m < rows1; m += MB) {
        int height = least(MB, rows1 - m);
        for (int i = AC == 1 ? height / R * R : 0; i < height; i += R)   // rows that do not lie in memory as a tile reads them
          for (int p = 0; p < depth; p++) for (int r = 0; r < R; r++) pa[i*depth + p*R + r] = i + r < height ? a[(m+i+r)*AR + (k+p)*AC] : 0;
        for (int j = 0; j < width; j += C) for (int i = 0; i < height; i += R) {
          int rows = least(R, height - i), columns = least(C, width - j), packed = AC != 1 || rows < R;
          const float *x = packed ? pa + i*depth : a + (m+i)*AR + k;
          ALIGNED float edge[R*C];
          float *to = out + (m+i)*N + c + j;
          const float *more = k > 0 ? to : BIASED ? bias + c + j : 0;
          long across = packed ? 1 : AR, along = packed ? R : 1, down = k > 0 ? N : 0;
          if (rows == R && columns == C) tile(to, N, x, across, along, pb + j*depth, depth, more, down);
          else {
            tile(edge, C, x, across, along, pb + j*depth, depth, 0, 0);
            for (int r = 0; r < rows; r++) for (int l = 0; l < columns; l++) to[r*N + l] = edge[r*C + l] + (more ? more[r*down + l] : 0);
          }
        }
      }
    }
  }
}
"""
)

# out (M, N) = x (M, K) w^T + bias, w (N, K), for the few rows of a step of generation: each weight is read once, up to four rows of w abreast, as
# many as the registers have room for sums, and the memory asked for 8 KB ahead. Narrow weights are widened on the way; the sums are float32.
ROWS = (
  NARROW
  + r"""
enum { BYTES = sizeof(TYPE) == 1, ROW = BYTES ? K + 4 : K, LINE = 64 / sizeof(TYPE) };   // LINE: of the memory, 64 bytes
enum { FIT = (REGISTERS - 1) / (M + 1), ABREAST = FIT > 4 ? 4 : FIT < 1 ? 1 : FIT, UNITS = (N + ABREAST - 1) / ABREAST };
INLINE void gather(vec s[M][ABREAST], const float *x, const TYPE *const *row, long k) {   // W columns from k on
  vec y[ABREAST];
  ALL for (int r = 0; r < ABREAST; r++) y[r] = widen(row[r] + k);
  ALL for (int m = 0; m < M; m++) {
    vec z = *(const vec *)(x + m*K + k);
    ALL for (int r = 0; r < ABREAST; r++) s[m][r] += y[r] * z;
  }
}
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict x, const TYPE *restrict w, BIAS int part) {
  for (long n = UNITS*part/PARTS*ABREAST, last = UNITS*(part + 1)/PARTS*ABREAST; n < last; n += ABREAST) {
    const TYPE *row[ABREAST];
    for (int r = 0; r < ABREAST; r++) row[r] = w + least(n + r, N - 1)*(long)ROW;
    vec s[M][ABREAST] = {};
    long k = 0;
    for (; k + LINE <= K; k += LINE) {
      ALL for (int r = 0; r < ABREAST; r++) __builtin_prefetch((const char *)(row[r] + k) + 8192);
      ALL for (int l = 0; l < LINE; l += W) gather(s, x, row, k + l);
    }
    for (; k + W <= K; k += W) gather(s, x, row, k);
    ALL for (int m = 0; m < M; m++)
      ALL for (int r = 0; r < ABREAST; r++) {
        float y = sum(s[m][r]);
        for (long l = k; l < K; l++) y += one(row[r][l]) * x[m*K + l];
        if (n + r < N) { long c = n + r; out[m*N + c] = (BYTES ? y * *(const loose *)(row[r] + K) : y) + (BIASED ? bias[c] : 0); }
      }
  }
}
"""
)

# out (N) = the sum of the rows of a (M, N): W columns at a time.
SUMS = r"""
enum { UNITS = (N + W - 1) / W };
__attribute__((min_vector_width(512)))
ABI void NAME(float *restrict out, const float *restrict a, int part) {
  for (long c = UNITS*part/PARTS*W, last = least(N, UNITS*(part + 1)/PARTS*W); c < last; c += W) {
    if (c + W <= N) { vec s = 0.0f; for (long i = 0; i < M; i++) s += *(const vec *)(a + i*N + c); *(vec *)(out + c) = s; }
    else for (long j = c; j < N; j++) { float s = 0; for (long i = 0; i < M; i++) s += a[i*N + j]; out[j] = s; }
  }
}
"""
PLAIN = {"BIASED": 0, "BIAS": "", "bias": "((const float *)0)"}
BIASED = {"BIASED": 1, "BIAS": "const float *restrict bias,"}


def product(a: Tensor, b: Tensor, turned_a: bool = False, turned_b: bool = False) -> Tensor:
  """a (..., M, K) b (..., K, N) -> (..., M, N), on the CPU. turned: given as (..., K, M), as (..., N, K). Not differentiable."""
  M, K = a.shape[-2:][::-1] if turned_a else a.shape[-2:]
  N, batch = b.shape[-2 if turned_b else -1], math.prod(a.shape[:-2])
  return empty(*a.shape[:-2], M, N).custom_kernel(
    contiguous_buffer(a),
    contiguous_buffer(b),
    fxn=multiplier(batch, M, N, K, b, turned_a, turned_b),
  )[0]


def multiplier(
  batch: Size,
  M: Size,
  N: Size,
  K: Size,
  b: Tensor,
  turned_a: bool = False,
  turned_b: bool = False,
  bias: bool = False,
) -> Callable:
  """The kernel that `product` needs."""
  row = b.shape[-1]  # of an int8 matrix it is 4 longer than K
  by_column = not turned_a and N >= 192  # each part packs what it reads of a turned a, and of b
  parts = min(
    num_tasks(batch * M * N * K), 16 if by_column or batch > 1 else -(-static_size(M) // 32)
  )
  return kernel(
    "product",
    PRODUCT,
    3 + bias,
    BATCH=batch,
    M=M,
    N=N,
    K=K,
    AR=1 if turned_a else K,
    AC=M if turned_a else 1,
    BR=1 if turned_b else row,
    BC=row if turned_b else 1,
    AB=M * K,
    BB=math.prod(b.shape[-2:]),
    BY_COLUMN=int(by_column),
    **dtype_macros(b.dtype),
    **(BIASED if bias else PLAIN),
    parts=parts,
  )


def gradient(dy: UOp, call: UOp) -> tuple[UOp | None, ...]:
  """Of y = x w^T + bias: dx = dy w, dw = dy^T x, and the sum of dy's rows."""
  d, x, w, *bias = Tensor(dy).contiguous(), *(Tensor(u) for u in call.src[2:])
  M, N = d.shape
  return (
    None,
    product(d, w).uop,
    product(d, x, turned_a=True).cast(w.dtype).uop,
    *(
      empty(N)
      .custom_kernel(d, fxn=kernel("sums", SUMS, 2, M=M, N=N, parts=num_tasks(4 * M * N)))[0]
      .uop
      for _ in bias
    ),
  )


def quantize_int8(weight: np.ndarray) -> np.ndarray:
  """(N, K) -> (N, K + 4) in int8: each row as the nearest multiples of a scale, its largest number / 127; the scale's own 4 bytes end the row."""
  scale = np.abs(weight).max(1, keepdims=True, initial=0).astype(np.float32) / np.float32(127)
  return np.concatenate(
    [np.rint(weight / np.where(scale == 0, 1, scale)).astype(np.int8), scale.view(np.int8)], 1
  )


def to_float32(weight: Tensor) -> Tensor:
  """(..., K + 4) in int8, as bytes_of makes it -> (..., K) in float32. Any other tensor only becomes float32."""
  if weight.dtype != dtypes.int8:
    return weight.float()
  return weight[..., :-4].float() * weight[..., -4:].contiguous().bitcast(dtypes.float32)


def embed(table: nn.Embedding, ids: Tensor) -> Tensor:
  """The table's rows for ids (...) -> (..., D) in float32."""
  return table(ids) if table.weight.dtype == dtypes.float32 else gather_rows(table.weight, ids)


def gather_rows(weight: Tensor, ids: Tensor) -> Tensor:
  """weight[ids] in float32. Numbers of 16 bits are looked up as whole ones: tinygrad's look-up is a sum with zeros, and a CPU without bfloat16
  arithmetic cannot round it."""
  if weight.dtype == dtypes.float32:
    return weight[ids]
  if weight.dtype == dtypes.int8:
    return to_float32(weight[ids].contiguous())
  return weight.bitcast(dtypes.int16)[ids].contiguous().bitcast(weight.dtype).float()


class PackedLinear(transformer.Linear):
  """transformer.Linear with its product as a kernel above: on the CPU, for inputs in float32. Elsewhere it is transformer.Linear."""

  @staticmethod
  def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K), weight (N, K) in float32, float16 or bfloat16, or as bytes_of makes it -> x weight^T + bias (..., N)."""
    N, M, K = weight.shape[0], math.prod(x.shape[:-1]), x.shape[-1]
    if not (
      isinstance(M, int)
      and M
      and x.device == weight.device
      and has_clang(str(x.device))
      and x.dtype == dtypes.float32
      and weight.dtype in TYPES
    ):
      y = transformer.Linear.product(
        materialize(x), to_float32(weight) if weight.dtype == dtypes.int8 else weight
      )
      return y if bias is None else materialize(y + bias)
    given = [] if bias is None else [contiguous_buffer(bias)]
    fxn = (
      multiplier(1, M, N, K, weight, turned_b=True, bias=bool(given))
      if M > 16
      else kernel(
        "rows",
        ROWS,
        3 + len(given),
        M=M,
        N=N,
        K=K,
        **dtype_macros(weight.dtype),
        **(BIASED if given else PLAIN),
        parts=num_tasks(5 * N * K),
      )
    )
    y = empty(M, N).custom_kernel(
      contiguous_buffer(x.reshape(M, K)),
      contiguous_buffer(weight),
      *given,
      fxn=fxn,
      grad_fxn=gradient,
    )[0]
    return y.reshape(*x.shape[:-1], N)

  def __call__(self, x: Tensor) -> Tensor:
    """(..., inputs) -> (..., outputs)."""
    return self.product(x, self.weight, self.bias)
