"""Compute matrix products on the CPU with C kernels, from float32, 16-bit or int8 weights."""

import math
from collections.abc import Callable
from typing import Any

from tinygrad import Tensor, UOp, dtypes

import transformer
from tinyformer.kernels.c_kernel import (
  C_TYPES,
  DTYPE_LOADS,
  contiguous_buffer,
  dtype_macros,
  empty,
  has_clang,
  kernel,
  num_tasks,
  static_size,
)
from tinyformer.kernels.fused import Size, linear

# PackedLinear multiplies up to this many rows of x by GEMV, and more by GEMM.
MAX_GEMV_ROWS = 16

GEMM = (
  DTYPE_LOADS
  + r"""
// Batched matrix product, blocked and packed (Goto & van de Geijn 2008, sec. 4):
//
//   out[n][i][j] = sum over k < K of a[n][i][k] * b[n][k][j]  (+ bias[j] if HAS_BIAS)
//
// for n < BATCH, i < M, j < N. a[n][i][k] is at n * A_BATCH + i * A_ROW + k * A_COL and
// b[n][k][j] at n * B_BATCH + k * B_ROW + j * B_COL, so either matrix may be transposed.
//
// A block of b, KC by NC, is packed C columns at a time and stays in the L2 cache. R rows of a stay
// in the L1 cache, and a tile of out, R by C, in registers. Rows of a are packed, MC at a time,
// unless they are contiguous. A task is a range of the batch, or of the columns or rows of out.
enum { KC = 384, NC = 384 / C * C, MC = 48, IS_INT8 = sizeof(TYPE) == 1 };
enum { COLUMN_TILES = (N + C - 1) / C, ROW_TILES = (M + R - 1) / R };
enum { UNITS = BATCH > 1 ? BATCH : SPLIT_COLUMNS ? COLUMN_TILES : ROW_TILES };

// out (depth, C) = b[k to k + depth][column to column + C] as float32. Only `width` columns exist.
INLINE void pack_b(float *out, const TYPE *b, int k, int depth, int column, int width) {
  if (B_COL == 1) {
    for (int p = 0; p < depth; p++) {
      const TYPE *in = b + (k + p) * B_ROW + column;
      if (C <= width) {
        UNROLL
        for (int v = 0; v < NV; v++)
          *(vec *)(out + p * C + v * W) = load_vec(in + v * W);
      } else {
        for (int l = 0; l < C; l++)
          out[p * C + l] = l < width ? to_float(in[l]) : 0;
      }
    }
    return;
  }
  for (int l = 0; l < C; l += 4) {
    const TYPE *in[4];
    float scale[4];
    int p = 0;
    UNROLL
    for (int i = 0; i < 4; i++) {
      in[i] = b + (column + min_int(l + i, width - 1)) * B_COL + k * B_ROW;
      scale[i] = IS_INT8 ? *(const unaligned_float *)(in[i] + K - k) : 1;
    }
    // Transpose 4 by 4 values in registers, and prefetch the next four columns.
    if (B_ROW == 1) {
      for (; p + 4 <= depth; p += 4) {
        vec4 r[4];
        UNROLL
        for (int i = 0; i < 4; i++)
          __builtin_prefetch(in[i] + p + 4 * B_COL);
        UNROLL
        for (int i = 0; i < 4; i++)
          r[i] = (vec4){to_float(in[i][p]), to_float(in[i][p + 1]), to_float(in[i][p + 2]),
                        to_float(in[i][p + 3])} *
                 scale[i];
        transpose4x4(out + p * C + l, C, r);
      }
    }
    for (; p < depth; p++) {
      UNROLL
      for (int i = 0; i < 4; i++)
        out[p * C + l + i] = to_float(in[i][p * B_ROW]) * scale[i];
    }
  }
}

KERNEL NAME(float *restrict outs, const float *restrict as, const TYPE *restrict bs,
            BIAS_PARAM int task) {
  ALIGNED float packed_b[KC * NC], packed_a[MC * KC];
  long first = UNITS * task / NUM_TASKS, last = UNITS * (task + 1) / NUM_TASKS;
  long first_row = 0, last_row = M, first_column = 0, last_column = N;
  if (BATCH == 1 && SPLIT_COLUMNS) {
    first_column = first * C;
    last_column = min_int(N, last * C);
  }
  if (BATCH == 1 && !SPLIT_COLUMNS) {
    first_row = first * R;
    last_row = min_int(M, last * R);
  }
  for (long n = BATCH > 1 ? first : 0; n < (BATCH > 1 ? last : 1); n++) {
    float *out = outs + n * M * N;
    const float *a = as + n * A_BATCH;
    const TYPE *b = bs + n * B_BATCH;
    for (int k = 0; k < K; k += KC)
      for (int c = first_column; c < last_column; c += NC) {
        int depth = min_int(KC, K - k);
        int width = min_int(NC, last_column - c);
        for (int j = 0; j < width; j += C)
          pack_b(packed_b + j * depth, b, k, depth, c + j, width - j);
        for (int m = first_row; m < last_row; m += MC) {
          int height = min_int(MC, last_row - m);
          // Pack the rows that gemm_tile cannot read in place: all of a transposed a, or the last
          // ones if they do not fill a tile.
          for (int i = A_COL == 1 ? height / R * R : 0; i < height; i += R)
            for (int p = 0; p < depth; p++)
              for (int r = 0; r < R; r++)
                packed_a[i * depth + p * R + r] =
                    i + r < height ? a[(m + i + r) * A_ROW + (k + p) * A_COL] : 0;
          for (int j = 0; j < width; j += C)
            for (int i = 0; i < height; i += R) {
              int rows = min_int(R, height - i);
              int columns = min_int(C, width - j);
              int packed = A_COL != 1 || rows < R;
              const float *x = packed ? packed_a + i * depth : a + (m + i) * A_ROW + k;
              long x_row = packed ? 1 : A_ROW;
              long x_col = packed ? R : 1;
              ALIGNED float edge[R * C];
              float *tile = out + (m + i) * N + c + j;
              // The first block of k starts from the bias, later blocks from the sums so far.
              const float *accumulate = k > 0 ? tile : HAS_BIAS ? bias + c + j : 0;
              long acc_row = k > 0 ? N : 0;
              if (rows == R && columns == C) {
                gemm_tile(tile, N, x, x_row, x_col, packed_b + j * depth, depth, accumulate,
                          acc_row);
              } else {
                gemm_tile(edge, C, x, x_row, x_col, packed_b + j * depth, depth, 0, 0);
                for (int r = 0; r < rows; r++)
                  for (int l = 0; l < columns; l++)
                    tile[r * N + l] =
                        edge[r * C + l] + (accumulate ? accumulate[r * acc_row + l] : 0);
              }
            }
        }
      }
  }
}
"""
)

