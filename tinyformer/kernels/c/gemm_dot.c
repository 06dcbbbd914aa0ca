#include "bias.h"
#include "dtypes.h"
#if IS_BF16
typedef float A_TYPE;
#else
#include "int8_rows.h"
typedef signed char A_TYPE;
#endif

// Product of many rows of x with a weight matrix in int8 or bfloat16, whose activations have the
// same width:
//
//   out[m][n] = sum over k < K of x[m][k] * w[n][k]  (+ bias[n] if HAS_BIAS)
//
// out (M, N), w (N, K) as in dtypes.h, bias (N). For int8, x (M, K) was quantized by
// quantize_rows.c. For bfloat16, x is float32 and each value is rounded to the nearest bfloat16,
// which changes it by at most 2^-8 of it. Products of int8 are summed exactly in each group, and
// everything else in float32.
enum { W_ROW = IS_INT8 ? K + 4 : K }; // elements in a row of w

#ifdef NAIVE
void naive(float *out, const A_TYPE *x, const TYPE *w, const float *bias) {
  for (long m = 0; m < M; m++) {
    for (long n = 0; n < N; n++) {
      const TYPE *row = w + n * W_ROW;
      float y = HAS_BIAS ? bias[n] : 0;
#if IS_BF16
      for (long k = 0; k < K; k++)
        y += to_float(round_bf16(x[m * K + k])) * to_float(row[k]);
#else
      const signed char *q = x + m * Q_ROW;
      for (long g = 0; g < X_GROUPS; g++) {
        int sum = 0;
        for (long k = g * GROUP; k < K && k < (g + 1) * GROUP; k++)
          sum += q[k] * row[k];
        y += sum * group_scale(q, g) * row_scale(row + K);
      }
#endif
      out[m * N + n] = y;
    }
  }
}
#endif

// The kernel is blocked and packed as gemm.c's. A word has WORD_SIZE values of consecutive k, and
// `add_dot` multiplies and adds vectors of words: s[l] += sum over i of w[l][i] * x[l][i]. The
// target selects its form:
//
// - vpdpbusd (AVX512-VNNI, AVX-VNNI) multiplies unsigned by signed bytes. OFFSET is added to each
//   weight, and OFFSET times the sum of x's group is subtracted.
// - vpmaddubsw (AVX2, AVX512-BW) adds two products in 16 bits. Bytes from 0 to 127, here |w|, and
//   from -127 to 127, here x with the sign of w, cannot exceed them.
// - sdot (Arm) multiplies signed bytes.
// - vdpbf16ps (AVX512-BF16) and bfdot (Arm) multiply pairs of bfloat16 and add them in float32.
//   They flush subnormal values to 0. vdpbf16ps is used on AMD's CPUs only: on Intel's, products in
//   float32 are nearly twice as fast.
// - Otherwise a word is one value in float32, in which the sum of a group of int8 products is exact
//   as well, because it is below 127 * 127 * GROUP <= 2^24.
//
// Their mnemonics are here instead of clang's builtins, whose argument types differ by version.
typedef int int_vec __attribute__((ext_vector_type(W)));
typedef signed char byte_vec __attribute__((ext_vector_type(4 * W)));
typedef short short_vec __attribute__((ext_vector_type(2 * W)));

#if IS_BF16 && defined(__AVX512BF16__) && (defined(__znver4__) || defined(__znver5__))
#define DOT_IN_FLOAT "vdpbf16ps %2, %1, %0"
#elif IS_BF16 && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define DOT_IN_FLOAT "bfdot %0.4s, %1.8h, %2.8h"
#elif !IS_BF16 && defined(__AVX512VNNI__)
#define DOT_IN_INT "vpdpbusd %2, %1, %0"
#elif !IS_BF16 && defined(__AVXVNNI__)
#define DOT_IN_INT "%{vex%} vpdpbusd %2, %1, %0"
#elif !IS_BF16 && defined(__ARM_FEATURE_DOTPROD)
#define DOT_IN_INT "sdot %0.4s, %1.16b, %2.16b"
#elif !IS_BF16 && (defined(__AVX512BW__) || defined(__AVX2__) && !defined(__AVX512F__))
#define DOT_OF_ABS
#endif
#if defined(DOT_IN_INT) || defined(DOT_IN_FLOAT) || defined(DOT_OF_ABS)
#define HAS_DOT
#endif
#if defined(__aarch64__)
#define VECTOR_REGISTER "w"
#else
#define VECTOR_REGISTER "v"
#endif

