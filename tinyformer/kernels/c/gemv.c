#include "bias.h"
#include "dtypes.h"
#include "experts.h"
#include "partial_sums.h"

// Product of a weight matrix with the few rows of x in a step of generation:
//
//   out[m][n] = sum over k < K of x[m][k] * w[n][k]  (+ bias[n] if HAS_BIAS)
//
// out (M, N), x (M, K), w (N, K) of any type in dtypes.h, bias (N). experts.h describes the product
// with several matrices, for which M is 1.
enum { W_ROW = IS_INT8 ? K + 4 : K }; // elements in a row of w

#ifdef NAIVE
void naive(float *out, const float *x, const TYPE *w, const float *bias, const int *experts) {
  for (long i = 0; i < NUM_MATRICES; i++) {
    for (long m = 0; m < M; m++) {
      for (long n = 0; n < N; n++) {
        const TYPE *row = w + (matrix_of(experts, i) * N + n) * W_ROW;
        const float *y = x + (SAME_X ? 0 : i * M + m) * K;
        float sum = 0;
        for (long k = 0; k < K; k++)
          sum += y[k] * to_float(row[k]);
        out[(i * M + m) * N + n] = sum * row_scale(row + K) + (HAS_BIAS ? bias[n] : 0);
      }
    }
  }
}
#endif

// The kernel reads each weight once. With one or two rows of x it reads w in the order of memory,
// one row at a time: the memory delivers that fastest. With more rows of x, it multiplies
// ROWS_PER_ITER rows of w at the same time, so that x is read less often: as many as the registers
// can hold sums for, at most 4. Weights are converted to float32 as they are loaded, and the sums
// are float32. A task is a range of n.
enum { CACHE_LINE = 64 / sizeof(TYPE) }; // elements of w in 64 bytes
enum { STEP = CACHE_LINE > PARTS *W ? CACHE_LINE : PARTS * W };
enum { FIT = PARTS > 1 ? 1 : (REGISTERS - 1) / (M + 1) };
enum { ROWS_PER_ITER = FIT > 4 ? 4 : FIT < 1 ? 1 : FIT };
// The weights are prefetched AHEAD bytes before they are read, because Intel's CPUs do not prefetch
// beyond a page of 4 KiB. AMD's Zen 4 reads one row at a time faster without these instructions:
// decoding a token of GPT-2 in bfloat16 takes 8.4 instead of 9.6 ms (2026-11-30).
#if defined(__znver4__) || defined(__znver5__)
enum { AHEAD = ROWS_PER_ITER > 1 ? 8192 : 0 };
#else
enum { AHEAD = 8192 };
#endif
enum { UNITS = (N + ROWS_PER_ITER - 1) / ROWS_PER_ITER };

// Multiply the W columns from k on, and add the products to the sums s[...][part].
INLINE void multiply_add(vec s[M][ROWS_PER_ITER][PARTS], const float *x, const TYPE *const *row,
                         long k, int part) {
  vec y[ROWS_PER_ITER];
  UNROLL
  for (int r = 0; r < ROWS_PER_ITER; r++)
    y[r] = load_vec(row[r] + k);
  UNROLL
  for (int m = 0; m < M; m++) {
    vec z = *(const vec *)(x + m * K + k);
    UNROLL
    for (int r = 0; r < ROWS_PER_ITER; r++)
      s[m][r][part] += y[r] * z;
  }
}

// Multiply by one matrix w (N, K), and add a bias.
INLINE void multiply(float *restrict out, const float *restrict x, const TYPE *restrict w,
                     const float *restrict added, int task) {
  long n = UNITS * task / NUM_TASKS * ROWS_PER_ITER;
  long last = UNITS * (task + 1) / NUM_TASKS * ROWS_PER_ITER;
  for (; n < last; n += ROWS_PER_ITER) {
    const TYPE *row[ROWS_PER_ITER];
    for (int r = 0; r < ROWS_PER_ITER; r++)
      row[r] = w + min_int(n + r, N - 1) * (long)W_ROW;
    vec s[M][ROWS_PER_ITER][PARTS] = {};
    long k = 0;
    for (; k + STEP <= K; k += STEP) {
      UNROLL
      for (int r = 0; r < ROWS_PER_ITER; r++) {
        UNROLL
        for (int l = 0; AHEAD > 0 && l < STEP; l += CACHE_LINE)
          __builtin_prefetch((const char *)(row[r] + k + l) + AHEAD);
      }
      UNROLL
      for (int i = 0; i < STEP / W; i++)
        multiply_add(s, x, row, k + i * W, i % PARTS);
    }
    for (; k + W <= K; k += W)
      multiply_add(s, x, row, k, 0);
    UNROLL
    for (int m = 0; m < M; m++) {
      UNROLL
      for (int r = 0; r < ROWS_PER_ITER; r++) {
        float y = sum_parts(s[m][r]);
        for (long l = k; l < K; l++)
          y += to_float(row[r][l]) * x[m * K + l];
        if (n + r < N) {
          long c = n + r;
          out[m * N + c] = y * row_scale(row[r] + K) + (HAS_BIAS ? added[c] : 0);
        }
      }
    }
  }
}

KERNEL NAME(float *restrict out, const float *restrict x, const TYPE *restrict w,
            BIAS_PARAMETER EXPERTS_PARAMETER int task) {
  for (long i = 0; i < NUM_MATRICES; i++) {
    const TYPE *matrix = w + matrix_of(experts, i) * N * W_ROW;
    multiply(out + i * M * N, x + (SAME_X ? 0 : i * M * K), matrix, bias, task);
  }
}
