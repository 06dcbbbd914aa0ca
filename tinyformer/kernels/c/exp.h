// The exponential of a vector.
#pragma once
#include "kernel.h"

typedef int int_vec __attribute__((ext_vector_type(W)));

// Return e^x for each element, with a relative error of at most 2e-7, or 0 for x < -87.
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
  return (vec)((int_vec)(p * (vec)((__builtin_convertvector(n, int_vec) + 127) << 23)) &
               ~(x < -87.0f));
}
