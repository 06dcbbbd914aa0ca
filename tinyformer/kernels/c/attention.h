// What the attention kernels share. Their macros:
//
// HEADS: query heads of the whole batch.  HEADS_PER_TEXT: query heads of one text.
// GROUP: query heads that share a key-value head.  T: queries.  K: width of a head.
// SCALE: a factor of the scores.  CAUSAL: 1 for a causal mask.  KV: the type of keys and values,
// float or _Float16.
#pragma once
#include "kernel.h"

#define INFINITY __builtin_inff()
typedef KV kv_vec __attribute__((ext_vector_type(W), aligned(sizeof(KV))));
typedef KV kv_vec4 __attribute__((ext_vector_type(4), aligned(sizeof(KV))));

// Load W elements of a key or value as float32.
INLINE vec load_kv(const KV *p) {
  return __builtin_convertvector(*(const kv_vec *)p, vec);
}

// Return the dot product of a query and a key.
INLINE float dot_key(const float *query, const KV *key) {
  vec s = 0.0f;
  long p = 0;
  for (; p + W <= K; p += W)
    s += *(const vec *)(query + p) * load_kv(key + p);
  float y = hsum(s);
  for (; p < K; p++)
    y += query[p] * (float)key[p];
  return y;
}