#if defined(DOT_IN_INT) || defined(DOT_OF_ABS)
typedef int word __attribute__((may_alias));
typedef int_vec word_vec, sum_vec;
enum { WORD_SIZE = 4 };
#elif defined(DOT_IN_FLOAT)
typedef int word __attribute__((may_alias));
typedef int_vec word_vec;
typedef vec sum_vec;
enum { WORD_SIZE = 2 };
#else
typedef float word;
typedef vec word_vec, sum_vec;
enum { WORD_SIZE = 1 };
#endif
#if defined(DOT_IN_INT) && !defined(__aarch64__)
enum { OFFSET = 128, OFFSET_BITS = (int)0x80808080 };
#else
enum { OFFSET = 0, OFFSET_BITS = 0 };
#endif

INLINE sum_vec add_dot(sum_vec s, word_vec w, word_vec x) {
#if defined(DOT_IN_INT)
  __asm__(DOT_IN_INT : "+" VECTOR_REGISTER(s) : VECTOR_REGISTER(w), VECTOR_REGISTER(x));
  return s;
#elif defined(DOT_IN_FLOAT)
  __asm__(DOT_IN_FLOAT : "+" VECTOR_REGISTER(s) : VECTOR_REGISTER(w), VECTOR_REGISTER(x));
  return s;
#elif defined(DOT_OF_ABS)
  byte_vec bytes = (byte_vec)w;
  byte_vec negative = bytes >> 7;
  byte_vec signed_x = ((byte_vec)x ^ negative) - negative;
  byte_vec abs_w = (bytes ^ negative) - negative;
  short_vec pairs, ones = 1;
  int_vec sums;
  __asm__("vpmaddubsw %2, %1, %0" : "=v"(pairs) : "v"(abs_w), "v"(signed_x));
  __asm__("vpmaddwd %2, %1, %0" : "=v"(sums) : "v"(pairs), "v"(ones));
  return s + sums;
#else
  return s + w * x;
#endif
}

// A block of w is NC rows by DEPTH values, a block of x MC rows by DEPTH values. For int8, DEPTH is
// a group of x, so that a block of sums has one scale per row of x and one per row of w.
#if IS_BF16
enum { DEPTH = 256 };
#else
enum { DEPTH = GROUP };
#endif
enum { WORDS = DEPTH / WORD_SIZE, NC = 384 / C * C, MC = 96 / R * R };
enum { COLUMN_TILES = (N + C - 1) / C, ROW_TILES = (M + R - 1) / R };
enum { UNITS = SPLIT_COLUMNS ? COLUMN_TILES : ROW_TILES };

// Words of x or w, packed for a block.
typedef struct {
  ALIGNED word w[NC * WORDS];
  ALIGNED word x[MC * WORDS];
  ALIGNED float w_scale[NC];
  float x_scale[MC];
  int x_offset[MC]; // what to add to each sum of a row
} Block;

// Return a word of w from `count` values at p. If there are fewer than WORD_SIZE, zeros follow.
INLINE word load_word(const TYPE *p, int count) {
#ifdef HAS_DOT
  unsigned bits = 0;
  for (int i = 0; i < count; i++)
    bits |= (unsigned)(p[i] & (1ull << 8 * sizeof(TYPE)) - 1) << 8 * sizeof(TYPE) * i;
  return (int)bits ^ OFFSET_BITS;
#else
  return count ? to_float(*p) : 0;
#endif
}

