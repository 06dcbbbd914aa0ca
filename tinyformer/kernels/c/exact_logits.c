#include "partial_sums.h"

// out[m][n] = dot(head[n], xs[m]) if this logit's upper bound reaches threshold[m], otherwise -inf.
//
//   upper bound = approx[m][n] + error_bound[n] * |xs[m]|
//
// xs (M, K), approx (M, N), error_bound (N), threshold (M), head (N, K) -> out (M, N).

#ifdef NAIVE
void naive(float *out, const float *xs, const float *approx, const float *error_bound,
           const float *threshold, const float *head) {
  for (long m = 0; m < M; m++) {
    const float *x = xs + m * K;
    float square = 0;
    for (long k = 0; k < K; k++)
      square += x[k] * x[k];
    for (long n = 0; n < N; n++) {
      float upper_bound = approx[m * N + n] + error_bound[n] * __builtin_sqrtf(square);
      float logit = 0;
      for (long k = 0; k < K; k++)
        logit += head[n * K + k] * x[k];
      // A NaN is not less than the threshold, so its logit remains NaN.
      out[m * N + n] = upper_bound < threshold[m] ? -__builtin_inff() : logit;
    }
  }
}
#endif

// A task is a range of n.
KERNEL NAME(float *restrict out, const float *restrict xs, const float *restrict approx,
            const float *restrict error_bound, const float *restrict threshold,
            const float *restrict head, int task) {
  for (long m = 0; m < M; m++) {
    const float *x = xs + m * K;
    float x_norm = __builtin_sqrtf(dot(x, x, K));
    // A NaN is not less than the threshold, so its logit is computed and remains NaN.
    for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++)
      out[m * N + n] = approx[m * N + n] + error_bound[n] * x_norm < threshold[m]
                           ? -__builtin_inff()
                           : dot_in_parts(head + n * K, x);
  }
}
