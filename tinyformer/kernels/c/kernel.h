// What every kernel needs: vector types, horizontal reductions, dot products and the GEMM tile.
//
// A kernel is `KERNEL NAME(out, inputs..., variables..., task)`, where NAME is a macro. It is
// called once for each task from 0 to NUM_TASKS - 1; the tasks together compute out. All sizes are
// macros. With the macro NAIVE, a file also defines the function `naive`: the plain loop that the
// kernel must equal up to rounding. Its parameters are those of the kernel without the task.
#pragma once
#include "abi.h"

// W: floats per vector.  NV, R: vectors per row and rows of a GEMM tile, which stays in registers.
// REGISTERS: vector registers of the CPU.
#if defined(__AVX512F__)
enum { W = 16, NV = 3, R = 8, REGISTERS = 32 };
#define REDUCE(name) name##16
#elif defined(__AVX__)
enum { W = 8, NV = 2, R = 6, REGISTERS = 16 };
#define REDUCE(name) name##8
#else
enum { W = 4, NV = 3, R = 8, REGISTERS = 32 };
#define REDUCE(name) name##4
#endif
enum { C = W * NV }; // columns of a GEMM tile

// Align to a cache line: a vector that crosses two cache lines takes twice as long to load.
#define ALIGNED __attribute__((aligned(64)))
#define KERNEL __attribute__((min_vector_width(512))) ABI void
#define INLINE static inline __attribute__((always_inline, min_vector_width(512)))
#define UNROLL _Pragma("clang loop unroll(full)")
typedef float vec __attribute__((ext_vector_type(W), aligned(4)));
typedef unsigned uint_vec __attribute__((ext_vector_type(W)));
typedef float unaligned_float __attribute__((aligned(1)));
typedef float vec4 __attribute__((ext_vector_type(4)));
typedef float vec8 __attribute__((ext_vector_type(8)));
typedef float vec16 __attribute__((ext_vector_type(16)));

// hsum(x), hmax(x): the horizontal sum and maximum of a vector, by folding one half onto the other.
#define REDUCTION(name, op) \
  INLINE float name##4(vec4 x) { \
    x = op(x, x.zwxy); \
    x = op(x, x.yxwz); \
    return x[0]; \
  } \
  INLINE float name##8(vec8 x) { \
    return name##4(op(x.lo, x.hi)); \
  } \
  INLINE float name##16(vec16 x) { \
    return name##8(op(x.lo, x.hi)); \
  }
#define ADD(x, y) ((x) + (y))
REDUCTION(hsum, ADD)
REDUCTION(hmax, __builtin_elementwise_max)
#define hsum REDUCE(hsum)
#define hmax REDUCE(hmax)

INLINE int min_int(int a, int b) {
  return a < b ? a : b;
}

// Return the dot product of a (n) and b (n).
INLINE float dot(const float *a, const float *b, long n) {
  vec s = 0.0f;
  long k = 0;
  for (; k + W <= n; k += W)
    s += *(const vec *)(a + k) * *(const vec *)(b + k);
  float y = hsum(s);
  for (; k < n; k++)
    y += a[k] * b[k];
  return y;
}

// out[j][i] = rows[i][j] for i, j < 4, where row j of out begins at out + j * ld.
INLINE void transpose4x4(float *out, long ld, const vec4 *rows) {
  typedef float out_vec __attribute__((ext_vector_type(4), aligned(4)));
  vec4 top = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  vec4 bottom = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  *(out_vec *)out = __builtin_shufflevector(top, bottom, 0, 1, 4, 5);
  *(out_vec *)(out + ld) = __builtin_shufflevector(top, bottom, 2, 3, 6, 7);
  top = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  bottom = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  *(out_vec *)(out + 2 * ld) = __builtin_shufflevector(top, bottom, 0, 1, 4, 5);
  *(out_vec *)(out + 3 * ld) = __builtin_shufflevector(top, bottom, 2, 3, 6, 7);
}

// Define a GEMM micro-kernel, which keeps its tile in registers (Goto & van de Geijn 2008, sec. 4):
//
//   out[i][j] = sum over p < depth of a[i][p] * b[p][j]  (+ accumulate[i][j] unless it is null)
//
// for i < rows and j < vectors * W. a[i][p] is at a + i * a_row + p * a_col. b (depth, vectors * W)
// is packed. Row i of out begins at out + i * ld, row i of accumulate at accumulate + i * acc_row.
// The next rows of a and b are prefetched.
#define GEMM_TILE(name, rows, vectors) \
  INLINE void name(float *out, long ld, const float *a, long a_row, long a_col, const float *b, \
                   int depth, const float *accumulate, long acc_row) { \
    vec s[rows][vectors] = {}; \
    for (int p = 0; p < depth; p++) { \
      vec y[vectors]; \
      __builtin_prefetch(a + (rows + p % rows) * a_row + p / rows * rows); \
      UNROLL \
      for (int j = 0; j < vectors; j++) { \
        const float *z = b + (p * vectors + j) * W; \
        y[j] = *(const vec *)z; \
        __builtin_prefetch(z + 8 * W * vectors); \
      } \
      UNROLL \
      for (int i = 0; i < rows; i++) { \
        UNROLL \
        for (int j = 0; j < vectors; j++) \
          s[i][j] += a[i * a_row + p * a_col] * y[j]; \
      } \
    } \
    UNROLL \
    for (int i = 0; i < rows; i++) { \
      UNROLL \
      for (int j = 0; j < vectors; j++) { \
        vec y = s[i][j]; \
        *(vec *)(out + i * ld + j * W) = \
            accumulate ? *(const vec *)(accumulate + i * acc_row + j * W) + y : y; \
      } \
    } \
  }
GEMM_TILE(gemm_tile, R, NV)
