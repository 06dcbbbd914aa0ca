// A matrix in int4: see quantize_int4 in quantization.py. A row consists of K / GROUP blocks, each
// with a float16 scale and GROUP / 2 bytes. The lower half of byte i is weight i of the group, the
// upper half weight i + GROUP / 2; a half q stands for scale * (q - 8).
#pragma once
#include "kernel.h"

enum { GROUP = 32, HALF = GROUP / 2, GROUPS = K / GROUP, BLOCK = 2 + HALF, W_ROW = GROUPS * BLOCK };
typedef unsigned char byte;
typedef _Float16 unaligned_half __attribute__((aligned(1)));
typedef int int_vec __attribute__((ext_vector_type(W)));
typedef byte byte_vec __attribute__((ext_vector_type(4 * W)));
typedef signed char signed_vec __attribute__((ext_vector_type(4 * W)));
typedef short short_vec __attribute__((ext_vector_type(4 * W)));
typedef short half_short_vec __attribute__((ext_vector_type(2 * W)));

// Return the scale of a block.
INLINE float block_scale(const byte *block) {
  return *(const unaligned_half *)block;
}

// Add to each lane of s the products of its four bytes of a, which are at most 15, and of b.
INLINE int_vec add_products(int_vec s, byte_vec a, signed_vec b) {
#if defined(__AVX512VNNI__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(a), "v"(b));
  return s;
#elif defined(__AVXVNNI__)
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(s) : "x"(a), "x"(b));
  return s;
#elif defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
  half_short_vec pairs, ones = 1;
  int_vec sums;
  __asm__("vpmaddubsw %2, %1, %0" : "=v"(pairs) : "v"(a), "v"(b));
  __asm__("vpmaddwd %2, %1, %0" : "=v"(sums) : "v"(pairs), "v"(ones));
  return s + sums;
#elif defined(__ARM_FEATURE_DOTPROD)
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(s) : "w"(a), "w"(b));
  return s;
#else
  short_vec products =
      __builtin_convertvector(a, short_vec) * __builtin_convertvector(b, short_vec);
  half_short_vec pairs = products.even + products.odd;
  return s + __builtin_convertvector(pairs.even + pairs.odd, int_vec);
#endif
}
