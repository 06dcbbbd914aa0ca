#include "int8_rows.h"
#include "round_to_int8.h"

// Quantize activations x (M, K) to int8, as in int8_rows.h. For each group of a row:
//
//   scale = max |x| / 127,  out = round(x / scale), ties to even
//
// so that |out * scale - x| <= scale / 2, up to float32 rounding (Dettmers et al. 2022, sec. 2.1,
// absmax quantization). A group below 1e-35 becomes zeros. If it contains an infinity or a NaN, its
// scale is NaN, and its values are undefined.
#ifdef NAIVE
float fabsf(float);
float rintf(float);

void naive(signed char *out, const float *x) {
  for (long m = 0; m < M; m++) {
    signed char *row = out + m * Q_ROW;
    for (long k = K; k < K_PADDED; k++)
      row[k] = 0;
    for (long g = 0; g < X_GROUPS; g++) {
      union {
        float f;
        unsigned u;
      } largest = {0};
      int sum = 0;
      for (long k = g * GROUP; k < K && k < (g + 1) * GROUP; k++)
        if (fabsf(x[m * K + k]) > largest.f)
          largest.f = fabsf(x[m * K + k]);
      float inverse = inverse_of(largest.u);
      for (long k = g * GROUP; k < K && k < (g + 1) * GROUP; k++) {
        row[k] = (signed char)rintf(x[m * K + k] * inverse);
        sum += row[k];
      }
      set_group(row, g, scale_of(largest.u), sum);
    }
  }
}
#endif

// A task is a range of rows.
KERNEL NAME(signed char *restrict out, const float *restrict x, int task) {
  for (long m = M * task / NUM_TASKS; m < M * (task + 1) / NUM_TASKS; m++) {
    signed char *row = out + m * Q_ROW;
    for (long k = K; k < K_PADDED; k++)
      row[k] = 0;
    for (long g = 0; g < X_GROUPS; g++) {
      const float *in = x + m * K + g * GROUP;
      int n = min_int(GROUP, K - g * GROUP);
      unsigned bits = largest_bits(in, n);
      int sum = quantize(row + g * GROUP, in, n, inverse_of(bits));
      set_group(row, g, scale_of(bits), sum);
    }
  }
}
