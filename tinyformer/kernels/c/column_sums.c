#include "kernel.h"

// Column sums of a (M, N), which are the gradient (N) of a bias:
//
//   out[j] = sum over i < M of a[i][j]

#ifdef NAIVE
void naive(float *out, const float *a) {
  for (long j = 0; j < N; j++) {
    out[j] = 0;
    for (long i = 0; i < M; i++)
      out[j] += a[i * N + j];
  }
}
#endif

// The kernel adds W columns at a time. A task is a range of columns.
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
