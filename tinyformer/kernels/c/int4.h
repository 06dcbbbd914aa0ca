// A matrix in int4: see quantize_int4 in quantization.py. A row consists of K / GROUP blocks, each
// with a float16 scale and GROUP / 2 bytes. The lower half of byte i is weight i of the group, the
// upper half weight i + GROUP / 2; a half q stands for scale * (q - 8).
#pragma once
#include "kernel.h"

enum { GROUP = 32, HALF = GROUP / 2, GROUPS = K / GROUP, BLOCK = 2 + HALF, W_ROW = GROUPS * BLOCK };
typedef unsigned char byte;
typedef _Float16 unaligned_half __attribute__((aligned(1)));

// Return the scale of a block.
INLINE float block_scale(const byte *block) {
  return *(const unaligned_half *)block;
}
