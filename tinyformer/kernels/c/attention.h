// What the attention kernels share. Their macros:
//
// HEADS: query heads of the whole batch.  HEADS_PER_TEXT: query heads of one text.
// GROUP: query heads that share a key-value head.  T: queries.  K: width of a head.
// SCALE: a factor of the scores.  CAUSAL: 1 for a causal mask.
#pragma once
#include "kernel.h"

#define INFINITY __builtin_inff()

// Return mask[head][t][s] of an additive mask that broadcasts to (texts, heads, T, S), or 0 unless
// HAS_MASK. MASK_TEXT, MASK_HEAD, MASK_QUERY and MASK_KEY are the mask's strides, 0 along an axis
// that is broadcast.
INLINE float mask_at(const float *mask, long head, long t, long s) {
#if HAS_MASK
  return mask[head / HEADS_PER_TEXT * MASK_TEXT + head % HEADS_PER_TEXT * MASK_HEAD +
              t * MASK_QUERY + s * MASK_KEY];
#else
  return 0;
#endif
}
