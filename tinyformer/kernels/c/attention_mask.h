#pragma once
#include "attention.h"

// Return mask[head][t][s] of an additive mask that broadcasts to (texts, heads, T, S), or 0 unless
// HAS_MASK. MASK_TEXT, MASK_HEAD, MASK_QUERY and MASK_KEY are the mask's strides, 0 along an axis
// that is broadcast.
INLINE float mask_at(const float *mask, long head, long t, long s) {
  long text = head / HEADS_PER_TEXT;
  long i = text * MASK_TEXT + head % HEADS_PER_TEXT * MASK_HEAD + t * MASK_QUERY + s * MASK_KEY;
  return HAS_MASK ? mask[i] : 0;
}
