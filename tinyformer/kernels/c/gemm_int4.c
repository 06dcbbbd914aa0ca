#include "bias.h"
#include "int4.h"
#include "int8_rows.h"

// Product of many rows of x with an int4 weight matrix:
//
//   out[m][n] = sum over g of w_scale[n][g] * x_scale[m][g] * sum over i of x[m][g][i] * w[n][g][i]
//               (+ bias[n] if HAS_BIAS)
//
// for groups g < K / 32 of i < 32 columns. x (M, K) was quantized by quantize_rows.c in groups of
// 32. w (N, K) is in int4 (see int4.h), and w[n][g][i] is one of its integers from -8 to 7. The
// sums over i are exact; the sum over g is in float32. out (M, N), bias (N). gemv_int4.c computes
// the same for few rows of x, which it quantizes itself.

#ifdef NAIVE
void naive(float *out, const signed char *x, const byte *w, const float *bias) {
  for (long m = 0; m < M; m++) {
    const signed char *q = x + m * Q_ROW;
    for (long n = 0; n < N; n++) {
      float y = HAS_BIAS ? bias[n] : 0;
      for (long g = 0; g < GROUPS; g++) {
        const byte *block = w + n * W_ROW + g * BLOCK;
        int sum = 0;
        for (long i = 0; i < GROUP; i++) {
          byte pair = block[2 + i % HALF];
          sum += q[g * GROUP + i] * ((i < HALF ? pair % 16 : pair / 16) - 8);
        }
        y += block_scale(block) * group_scale(q, g) * sum;
      }
      out[m * N + n] = y;
    }
  }
}
#endif

// The kernel is blocked and packed as gemm_dot.c. A word has four values of consecutive columns,
// and a block DEPTH groups of WORDS words each. A tile has half of the rows of other products,
// because its sums of integers and its sums of floats both stay in registers. Weights are packed as
// q, which is not negative, and -8 times the sum of x's group is added. A task is a range of the
// columns or rows of out.
enum { ROWS = R / 2, WORDS = GROUP / 4, DEPTH = 8 };
enum { NC = 384 / C * C, MC = 96 / ROWS * ROWS };
enum { COLUMN_TILES = (N + C - 1) / C, ROW_TILES = (M + ROWS - 1) / ROWS };
enum { UNITS = SPLIT_COLUMNS ? COLUMN_TILES : ROW_TILES };

// A block of w and of x. Each tile of C rows of w has its own DEPTH groups.
typedef struct {
  ALIGNED int w[NC / C][DEPTH][WORDS][C];
  ALIGNED float w_scale[NC / C][DEPTH][C];
  int x[MC][DEPTH][WORDS];
  float x_scale[MC][DEPTH];
  int x_offset[MC][DEPTH]; // what to add to each sum of a row's group
} Block;

// Pack `groups` blocks of C rows of w as tile t, of which `width` exist.
INLINE void pack_w(Block *block, int t, const byte *w, int groups, int width) {
  typedef int int4 __attribute__((ext_vector_type(4), aligned(1)));
  for (int l = 0; l < C; l += 4) {
    const byte *row[4];
    UNROLL
    for (int i = 0; i < 4; i++)
      row[i] = w + min_int(l + i, width - 1) * (long)W_ROW;
    for (int g = 0; g < groups; g++) {
      vec4 low[4], high[4];
      UNROLL
      for (int i = 0; i < 4; i++) {
        const byte *in = row[i] + g * BLOCK;
        __builtin_prefetch(in + 4 * (long)W_ROW);
        block->w_scale[t][g][l + i] = block_scale(in);
        int4 pairs = *(const int4 *)(in + 2);
        low[i] = (vec4)(pairs & 0x0f0f0f0f);
        high[i] = (vec4)(pairs >> 4 & 0x0f0f0f0f);
      }
      transpose4x4((float *)block->w[t][g][0] + l, C, low);
      transpose4x4((float *)block->w[t][g][WORDS / 2] + l, C, high);
    }
  }
}

// Pack row i of a block of x: `groups` groups of row m from group g on.
INLINE void pack_x(Block *block, int i, const signed char *x, long m, long g, int groups) {
  const signed char *row = x + m * Q_ROW;
  for (int p = 0; p < groups; p++) {
    // A constant size: clang calls memcpy for others, and tinygrad's loader cannot link a call over
    // more than 2 GB.
    __builtin_memcpy(block->x[i][p], row + (g + p) * GROUP, GROUP);
    block->x_scale[i][p] = group_scale(row, g + p);
    block->x_offset[i][p] = -8 * group_sum(row, g + p);
  }
}

