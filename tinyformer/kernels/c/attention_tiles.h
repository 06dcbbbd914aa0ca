// Functions on a tile of QUERIES queries, from query t on, by C keys, from key s on.
// `rows` of the queries and `n` of the keys exist; the rest is padding.
#pragma once
#include "attention.h"
#include "exp.h"

// A value of width K, padded to PADDED_K, is split into PANELS panels of PANEL columns.
enum { PANEL_VECTORS = K >= 4 * W ? 4 : (K + W - 1) / W };
enum { PANEL = PANEL_VECTORS * W, PANELS = (K + PANEL - 1) / PANEL, PADDED_K = PANEL * PANELS };
GEMM_TILE(panel_tile, 4, PANEL_VECTORS)

// out (4, PANEL) += a (4, depth) b (depth, PANEL), where row i of out begins at out + i * PADDED_K.
INLINE void accumulate_panel(float *out, const float *a, long a_row, long a_col, const float *b,
                             int depth) {
  panel_tile(out, PADDED_K, a, a_row, a_col, b, depth, out, PADDED_K);
}

// Return the number of keys that at least one of the queries t to t + rows - 1 attends to.
// Under a causal mask, query t attends to keys 0 to keys - T + t.
INLINE int visible_keys(int keys, long t, int rows) {
  return CAUSAL ? min_int(keys, keys - T + t + rows) : keys;
}

// out (QUERIES, K) = scale * in (rows, K), padded with zero rows.
INLINE void load_scaled(float *out, const float *in, int rows, float scale) {
  for (int i = 0; i < QUERIES * K; i++)
    out[i] = i < rows * K ? in[i] * scale : 0;
}

// out (K, C) = transpose of in (n, K), padded with copies of the last row.
INLINE void transpose_tile(float *out, const KV *in, int n) {
  for (int j = 0; j < C; j += 4) {
    const KV *row[4];
    int p = 0;
    UNROLL
    for (int i = 0; i < 4; i++)
      row[i] = in + min_int(j + i, n - 1) * K;
    for (; p + 4 <= K; p += 4) {
      vec4 r[4];
      UNROLL
      for (int i = 0; i < 4; i++)
        r[i] = __builtin_convertvector(*(const kv_vec4 *)(row[i] + p), vec4);
      transpose4x4(out + p * C + j, C, r);
    }
    for (; p < K; p++) {
      UNROLL
      for (int i = 0; i < 4; i++)
        out[p * C + j + i] = row[i][p];
    }
  }
}

// out (PANELS, depth, PANEL) = the columns of in (n, K), panel by panel, padded with zeros.
INLINE void pack_panels(float *out, const KV *in, int n, int depth) {
  for (int g = 0; g < PANELS; g++)
    for (int j = 0; j < depth; j++)
      for (int p = 0; p < PANEL; p++)
        out[(g * depth + j) * PANEL + p] =
            j < n && g * PANEL + p < K ? in[j * K + g * PANEL + p] : 0;
}

// out (rows, C) = a (rows, K) b (K, C).
INLINE void matmul_tile(float *out, const float *a, const float *b, int rows) {
  for (int i = 0; i < rows; i += R)
    gemm_tile(out + i * C, C, a + i * K, K, 1, b, K, 0, 0);
}

// Set the scores (C) of query t to -inf for padding and, under a causal mask, for later keys.
INLINE void apply_causal_mask(float *row, int keys, long t, long s, int n) {
  int end = CAUSAL ? min_int(n, keys - T + t + 1 - s) : n;
  for (int j = end < 0 ? 0 : end; j < C; j++)
    row[j] = -INFINITY;
}

// Return the maximum of the scores (C) of one query and its previous maximum.
INLINE float max_score(const float *row, float old) {
  vec high = *(const vec *)row;
  UNROLL
  for (int j = 1; j < NV; j++)
    high = __builtin_elementwise_max(high, *(const vec *)(row + j * W));
  return old > hmax(high) ? old : hmax(high);
}

// Update the running row maximum; rescale = exp(row_max - new_max) corrects the partial sums.
// new_max becomes the number to subtract from the scores. That is 0 for a row without any visible
// key so far, whose scores and maximum are -inf, so that exp gives 0 and not NaN.
// Source: the online softmax of Milakov & Gimelshein 2018, algorithm 3.
INLINE void update_row_max(float *row_max, float *new_max, float *rescale) {
  for (int i = 0; i < QUERIES; i += W) {
    vec *old = (vec *)(row_max + i);
    vec *high = (vec *)(new_max + i);
    vec shift = (vec)((int_vec)*high & (*high != -INFINITY));
    *(vec *)(rescale + i) = vec_exp(*old - shift);
    *old = *high;
    *high = shift;
  }
}
