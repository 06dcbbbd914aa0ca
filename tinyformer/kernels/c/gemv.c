#include "dtypes.h"

// Product of a weight matrix with the few rows of x in a step of generation:
//
//   out[m][n] = sum over k < K of x[m][k] * w[n][k]  (+ bias[n] if HAS_BIAS)
//
// out (M, N), x (M, K), w (N, K) of any type in dtypes.h, bias (N).
enum { W_ROW = IS_INT8 ? K + 4 : K }; // elements in a row of w

#ifdef NAIVE
void naive(float *out, const float *x, const TYPE *w, const float *bias) {
  for (long m = 0; m < M; m++) {
    for (long n = 0; n < N; n++) {
      const TYPE *row = w + n * W_ROW;
      float sum = 0;
      for (long k = 0; k < K; k++)
        sum += x[m * K + k] * to_float(row[k]);
      out[m * N + n] = sum * row_scale(row + K) + (HAS_BIAS ? bias[n] : 0);
    }
  }
}
#endif

// The kernel reads each weight once, 8 KB after it was prefetched. ROWS_PER_ITER rows of w
// are multiplied at the same time: as many as the registers can hold sums for, at most 4. Weights
// are converted to float32 as they are loaded, and the sums are float32. A task is a range of n.
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
#if HAS_BIAS
            const float *restrict bias,
#endif
            int task) {
#if !HAS_BIAS
  const float *bias = 0;
#endif
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
          out[m * N + c] = y * row_scale(row[r] + K) + (HAS_BIAS ? bias[c] : 0);
        }
      }
    }
  }
}