// Multiply ROWS rows of x from i0 on by the C rows of w in tile t, for `groups` groups, and add
// accumulate[i][j] unless it is null.
INLINE void int4_tile(float *out, long ld, const Block *block, int i0, int t, int groups,
                      const float *accumulate, long acc_row) {
  vec y[ROWS][NV];
  UNROLL
  for (int i = 0; i < ROWS; i++) {
    UNROLL
    for (int j = 0; j < NV; j++)
      y[i][j] = accumulate ? *(const vec *)(accumulate + i * acc_row + j * W) : (vec)0.0f;
  }
  for (int g = 0; g < groups; g++) {
    int_vec s[ROWS][NV];
    UNROLL
    for (int i = 0; i < ROWS; i++) {
      UNROLL
      for (int j = 0; j < NV; j++)
        s[i][j] = block->x_offset[i0 + i][g];
    }
    UNROLL
    for (int p = 0; p < WORDS; p++) {
      UNROLL
      for (int i = 0; i < ROWS; i++) {
        int_vec z = block->x[i0 + i][g][p];
        UNROLL
        for (int j = 0; j < NV; j++) {
          int_vec q = *(const int_vec *)(block->w[t][g][p] + j * W);
          s[i][j] = add_products(s[i][j], (byte_vec)q, (signed_vec)z);
        }
      }
    }
    UNROLL
    for (int j = 0; j < NV; j++) {
      vec scale = *(const vec *)(block->w_scale[t][g] + j * W);
      UNROLL
      for (int i = 0; i < ROWS; i++)
        y[i][j] += __builtin_convertvector(s[i][j], vec) * scale * block->x_scale[i0 + i][g];
    }
  }
  UNROLL
  for (int i = 0; i < ROWS; i++) {
    UNROLL
    for (int j = 0; j < NV; j++)
      *(vec *)(out + i * ld + j * W) = y[i][j];
  }
}

KERNEL NAME(float *restrict out, const signed char *restrict x, const byte *restrict w,
            BIAS_PARAMETER int task) {
  Block block;
  long first = UNITS * task / NUM_TASKS, last = UNITS * (task + 1) / NUM_TASKS;
  long first_row = SPLIT_COLUMNS ? 0 : first * ROWS;
  long last_row = SPLIT_COLUMNS ? M : min_int(M, last * ROWS);
  long first_column = SPLIT_COLUMNS ? first * C : 0;
  long last_column = SPLIT_COLUMNS ? min_int(N, last * C) : N;
  for (long g = 0; g < GROUPS; g += DEPTH)
    for (long c = first_column; c < last_column; c += NC) {
      int groups = min_int(DEPTH, GROUPS - g);
      int width = min_int(NC, last_column - c);
      for (int j = 0; j < width; j += C)
        pack_w(&block, j / C, w + (c + j) * W_ROW + g * BLOCK, groups, width - j);
      for (long m = first_row; m < last_row; m += MC) {
        int height = min_int(MC, last_row - m);
        for (int i = 0; i < (height + ROWS - 1) / ROWS * ROWS; i++)
          pack_x(&block, i, x, m + min_int(i, height - 1), g, groups);
        for (int j = 0; j < width; j += C)
          for (int i = 0; i < height; i += ROWS) {
            int rows = min_int(ROWS, height - i);
            int columns = min_int(C, width - j);
            ALIGNED float edge[ROWS * C];
            float *tile = out + (m + i) * N + c + j;
            // The first groups start from the bias, later ones from the sums so far.
            const float *accumulate = g > 0 ? tile : HAS_BIAS ? bias + c + j : 0;
            long acc_row = g > 0 ? N : 0;
            if (rows == ROWS && columns == C) {
              int4_tile(tile, N, &block, i, j / C, groups, accumulate, acc_row);
            } else {
              int4_tile(edge, C, &block, i, j / C, groups, 0, 0);
              for (int r = 0; r < rows; r++)
                for (int l = 0; l < columns; l++)
                  tile[r * N + l] =
                      edge[r * C + l] + (accumulate ? accumulate[r * acc_row + l] : 0);
            }
          }
      }
    }
}