// Return 4 words of w from the values at p.
INLINE vec4 load_4_words(const TYPE *p) {
#ifdef HAS_DOT
  typedef int int4 __attribute__((ext_vector_type(4), aligned(1)));
  return (vec4)(*(const int4 *)p ^ OFFSET_BITS);
#else
  return (vec4){to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
#endif
}

// Pack C rows of w from `column` on, of which `width` exist: out[p][l] is word p of row l, for p <
// (depth + WORD_SIZE - 1) / WORD_SIZE.
INLINE void pack_w(word *out, const TYPE *w, int depth, int width) {
  for (int l = 0; l < C; l += 4) {
    const TYPE *row[4];
    UNROLL
    for (int i = 0; i < 4; i++)
      row[i] = w + min_int(l + i, width - 1) * (long)W_ROW;
    int p = 0;
    for (; (p + 4) * WORD_SIZE <= depth; p += 4) {
      vec4 words[4];
      UNROLL
      for (int i = 0; i < 4; i++) {
        __builtin_prefetch(row[i] + p * WORD_SIZE + 4 * (long)W_ROW);
        words[i] = load_4_words(row[i] + p * WORD_SIZE);
      }
      transpose4x4((float *)(out + p * C + l), C, words);
    }
    for (; p * WORD_SIZE < depth; p++) {
      UNROLL
      for (int i = 0; i < 4; i++)
        out[p * C + l + i] =
            load_word(row[i] + p * WORD_SIZE, min_int(WORD_SIZE, depth - p * WORD_SIZE));
    }
  }
}

#if IS_BF16
// Round W values as round_bf16 does, and pack them: out (W / WORD_SIZE).
INLINE void pack_bf16(word *out, vec x) {
  typedef unsigned short half_vec __attribute__((ext_vector_type(W), aligned(4)));
#if defined(__AVX512BF16__)
  half_vec rounded;
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(x));
#else
  uint_vec bits = (uint_vec)x;
  uint_vec up = bits + 0x7fff + (bits >> 16 & 1);
  half_vec rounded = __builtin_convertvector((x == x ? up : 0x7fc00000) >> 16, half_vec);
#endif
#ifdef HAS_DOT
  *(half_vec *)out = rounded;
#else
  *(vec *)out = (vec)(__builtin_convertvector(rounded, uint_vec) << 16);
#endif
}

// Pack row i of a block of x: the `depth` values from k on of row m of x.
INLINE void pack_x(Block *block, int i, const float *x, long m, long k, int depth) {
  const float *in = x + m * K + k;
  word *out = block->x + i * WORDS;
  block->x_offset[i] = 0;
  int p = 0;
  for (; p + W <= depth; p += W)
    pack_bf16(out + p / WORD_SIZE, *(const vec *)(in + p));
  for (; p < depth; p += WORD_SIZE) {
    vec rest = 0.0f;
    for (int l = 0; l < WORD_SIZE; l++)
      rest[l] = p + l < depth ? in[p + l] : 0;
    word words[W];
    pack_bf16(words, rest);
    out[p / WORD_SIZE] = words[0];
  }
}
#else
// Pack row i of a block of x: the `depth` values from k on of row m of x, and their scale.
INLINE void pack_x(Block *block, int i, const signed char *x, long m, long k, int depth) {
  const signed char *row = x + m * Q_ROW;
  word *out = block->x + i * WORDS;
  block->x_scale[i] = group_scale(row, k / GROUP);
  block->x_offset[i] = (int)(-OFFSET * (unsigned)group_sum(row, k / GROUP));
#ifdef HAS_DOT
  for (int p = 0; p < (depth + 3) / 4; p++)
    __builtin_memcpy(out + p, row + k + 4 * p, 4);
#else
  for (int p = 0; p < depth; p++)
    out[p] = row[k + p];
#endif
}
#endif

