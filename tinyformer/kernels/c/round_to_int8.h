// Round float32 numbers to int8 (quantize_rows.c and int8_copy.c).
#pragma once
#include "kernel.h"

enum { INFINITY_BITS = 0x7f800000 };

// Return the scale of a group, from the bits of max |x|.
INLINE float scale_of(unsigned bits) {
  union {
    unsigned u;
    float f;
  } largest = {bits};
  return bits < INFINITY_BITS ? largest.f / 127 : __builtin_nanf("");
}

// Return 1 / scale of a group, from the bits of max |x|.
INLINE float inverse_of(unsigned bits) {
  union {
    unsigned u;
    float f;
  } largest = {bits};
  return largest.f < 1e-35f ? 0 : 127 / largest.f;
}

// The rest is for kernels. It compares the bits of |x| as integers, where infinity and NaN are
// largest, and rounds W values at a time: adding 1.5 * 2^23 leaves the rounded value in a float's
// lowest bits.
enum { ABS_MASK = 0x7fffffff, MAGIC_BITS = 0x4b400000 };
typedef signed char char_vec __attribute__((ext_vector_type(W), aligned(1)));
typedef int int_vec __attribute__((ext_vector_type(W)));

INLINE unsigned bits_of(float x) {
  union {
    float f;
    unsigned u;
  } value = {x};
  return value.u;
}

// Quantize x (n), and return the sum of the values.
INLINE int quantize(signed char *out, const float *x, int n, float inverse) {
  const float magic = 12582912;
  int_vec sums = 0;
  int k = 0;
  for (; k + W <= n; k += W) {
    // Two statements, because a fused multiply-add would not round the product.
    vec y = *(const vec *)(x + k) * inverse;
    vec shifted = y + magic;
    int_vec q = (int_vec)((uint_vec)shifted - MAGIC_BITS);
    *(char_vec *)(out + k) = __builtin_convertvector(q, char_vec);
    sums += q;
  }
  int sum = __builtin_reduce_add(sums);
  for (; k < n; k++) {
    float y = x[k] * inverse;
    float shifted = y + magic;
    out[k] = (signed char)(bits_of(shifted) - MAGIC_BITS);
    sum += out[k];
  }
  return sum;
}

// Return the bits of the largest |x| of x (n).
INLINE unsigned largest_bits(const float *x, int n) {
  uint_vec most = 0;
  int k = 0;
  for (; k + W <= n; k += W)
    most = __builtin_elementwise_max(most, (uint_vec) * (const vec *)(x + k) & ABS_MASK);
  unsigned bits = __builtin_reduce_max(most);
  for (; k < n; k++)
    bits = __builtin_elementwise_max(bits, bits_of(x[k]) & ABS_MASK);
  return bits;
}
