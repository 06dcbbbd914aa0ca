#include "dtypes.h"

// Bound the error of the approximate logits, per row w of the head (N, K) and c of its copy (N, K):
//
//   out[n] = |w[n] - c[n]| + (K + 8) * 1.2e-7 * |w[n]|        so that, for every x (K),
//   |logit - approximate logit| <= out[n] * |x|
//
// The first term bounds the rounding of the copy (Cauchy-Schwarz inequality). The second bounds the
// float32 rounding error, 2^-24 K |w| |x| in each of the two sums, and that of this computation.

#ifdef NAIVE
void naive(float *out, const float *head, const TYPE *copy) {
  for (long n = 0; n < N; n++) {
    float squared_error = 0;
    float squared_norm = 0;
    for (long k = 0; k < K; k++) {
      float w = head[n * K + k];
      float difference = w - to_float(copy[n * K + k]);
      squared_error += difference * difference;
      squared_norm += w * w;
    }
    out[n] = __builtin_sqrtf(squared_error) + (K + 8) * 1.2e-7 * __builtin_sqrtf(squared_norm);
  }
}
#endif

// The kernel adds W elements of a row at a time. A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict head, const TYPE *restrict copy, int task) {
  for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++) {
    const float *w = head + n * K;
    const TYPE *c = copy + n * K;
    vec vec_error = 0.0f;
    vec vec_norm = 0.0f;
    long k = 0;
    for (; k + W <= K; k += W) {
      vec y = *(const vec *)(w + k);
      vec z = y - load_vec(c + k);
      vec_error += z * z;
      vec_norm += y * y;
    }
    float error = hsum(vec_error);
    float norm = hsum(vec_norm);
    for (; k < K; k++) {
      float z = w[k] - to_float(c[k]);
      error += z * z;
      norm += w[k] * w[k];
    }
    out[n] = __builtin_sqrtf(error) + (K + 8) * 1.2e-7f * __builtin_sqrtf(norm);
  }
}
