#include "int4.h"

// Product of an int4 weight matrix with the few rows of x in a step of generation. Each group of x
// is rounded to 8 bits too, so that the sums within a group are sums of integers:
//
//   scale[m][g] = max over i of |x[m][g][i]| / 127
//   p[m][g][i] = x[m][g][i] / scale[m][g], rounded to the nearest integer, ties to even
//   out[m][n] = sum over g of w_scale[n][g] * scale[m][g] * sum over i of p[m][g][i] * w[n][g][i]
//               (+ bias[n] if HAS_BIAS)
//
// for groups g < K / 32 of i < 32 columns. w (N, K) is in int4 (see int4.h), and w[n][g][i] is one
// of its integers from -8 to 7. out (M, N), x (M, K), bias (N). llama.cpp computes its Q4_0
// products from the same integers.

// Adding 1.5 * 2^23 rounds a float32 below 2^22 to an integer, which is in the lower bits of the
// sum.
#define ROUNDING 12582912.0f
typedef vec4 lanes4 __attribute__((aligned(4)));
typedef union {
  float f;
  signed char lowest; // the bytes of the supported CPUs are in little-endian order
} rounded;

#ifdef NAIVE
void naive(float *out, const float *x, const byte *w, const float *bias) {
  for (long m = 0; m < M; m++) {
    float scale[GROUPS];
    int p[K];
    for (long g = 0; g < GROUPS; g++) {
      const float *values = x + m * K + g * GROUP;
      float largest = 0;
      float sum = 0;
      for (long i = 0; i < GROUP; i++) {
        float size = __builtin_fabsf(values[i]);
        largest = size > largest ? size : largest;
        sum += values[i];
      }
      float inverse = largest > 0 ? 127 / largest : 0;
      // 0 * sum is NaN if the group contains an infinity or a NaN.
      scale[g] = largest / 127 + 0 * sum;
      for (long i = 0; i < GROUP; i++) {
        float scaled = values[i] * inverse;
        p[g * GROUP + i] = ((rounded){scaled + ROUNDING}).lowest;
      }
    }
    for (long n = 0; n < N; n++) {
      float y = 0;
      for (long g = 0; g < GROUPS; g++) {
        const byte *block = w + n * W_ROW + g * BLOCK;
        int sum = 0;
        for (long i = 0; i < GROUP; i++) {
          byte pair = block[2 + i % HALF];
          sum += p[g * GROUP + i] * ((i < HALF ? pair % 16 : pair / 16) - 8);
        }
        y += block_scale(block) * scale[g] * sum;
      }
      out[m * N + n] = y + (HAS_BIAS ? bias[n] : 0);
    }
  }
}
#endif

// With AVX-512 VNNI, an instruction multiplies 64 bytes of w and of x, which are the halves of four
// groups, and adds the products to 16 sums, four per group. Other CPUs multiply one group at a
// time. The kernel reads w once, 10 KB after it was prefetched. A task is a range of n; each rounds
// all of x, which is small.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif
enum { QUADS = HAS_VNNI ? GROUPS / 4 : 0, AHEAD = 10240, LINE = 64 };

#if HAS_VNNI
typedef int int_vec __attribute__((ext_vector_type(16)));
typedef byte bytes16 __attribute__((ext_vector_type(16), aligned(1)));
typedef byte bytes64 __attribute__((ext_vector_type(64)));
typedef _Float16 half4 __attribute__((ext_vector_type(4)));

// Add to each lane of s the products of its four bytes of a, which are unsigned, and of b (64).
INLINE int_vec add_products(int_vec s, bytes64 a, const signed char *b) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(a), "m"(*(const bytes64 *)b));
  return s;
}

#endif

typedef struct {
  ALIGNED signed char low[K / 2];       // the lower half of each group of a row of x, rounded
  ALIGNED signed char high[K / 2];      // the upper half
  ALIGNED float lane_scale[4 * GROUPS]; // the scale of each group, four times
  ALIGNED int offset[4 * GROUPS]; // -8 times the sum of the low and high that a lane multiplies
  float check;                    // NaN if the row contains an infinity or a NaN, else 0
} rounded_row;

// out[i] = x[i] * inverse, rounded, for i < HALF.
INLINE void round_half(signed char *out, const float *x, float inverse) {
  typedef signed char narrow_vec __attribute__((ext_vector_type(W), aligned(1)));
  UNROLL
  for (int i = 0; i < HALF; i += W) {
    vec scaled = *(const vec *)(x + i) * inverse;
    vec shifted = scaled + ROUNDING;
    *(narrow_vec *)(out + i) = __builtin_convertvector((uint_vec)shifted, narrow_vec);
  }
}

