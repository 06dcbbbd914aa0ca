#include "bias.h"
#include "dtypes.h"

// Batched matrix product:
//
//   out[n][i][j] = sum over k < K of a[n][i][k] * b[n][k][j]  (+ bias[j] if HAS_BIAS)
//
// for n < BATCH, i < M, j < N. a[n][i][k] is at n * A_BATCH + i * A_ROW + k * A_COL and
// b[n][k][j] at n * B_BATCH + k * B_ROW + j * B_COL, so either matrix may be transposed. An int8
// matrix must be transposed (B_ROW is 1), because its scales are those of its columns j.

#ifdef NAIVE
void naive(float *out, const float *a, const TYPE *b, const float *bias) {
  for (long n = 0; n < BATCH; n++) {
    for (long i = 0; i < M; i++) {
      for (long j = 0; j < N; j++) {
        const float *row = a + n * A_BATCH + i * A_ROW;
        const TYPE *column = b + n * B_BATCH + j * B_COL;
        float sum = 0;
        for (long k = 0; k < K; k++)
          sum += row[k * A_COL] * to_float(column[k * B_ROW]);
        out[(n * M + i) * N + j] = sum * row_scale(column + K) + (HAS_BIAS ? bias[j] : 0);
      }
    }
  }
}
#endif

// The kernel is blocked and packed (Goto & van de Geijn 2008, sec. 4). A block of b, KC by NC, is
// packed C columns at a time and stays in the L2 cache. R rows of a stay in the L1 cache, and a
// tile of out, R by C, in registers. Rows of a are packed, MC at a time, unless they are
// contiguous. A task is a range of the batch, or of the columns or rows of out.
enum { KC = 384, NC = 384 / C * C, MC = 48 };
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
      scale[i] = row_scale(in[i] + K - k);
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
            BIAS_PARAMETER int task) {
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