GEMV = (
  DTYPE_LOADS
  + r"""
// Product of a weight matrix with the few rows of x in a step of generation:
//
//   out[m][n] = sum over k < K of x[m][k] * w[n][k]  (+ bias[n] if HAS_BIAS)
//
// for m < M, n < N. Each weight is read once, 8 KB after it was prefetched. ROWS_PER_ITER rows of w
// are multiplied at the same time: as many as the registers can hold sums for, at most 4. Weights
// are converted to float32 as they are loaded, and the sums are float32. A task is a range of n.
enum { IS_INT8 = sizeof(TYPE) == 1, W_ROW = IS_INT8 ? K + 4 : K };
enum { CACHE_LINE = 64 / sizeof(TYPE) }; // elements of w in 64 bytes
enum { FIT = (REGISTERS - 1) / (M + 1), ROWS_PER_ITER = FIT > 4 ? 4 : FIT < 1 ? 1 : FIT };
enum { UNITS = (N + ROWS_PER_ITER - 1) / ROWS_PER_ITER };

// Multiply the W columns from k on, and add the products to the sums s.
INLINE void multiply_add(vec s[M][ROWS_PER_ITER], const float *x, const TYPE *const *row, long k) {
  vec y[ROWS_PER_ITER];
  UNROLL
  for (int r = 0; r < ROWS_PER_ITER; r++)
    y[r] = load_vec(row[r] + k);
  UNROLL
  for (int m = 0; m < M; m++) {
    vec z = *(const vec *)(x + m * K + k);
    UNROLL
    for (int r = 0; r < ROWS_PER_ITER; r++)
      s[m][r] += y[r] * z;
  }
}

KERNEL NAME(float *restrict out, const float *restrict x, const TYPE *restrict w,
            BIAS_PARAM int task) {
  long n = UNITS * task / NUM_TASKS * ROWS_PER_ITER;
  long last = UNITS * (task + 1) / NUM_TASKS * ROWS_PER_ITER;
  for (; n < last; n += ROWS_PER_ITER) {
    const TYPE *row[ROWS_PER_ITER];
    for (int r = 0; r < ROWS_PER_ITER; r++)
      row[r] = w + min_int(n + r, N - 1) * (long)W_ROW;
    vec s[M][ROWS_PER_ITER] = {};
    long k = 0;
    for (; k + CACHE_LINE <= K; k += CACHE_LINE) {
      UNROLL
      for (int r = 0; r < ROWS_PER_ITER; r++)
        __builtin_prefetch((const char *)(row[r] + k) + 8192);
      UNROLL
      for (int l = 0; l < CACHE_LINE; l += W)
        multiply_add(s, x, row, k + l);
    }
    for (; k + W <= K; k += W)
      multiply_add(s, x, row, k);
    UNROLL
    for (int m = 0; m < M; m++) {
      UNROLL
      for (int r = 0; r < ROWS_PER_ITER; r++) {
        float y = hsum(s[m][r]);
        for (long l = k; l < K; l++)
          y += to_float(row[r][l]) * x[m * K + l];
        if (n + r < N) {
          long c = n + r;
          out[m * N + c] =
              (IS_INT8 ? y * *(const unaligned_float *)(row[r] + K) : y) + (HAS_BIAS ? bias[c] : 0);
        }
      }
    }
  }
}
"""
)