INLINE void round_row(rounded_row *row, const float *x) {
  vec check = 0.0f;
  for (long g = 0; g < GROUPS; g++) {
    const float *values = x + g * GROUP;
    vec largest = 0.0f;
    UNROLL
    for (int i = 0; i < GROUP; i += W) {
      vec y = *(const vec *)(values + i);
      largest = __builtin_elementwise_max(largest, __builtin_elementwise_abs(y));
      check += 0 * y;
    }
    float size = hmax(largest);
    float inverse = size > 0 ? 127 / size : 0;
    *(lanes4 *)(row->lane_scale + 4 * g) = size / 127;
    round_half(row->low + g * HALF, values, inverse);
    round_half(row->high + g * HALF, values + HALF, inverse);
  }
  row->check = hsum(check);
#if HAS_VNNI
  for (long g = 0; g < 4 * QUADS; g += 4) {
    int_vec sum = add_products((int_vec)0, (bytes64)8, row->low + g * HALF);
    *(int_vec *)(row->offset + 4 * g) = -add_products(sum, (bytes64)8, row->high + g * HALF);
  }
#endif
}

// Return the sum of the products of group g of a row of x with a block.
INLINE int dot_group(const rounded_row *x, long g, const byte *block) {
  int sum = 0;
  for (int i = 0; i < HALF; i++) {
    sum += x->low[g * HALF + i] * ((block[2 + i] & 15) - 8);
    sum += x->high[g * HALF + i] * ((block[2 + i] >> 4) - 8);
  }
  return sum;
}

#if HAS_VNNI
// Add the products of four blocks with the groups from g on of each row of x to the sums s.
INLINE void multiply_add_quad(vec *s, const rounded_row *x, long g, const byte *block) {
  union {
    bytes16 block[4];
    bytes64 all;
  } pairs;
  half4 scales;
  UNROLL
  for (int i = 0; i < 4; i++) {
    pairs.block[i] = *(const bytes16 *)(block + i * BLOCK + 2);
    scales[i] = *(const unaligned_half *)(block + i * BLOCK);
  }
  bytes64 low = pairs.all & 15;
  bytes64 high = pairs.all >> 4;
  vec4 y = __builtin_convertvector(scales, vec4);
  vec lanes = __builtin_shufflevector(y, y, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  UNROLL
  for (int m = 0; m < M; m++) {
    int_vec sum = *(const int_vec *)(x[m].offset + 4 * g);
    sum = add_products(sum, low, x[m].low + g * HALF);
    sum = add_products(sum, high, x[m].high + g * HALF);
    s[m] += lanes * *(const vec *)(x[m].lane_scale + 4 * g) * __builtin_convertvector(sum, vec);
  }
}
#endif

KERNEL NAME(float *restrict out, const float *restrict x, const byte *restrict w,
#if HAS_BIAS
            const float *restrict bias,
#endif
            int task) {
#if !HAS_BIAS
  const float *bias = 0;
#endif
  rounded_row rows[M];
  for (long m = 0; m < M; m++)
    round_row(rows + m, x + m * K);
  for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++) {
    const byte *row = w + n * W_ROW;
    long g = 0;
    float y[M] = {};
#if HAS_VNNI
    // Two sums per row of x, so that they do not wait for one another.
    vec even[M] = {};
    vec odd[M] = {};
    for (; g + 8 <= GROUPS; g += 8) {
      UNROLL
      for (int b = 0; b < 8 * BLOCK; b += LINE)
        __builtin_prefetch(row + g * BLOCK + b + AHEAD);
      multiply_add_quad(even, rows, g, row + g * BLOCK);
      multiply_add_quad(odd, rows, g + 4, row + (g + 4) * BLOCK);
    }
    if (g + 4 <= GROUPS) {
      multiply_add_quad(even, rows, g, row + g * BLOCK);
      g += 4;
    }
    UNROLL
    for (int m = 0; m < M; m++)
      y[m] = hsum(even[m] + odd[m]);
#endif
    for (; g < GROUPS; g++) {
      const byte *block = row + g * BLOCK;
      float scale = block_scale(block);
      for (long m = 0; m < M; m++)
        y[m] += scale * rows[m].lane_scale[4 * g] * dot_group(rows + m, g, block);
    }
    for (long m = 0; m < M; m++)
      out[m * N + n] = y[m] + rows[m].check + (HAS_BIAS ? bias[n] : 0);
  }
}