// Multiply R rows of x by C rows of w, for a block of `words` words:
//
//   out[i][j] = (sum over p < words of dot(x[i][p], w[p][j]) + offset[i]) * x_scale[i] * w_scale[j]
//               (+ accumulate[i][j] unless it is null)
INLINE void dot_tile(float *out, long ld, const Block *block, int i0, int j0, int words,
                     const float *accumulate, long acc_row) {
  const word *x = block->x + i0 * WORDS;
  const word *w = block->w + j0 * words;
  sum_vec s[R][NV];
  UNROLL
  for (int i = 0; i < R; i++) {
    UNROLL
    for (int j = 0; j < NV; j++)
      s[i][j] = (sum_vec)(int_vec)block->x_offset[i0 + i];
  }
  for (int p = 0; p < words; p++) {
    word_vec y[NV];
    UNROLL
    for (int j = 0; j < NV; j++)
      y[j] = *(const word_vec *)(w + (p * NV + j) * W);
    UNROLL
    for (int i = 0; i < R; i++) {
      word_vec z = x[i * WORDS + p];
      UNROLL
      for (int j = 0; j < NV; j++)
        s[i][j] = add_dot(s[i][j], y[j], z);
    }
  }
  UNROLL
  for (int i = 0; i < R; i++) {
    UNROLL
    for (int j = 0; j < NV; j++) {
      vec y = __builtin_convertvector(s[i][j], vec);
      if (IS_INT8)
        y *= block->x_scale[i0 + i] * *(const vec *)(block->w_scale + j0 + j * W);
      if (accumulate)
        y += *(const vec *)(accumulate + i * acc_row + j * W);
      *(vec *)(out + i * ld + j * W) = y;
    }
  }
}

KERNEL NAME(float *restrict out, const A_TYPE *restrict x, const TYPE *restrict w,
            BIAS_PARAMETER int task) {
  Block block;
  long first = UNITS * task / NUM_TASKS, last = UNITS * (task + 1) / NUM_TASKS;
  long first_row = SPLIT_COLUMNS ? 0 : first * R;
  long last_row = SPLIT_COLUMNS ? M : min_int(M, last * R);
  long first_column = SPLIT_COLUMNS ? first * C : 0;
  long last_column = SPLIT_COLUMNS ? min_int(N, last * C) : N;
  for (long k = 0; k < K; k += DEPTH)
    for (long c = first_column; c < last_column; c += NC) {
      int depth = min_int(DEPTH, K - k);
      int words = (depth + WORD_SIZE - 1) / WORD_SIZE;
      int width = min_int(NC, last_column - c);
      for (int j = 0; j < width; j += C) {
        pack_w(block.w + j * words, w + (c + j) * W_ROW + k, depth, width - j);
        for (int l = j; l < j + C; l++)
          block.w_scale[l] = row_scale(w + (c + min_int(l, width - 1)) * W_ROW + K);
      }
      for (long m = first_row; m < last_row; m += MC) {
        int height = min_int(MC, last_row - m);
        for (int i = 0; i < (height + R - 1) / R * R; i++)
          pack_x(&block, i, x, m + min_int(i, height - 1), k, depth);
        for (int j = 0; j < width; j += C)
          for (int i = 0; i < height; i += R) {
            int rows = min_int(R, height - i);
            int columns = min_int(C, width - j);
            ALIGNED float edge[R * C];
            float *tile = out + (m + i) * N + c + j;
            // The first block of k starts from the bias, later blocks from the sums so far.
            const float *accumulate = k > 0 ? tile : HAS_BIAS ? bias + c + j : 0;
            long acc_row = k > 0 ? N : 0;
            if (rows == R && columns == C) {
              dot_tile(tile, N, &block, i, j, words, accumulate, acc_row);
            } else {
              dot_tile(edge, C, &block, i, j, words, 0, 0);
              for (int r = 0; r < rows; r++)
                for (int l = 0; l < columns; l++)
                  tile[r * N + l] =
                      edge[r * C + l] + (accumulate ? accumulate[r * acc_row + l] : 0);
            }
          }
      }
    }
}
