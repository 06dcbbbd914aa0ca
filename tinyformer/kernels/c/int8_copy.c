#include "round_to_int8.h"

// Quantize head (N, K) to int8, one scale per row, as quantize_int8 in quantization.py describes. A
// row of out consists of K values and the float32 scale:
//
//   scale = max |head[n]| / 127,  out[n][k] = round(head[n][k] / scale), ties to even
//
// A row below 1e-35 becomes zeros. If it contains an infinity or a NaN, its scale is NaN, and its
// values are undefined.

#ifdef NAIVE
float fabsf(float);
float rintf(float);

void naive(signed char *out, const float *head) {
  for (long n = 0; n < N; n++) {
    const float *w = head + n * K;
    signed char *row = out + n * (K + 4);
    union {
      float f;
      unsigned u;
    } largest = {0};
    for (long k = 0; k < K; k++)
      if (fabsf(w[k]) > largest.f)
        largest.f = fabsf(w[k]);
    for (long k = 0; k < K; k++)
      row[k] = (signed char)rintf(w[k] * inverse_of(largest.u));
    float scale = scale_of(largest.u);
    __builtin_memcpy(row + K, &scale, 4);
  }
}
#endif

// A task is a range of rows.
KERNEL NAME(signed char *restrict out, const float *restrict head, int task) {
  for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++) {
    signed char *row = out + n * (K + 4);
    unsigned bits = largest_bits(head + n * K, K);
    quantize(row, head + n * K, K, inverse_of(bits));
    float scale = scale_of(bits);
    __builtin_memcpy(row + K, &scale, 4);
  }
}