COLUMN_SUMS = r"""
// out[j] = sum over i < M of a[i][j], for j < N: the gradient of a bias. W columns at a time.
// A task is a range of columns.
enum { UNITS = (N + W - 1) / W };
KERNEL NAME(float *restrict out, const float *restrict a, int task) {
  long c = UNITS * task / NUM_TASKS * W;
  long last = min_int(N, UNITS * (task + 1) / NUM_TASKS * W);
  for (; c < last; c += W) {
    if (c + W <= N) {
      vec s = 0.0f;
      for (long i = 0; i < M; i++)
        s += *(const vec *)(a + i * N + c);
      *(vec *)(out + c) = s;
    } else {
      for (long j = c; j < N; j++) {
        float s = 0;
        for (long i = 0; i < M; i++)
          s += a[i * N + j];
        out[j] = s;
      }
    }
  }
}
"""
NO_BIAS = {"HAS_BIAS": 0, "BIAS_PARAM": "", "bias": "((const float *)0)"}
WITH_BIAS = {"HAS_BIAS": 1, "BIAS_PARAM": "const float *restrict bias,"}


def matmul(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
  """Return a (..., M, K) times b (..., K, N) -> (..., M, N), on the CPU. It is not differentiable.

  transpose_a: a is passed as (..., K, M).  transpose_b: b is passed as (..., N, K).
  """
  M, K = a.shape[-2:][::-1] if transpose_a else a.shape[-2:]
  N = b.shape[-2 if transpose_b else -1]
  batch = math.prod(a.shape[:-2])
  function = matmul_kernel((batch, M, N, K), b, transpose_a, transpose_b)
  out = empty(*a.shape[:-2], M, N)
  return out.custom_kernel(contiguous_buffer(a), contiguous_buffer(b), fxn=function)[0]


def matmul_kernel(
  sizes: tuple[Size, Size, Size, Size],
  b: Tensor,
  transpose_a: bool = False,
  transpose_b: bool = False,
  bias: bool = False,
) -> Callable:
  """Return the GEMM kernel for sizes (batch, M, N, K); b and the flags are those of `matmul`."""
  batch, M, N, K = sizes
  # A row of an int8 matrix is 4 longer than K.
  row_size = b.shape[-1]
  # Each task packs what it reads of b and of a transposed a.
  split_columns = not transpose_a and N >= 192
  max_tasks = 16 if split_columns or batch > 1 else -(-static_size(M) // 32)
  macros: dict[str, Any] = dict(
    BATCH=batch,
    M=M,
    N=N,
    K=K,
    A_ROW=1 if transpose_a else K,
    A_COL=M if transpose_a else 1,
    B_ROW=1 if transpose_b else row_size,
    B_COL=row_size if transpose_b else 1,
    A_BATCH=M * K,
    B_BATCH=math.prod(b.shape[-2:]),
    SPLIT_COLUMNS=int(split_columns),
    **dtype_macros(b.dtype),
    **(WITH_BIAS if bias else NO_BIAS),
  )
  tasks = min(num_tasks(batch * M * N * K), max_tasks)
  return kernel("gemm", GEMM, 3 + bias, tasks, **macros)


def linear_backward(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
  """Return the gradients of y = x w^T + bias: dx = dy w, dw = dy^T x, dbias = the sum of dy's rows.

  dy (M, N), x (M, K), w (N, K), bias (N), if there is one.
  """
  dy = Tensor(grad).contiguous()
  x, w, *bias = (Tensor(u) for u in call.src[2:])
  dx = matmul(dy, w)
  dw = matmul(dy, x, transpose_a=True).cast(w.dtype)
  if not bias:
    return None, dx.uop, dw.uop
  M, N = dy.shape
  function = kernel("column_sums", COLUMN_SUMS, 2, num_tasks(4 * M * N), M=M, N=N)
  return None, dx.uop, dw.uop, empty(N).custom_kernel(dy, fxn=function)[0].uop


class PackedLinear(transformer.Linear):
  """A transformer.Linear whose product is a C kernel, if x is float32 and on the CPU."""

  @staticmethod
  def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias (..., N), for x (..., K) and bias (N).

    weight: (N, K) in float32, float16 or bfloat16, or (N, K + 4) in int8 as quantize_int8
    returns it. Calls that the kernels do not support are passed on to fused.linear.
    """
    N = weight.shape[0]
    M = math.prod(x.shape[:-1])
    K = x.shape[-1]
    supported = (
      isinstance(M, int)
      and M
      and x.device == weight.device
      and has_clang(str(x.device))
      and x.dtype == dtypes.float32
      and weight.dtype in C_TYPES
    )
    if not supported:
      return linear(x, weight, bias)
    biases = [] if bias is None else [contiguous_buffer(bias)]
    if M > MAX_GEMV_ROWS:
      function = matmul_kernel((1, M, N, K), weight, transpose_b=True, bias=bool(biases))
    else:
      macros = dtype_macros(weight.dtype) | (WITH_BIAS if biases else NO_BIAS)
      tasks = num_tasks(5 * N * K)
      function = kernel("gemv", GEMV, 3 + len(biases), tasks, M=M, N=N, K=K, **macros)
    inputs = (contiguous_buffer(x.reshape(M, K)), contiguous_buffer(weight), *biases)
    y = empty(M, N).custom_kernel(*inputs, fxn=function, grad_fxn=linear_backward)[0]
    return y.reshape(*x.shape[:-1], N)

  def __call__(self, x: Tensor) -> Tensor:
    """Return x W^T + bias: (..., inputs) -> (..., outputs)."""
    return self.product(x, self.weight, self.bias)
