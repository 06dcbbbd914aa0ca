#include "kernel.h"

// Return a lower bound on the COUNT-th largest logit of each row x of xs (M, K): the COUNT-th
// largest of the logits' own lower bounds,
//
//   lower[m][n] = approx[m][n] - error_bound[n] * |xs[m]|
//
// or -inf if N < COUNT. approx (M, N), error_bound (N) -> out (M).

#ifdef NAIVE
void naive(float *out, const float *xs, const float *approx, const float *error_bound) {
  for (long m = 0; m < M; m++) {
    float lower[N];
    float square = 0;
    for (long k = 0; k < K; k++)
      square += xs[m * K + k] * xs[m * K + k];
    for (long n = 0; n < N; n++)
      lower[n] = approx[m * N + n] - error_bound[n] * __builtin_sqrtf(square);
    // Remove the largest COUNT times.
    for (long i = 0; i < COUNT; i++) {
      long best = 0;
      for (long n = 1; n < N; n++)
        best = lower[n] > lower[best] ? n : best;
      out[m] = lower[best];
      lower[best] = -__builtin_inff();
    }
  }
}
#endif

// The kernel keeps the COUNT largest lower bounds in order. A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict xs, const float *restrict approx,
            const float *restrict error_bound, int task) {
  for (long m = M * task / NUM_TASKS; m < M * (task + 1) / NUM_TASKS; m++) {
    float x_norm = __builtin_sqrtf(dot(xs + m * K, xs + m * K, K));
    // In ascending order.
    float best[COUNT];
    for (int i = 0; i < COUNT; i++)
      best[i] = -__builtin_inff();
    for (long n = 0; n < N; n++) {
      float lower = approx[m * N + n] - error_bound[n] * x_norm;
      if (!(lower > best[0]))
        continue;
      int i = 0;
      for (; i + 1 < COUNT && best[i + 1] < lower; i++)
        best[i] = best[i + 1];
      best[i] = lower;
    }
    out[m] = best[0];
  }
}
