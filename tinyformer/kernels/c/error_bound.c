#include "dtypes.h"

// Bound the error of the approximate logits, per row w of the head (N, K) and q of its copy in
// int8, whose rows (N, K + 4) end with their scales:
//
//   error = |w[n] - scale[n] * q[n]|
//   out[n] = error + (K + 8) * 1.2e-7 * (|w[n]| + error)        so that, for every x (K),
//   |logit - approximate logit| <= out[n] * |x|
//
// The first term bounds the rounding of the copy (Cauchy-Schwarz inequality). The second bounds the
// float32 rounding error, 2^-24 K times |w| |x| or |scale q| |x| in each of the two sums, and that
// of this computation.

#ifdef NAIVE
void naive(float *out, const float *head, const TYPE *copy) {
  for (long n = 0; n < N; n++) {
    const TYPE *q = copy + n * (K + 4);
    float scale = row_scale(q + K);
    float squared_error = 0;
    float squared_norm = 0;
    for (long k = 0; k < K; k++) {
      float w = head[n * K + k];
      float difference = w - scale * to_float(q[k]);
      squared_error += difference * difference;
      squared_norm += w * w;
    }
    float error = __builtin_sqrtf(squared_error);
    out[n] = error + (K + 8) * 1.2e-7 * (__builtin_sqrtf(squared_norm) + error);
  }
}
#endif

// The kernel adds W elements of a row at a time. A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict head, const TYPE *restrict copy, int task) {
  for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++) {
    const float *w = head + n * K;
    const TYPE *q = copy + n * (K + 4);
    float scale = row_scale(q + K);
    vec vec_error = 0.0f;
    vec vec_norm = 0.0f;
    long k = 0;
    for (; k + W <= K; k += W) {
      vec y = *(const vec *)(w + k);
      vec z = y - scale * load_vec(q + k);
      vec_error += z * z;
      vec_norm += y * y;
    }
    float squared_error = hsum(vec_error);
    float squared_norm = hsum(vec_norm);
    for (; k < K; k++) {
      float z = w[k] - scale * to_float(q[k]);
      squared_error += z * z;
      squared_norm += w[k] * w[k];
    }
    float error = __builtin_sqrtf(squared_error);
    out[n] = error + (K + 8) * 1.2e-7f * (__builtin_sqrtf(squared_norm) + error);
  }
}
