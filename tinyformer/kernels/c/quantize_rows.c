#include "int8_rows.h"

// Quantize activations x (M, K) to int8, as in int8_rows.h. For each group of a row:
//
//   scale = max |x| / 127,  out = round(x / scale), ties to even
//
// so that |out * scale - x| <= scale / 2, up to float32 rounding (Dettmers et al. 2022, sec. 2.1,
// absmax quantization). A group below 1e-35 becomes zeros. If it contains an infinity or a NaN, its
// scale is NaN, and its values are undefined.
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

// The kernel compares the bits of |x| as integers, where infinity and NaN are largest, and rounds
// W values at a time: adding 1.5 * 2^23 leaves the rounded value in a float's lowest bits. A task
// is a range of rows.
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
