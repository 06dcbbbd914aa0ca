// A matrix x (M, K) quantized to int8 in groups of GROUP values of a row (quantize_rows.c). A row
// consists of K values and up to 3 zeros, then the float32 scale of each group, by which its values
// must be multiplied, then the int32 sum of each group's values. GROUP is a multiple of 4.
#pragma once
#include "kernel.h"

enum { X_GROUPS = (K + GROUP - 1) / GROUP, K_PADDED = (K + 3) / 4 * 4 };
enum { Q_ROW = K_PADDED + 8 * X_GROUPS }; // bytes in a row

// Return the scale of group g in a row.
INLINE float group_scale(const signed char *row, long g) {
  float scale;
  __builtin_memcpy(&scale, row + K_PADDED + 4 * g, 4);
  return scale;
}

// Return the sum of group g in a row.
INLINE int group_sum(const signed char *row, long g) {
  int sum;
  __builtin_memcpy(&sum, row + K_PADDED + 4 * (X_GROUPS + g), 4);
  return sum;
}

// Write the scale and the sum of group g.
INLINE void set_group(signed char *row, long g, float scale, int sum) {
  __builtin_memcpy(row + K_PADDED + 4 * g, &scale, 4);
  __builtin_memcpy(row + K_PADDED + 4 * (X_GROUPS + g), &sum, 4);
}
