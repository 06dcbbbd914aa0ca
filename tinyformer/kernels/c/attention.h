// What the attention kernels share. Their macros:
//
// HEADS: query heads of the whole batch.  HEADS_PER_TEXT: query heads of one text.
// GROUP: query heads that share a key-value head.  T: queries.  K: width of a head.
// SCALE: a factor of the scores.  CAUSAL: 1 for a causal mask.
#pragma once
#include "kernel.h"

#define INFINITY __builtin_inff()
