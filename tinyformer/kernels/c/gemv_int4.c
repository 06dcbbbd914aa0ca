#include "bias.h"
#include "experts.h"
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
// of its integers from -8 to 7. out (M, N), x (M, K), bias (N). experts.h describes the product
// with several matrices. llama.cpp computes its Q4_0 products from the same integers.

// Adding 1.5 * 2^23 rounds a float32 below 2^22 to an integer, which is in the lower bits of the
// sum.
#define ROUNDING 12582912.0f
typedef vec4 lanes4 __attribute__((aligned(4)));
typedef union {
  float f;
  signed char lowest; // the bytes of the supported CPUs are in little-endian order
} rounded;

#ifdef NAIVE
INLINE void naive_product(float *out, const float *x, const byte *w, const float *added) {
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
      out[m * N + n] = y + (HAS_BIAS ? added[n] : 0);
    }
  }
}

void naive(float *out, const float *x, const byte *w, const float *bias, const int *experts) {
  for (long i = 0; i < NUM_MATRICES; i++) {
    const byte *matrix = w + matrix_of(experts, i) * N * W_ROW;
    naive_product(out + i * M * N, x + (SAME_X ? 0 : i * M * K), matrix, bias);
  }
}
#endif

// The kernel multiplies STEP groups at a time: 4 * W bytes of w, which have the lower or the upper
// weights of the groups, with as many of x. Four products are added in each lane, so four lanes
// belong to each group. The kernel reads w once, 10 KB after it was prefetched. A task is a range
// of n; each rounds all of x, which is small.
enum { STEP = W / 4, AHEAD = 10240, LINE = 64 };
typedef byte bytes16 __attribute__((ext_vector_type(16), aligned(1)));
typedef _Float16 half_vec __attribute__((ext_vector_type(STEP)));
typedef float scale_vec __attribute__((ext_vector_type(STEP)));

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
  for (long g = 0; g + STEP <= GROUPS; g += STEP) {
    int_vec sum = add_products((int_vec)0, (byte_vec)8, *(signed_vec *)(row->low + g * HALF));
    sum = add_products(sum, (byte_vec)8, *(signed_vec *)(row->high + g * HALF));
    *(int_vec *)(row->offset + 4 * g) = -sum;
  }
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

// Add the products of STEP blocks with the groups from g on of each row of x to the sums s.
INLINE void multiply_add(vec *s, const rounded_row *x, long g, const byte *block) {
  union {
    bytes16 block[STEP];
    byte_vec all;
  } pairs;
  half_vec scales;
  UNROLL
  for (int i = 0; i < STEP; i++) {
    pairs.block[i] = *(const bytes16 *)(block + i * BLOCK + 2);
    scales[i] = *(const unaligned_half *)(block + i * BLOCK);
  }
  byte_vec low = pairs.all & 15;
  byte_vec high = pairs.all >> 4;
  scale_vec block_scales = __builtin_convertvector(scales, scale_vec);
  vec lanes;
  UNROLL
  for (int i = 0; i < W; i++)
    lanes[i] = block_scales[i / 4];
  UNROLL
  for (int m = 0; m < M; m++) {
    int_vec sum = *(const int_vec *)(x[m].offset + 4 * g);
    sum = add_products(sum, low, *(const signed_vec *)(x[m].low + g * HALF));
    sum = add_products(sum, high, *(const signed_vec *)(x[m].high + g * HALF));
    s[m] += lanes * *(const vec *)(x[m].lane_scale + 4 * g) * __builtin_convertvector(sum, vec);
  }
}

// Multiply by one matrix w (N, K), and add a bias.
INLINE void multiply(float *restrict out, const float *restrict x, const byte *restrict w,
                     const float *restrict added, int task) {
  rounded_row rows[M];
  for (long m = 0; m < M; m++)
    round_row(rows + m, x + m * K);
  for (long n = N * task / NUM_TASKS; n < N * (task + 1) / NUM_TASKS; n++) {
    const byte *row = w + n * W_ROW;
    // Two sums per row of x, so that they do not wait for one another.
    vec even[M] = {};
    vec odd[M] = {};
    long g = 0;
    for (; g + 2 * STEP <= GROUPS; g += 2 * STEP) {
      UNROLL
      for (int b = 0; b < 2 * STEP * BLOCK; b += LINE)
        __builtin_prefetch(row + g * BLOCK + b + AHEAD);
      multiply_add(even, rows, g, row + g * BLOCK);
      multiply_add(odd, rows, g + STEP, row + (g + STEP) * BLOCK);
    }
    if (g + STEP <= GROUPS) {
      multiply_add(even, rows, g, row + g * BLOCK);
      g += STEP;
    }
    float y[M];
    UNROLL
    for (int m = 0; m < M; m++)
      y[m] = hsum(even[m] + odd[m]);
    for (; g < GROUPS; g++) {
      const byte *block = row + g * BLOCK;
      float scale = block_scale(block);
      for (long m = 0; m < M; m++)
        y[m] += scale * rows[m].lane_scale[4 * g] * dot_group(rows + m, g, block);
    }
    for (long m = 0; m < M; m++)
      out[m * N + n] = y[m] + rows[m].check + (HAS_BIAS ? added[n] : 0);
  }
}

KERNEL NAME(float *restrict out, const float *restrict x, const byte *restrict w,
            BIAS_PARAMETER EXPERTS_PARAMETER int task) {
  for (long i = 0; i < NUM_MATRICES; i++) {
    const byte *matrix = w + matrix_of(experts, i) * N * W_ROW;
    multiply(out + i * M * N, x + (SAME_X ? 0 : i * M * K), matrix, bias, task);
  }
}
