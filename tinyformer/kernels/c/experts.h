// The selected experts of a mixture of experts, whose matrices (N, K) follow one another in w. If
// EXPERTS is not 0, a kernel multiplies by those of EXPERTS experts, and reads no other:
//
//   out[i] = w[experts[i]] x[i]  for i < EXPERTS, or w[experts[i]] x[0] if SAME_X
//
// Otherwise w is a single matrix, and the kernel has no parameter `experts`.
#pragma once
#include "kernel.h"

#ifndef EXPERTS
#define EXPERTS 0L
#define SAME_X 0L
#endif
#if EXPERTS
#define EXPERTS_PARAMETER const int *restrict experts,
#else
#define EXPERTS_PARAMETER
static const int *const experts = 0;
#endif
enum { NUM_MATRICES = EXPERTS ? EXPERTS : 1 };

// Return the index in w of the matrix that output i is computed from.
INLINE long matrix_of(const int *selected, long i) {
  return EXPERTS ? selected[i] : 0;
}
