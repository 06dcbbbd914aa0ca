// The order in which gemv.c sums the products of a row. exact_logits.c sums in the same order, so
// its logits equal the full head's to the last bit.
#pragma once
#include "kernel.h"

// A row's products are added to PARTS vectors of sums in turn: vector i of the row to s[i % PARTS].
// The vectors that remain after the last PARTS of them are added to s[0], then the columns that do
// not fill a vector to the sum of all lanes. With few rows of x, one row of w is read at a time, so
// that its sums do not wait for one another.
enum { PARTS = M <= 2 ? 4 : 1 };

// Return the sum of all lanes of PARTS vectors.
INLINE float sum_parts(const vec *s) {
  vec y = s[0];
  UNROLL
  for (int i = 1; i < PARTS; i++)
    y += s[i];
  return hsum(y);
}

// Return the dot product of a (K) and b (K).
INLINE float dot_in_parts(const float *a, const float *b) {
  vec s[PARTS] = {};
  long k = 0;
  for (; k + PARTS * W <= K; k += PARTS * W) {
    UNROLL
    for (int i = 0; i < PARTS; i++)
      s[i] += *(const vec *)(a + k + i * W) * *(const vec *)(b + k + i * W);
  }
  for (; k + W <= K; k += W)
    s[0] += *(const vec *)(a + k) * *(const vec *)(b + k);
  float y = sum_parts(s);
  for (; k < K; k++)
    y += a[k] * b[k];
  return y;
}
