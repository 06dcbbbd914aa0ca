// The exponential of a vector.
#pragma once
#include "kernel.h"

typedef int int_vec __attribute__((ext_vector_type(W)));

// Return a vector of whole numbers as integers. UBSan checks conversions of single numbers only.
INLINE int_vec to_int(vec n) {
#if __has_feature(undefined_behavior_sanitizer)
  int_vec y;
  for (int i = 0; i < W; i++)
    y[i] = (int)n[i];
  return y;
#else
  return __builtin_convertvector(n, int_vec);
#endif
}

// Return e^x for each element of x <= 88, with a relative error of at most 2e-7; 0 for x < -87, and
// NaN for NaN.
// e^x = 2^y = 2^n 2^f, where n is the integer nearest to y = x log2(e) and f = y - n.
// The Taylor polynomial of degree 6 gives 2^f; n + 127 becomes the exponent bits of 2^n.
// Adding and subtracting 1.5 * 2^23 rounds y to the nearest integer.
INLINE vec vec_exp(vec x) {
  vec y = x * 1.442695041f;
  vec n = (y + 12582912.0f) - 12582912.0f;
  vec f = y - n;
  vec p = 0.0013333558f + f * 0.0001540353f;
  p = 0.0096181291f + f * p;
  p = 0.0555041087f + f * p;
  p = 0.2402265070f + f * p;
  p = 0.6931471806f + f * p;
  p = 1.0f + f * p;
  // The conversion of an infinity or of NaN to int would be undefined. The comparisons are false
  // for NaN, which p passes on.
  n = n > -126.0f ? n : -126.0f;
  n = n < 128.0f ? n : 128.0f;
  vec power = (vec)((to_int(n) + 127) << 23);
  return (vec)((int_vec)(p * power) & ~(x < -87.0f));
}
