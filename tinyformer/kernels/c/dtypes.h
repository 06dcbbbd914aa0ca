// Conversions to float32 from matrices whose elements are TYPE: float32, float16, bfloat16 or int8.
// IS_BF16 is 1 for bfloat16, whose TYPE is unsigned short. A row of an int8 matrix consists of K
// values and the float32 scale by which they must be multiplied.
#pragma once
#include "kernel.h"

enum { IS_INT8 = sizeof(TYPE) == 1 };
typedef TYPE type_vec __attribute__((ext_vector_type(W), aligned(1)));

// Load W values as float32. The upper half of a float32 is a bfloat16.
INLINE vec load_vec(const TYPE *p) {
#if IS_BF16
  return (vec)(__builtin_convertvector(*(const type_vec *)p, uint_vec) << 16);
#else
  return __builtin_convertvector(*(const type_vec *)p, vec);
#endif
}

// Convert one value to float32.
INLINE float to_float(TYPE value) {
#if IS_BF16
  union {
    unsigned u;
    float f;
  } bits = {(unsigned)value << 16};
  return bits.f;
#else
  return value;
#endif
}

// Return the scale of a row whose values end at `end`. It is 1 unless the values are int8.
INLINE float row_scale(const TYPE *end) {
  return IS_INT8 ? *(const unaligned_float *)end : 1;
}

// Round x to the nearest bfloat16, ties to even, and keep NaN.
INLINE unsigned short round_bf16(float x) {
  union {
    float f;
    unsigned u;
  } value = {x};
  return x != x ? 0x7fc0 : (value.u + 0x7fff + (value.u >> 16 & 1)) >> 16;
}
