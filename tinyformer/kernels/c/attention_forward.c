#include "attention_mask.h"
#include "attention_tiles.h"

// Attention (Vaswani et al. 2017, sec. 3.2.1). For each head h and query t:
//
//   score[s] = SCALE * dot(q[h][t], k[h / GROUP][s]) + mask[h][t][s]         for s < S
//   weight[s] = exp(score[s] - max(score)) / sum(exp(score - max(score)))
//   out[h][t] = sum over s of weight[s] * v[h / GROUP][s]
//
// q and out have shape (HEADS, T, K), k and v (HEADS / GROUP, CAPACITY, K), with S <= CAPACITY keys
// in use. S is S_CONSTANT plus NUM_VARIABLES variables. Under a causal mask, query t attends to
// keys 0 to S - T + t. A query whose keys are all masked gets zeros.

#ifdef NAIVE
void naive(float *out, const float *q, const KV *k, const KV *v, const float *mask, int first,
           int second) {
  const int S = S_CONSTANT + first + second;
  for (long head = 0; head < HEADS; head++) {
    const KV *head_k = k + head / GROUP * CAPACITY * K;
    const KV *head_v = v + head / GROUP * CAPACITY * K;
    for (long t = 0; t < T; t++) {
      const float *query = q + (head * T + t) * K;
      float *y = out + (head * T + t) * K;
      float score[CAPACITY];
      float max = -INFINITY;
      float sum = 0;
      for (long s = 0; s < S; s++) {
        score[s] = 0;
        for (long p = 0; p < K; p++)
          score[s] += query[p] * (float)head_k[s * K + p];
        score[s] = score[s] * SCALE + mask_at(mask, head, t, s);
        if (CAUSAL && s > S - T + t)
          score[s] = -INFINITY;
        if (score[s] > max)
          max = score[s];
      }
      for (long p = 0; p < K; p++)
        y[p] = 0;
      if (max == -INFINITY)
        continue;
      for (long s = 0; s < S; s++)
        sum += __builtin_expf(score[s] - max);
      for (long s = 0; s < S; s++)
        for (long p = 0; p < K; p++)
          y[p] += __builtin_expf(score[s] - max) / sum * (float)head_v[s * K + p];
    }
  }
}
#endif

// The kernel is FlashAttention's forward pass (Dao et al. 2022, algorithm 1), with tiles of QUERIES
// queries by C keys. For each block of queries, C keys at a time update the maximum of the scores
// so far, the sum of exp(score - max) and the sum of exp(score - max) v. A task is a range of
// blocks of queries.
enum { BLOCKS_PER_HEAD = (T + QUERIES - 1) / QUERIES, BLOCKS = HEADS * BLOCKS_PER_HEAD };
KERNEL NAME(float *restrict out, const float *restrict q, const KV *restrict k,
            const KV *restrict v,
#if HAS_MASK
            const float *restrict mask,
#endif
#if NUM_VARIABLES >= 1
            int first,
#endif
#if NUM_VARIABLES >= 2
            int second,
#endif
            int task) {
#if !HAS_MASK
  const float *mask = 0;
#endif
#if NUM_VARIABLES == 0
  const int S = S_CONSTANT;
#elif NUM_VARIABLES == 1
  const int S = S_CONSTANT + first;
#else
  const int S = S_CONSTANT + first + second;
#endif
  ALIGNED float query[QUERIES * K], keys[K * C], values[PANELS * C * PANEL];
  ALIGNED float scores[QUERIES * C], acc[QUERIES * PADDED_K];
  ALIGNED float row_max[QUERIES], new_max[QUERIES], rescale[QUERIES], row_sum[QUERIES * W];
  for (long block = BLOCKS * task / NUM_TASKS; block < BLOCKS * (task + 1) / NUM_TASKS; block++) {
    long head = block / BLOCKS_PER_HEAD;
    long t = block % BLOCKS_PER_HEAD * QUERIES;
    int rows = min_int(QUERIES, T - t);
    const KV *head_k = k + head / GROUP * CAPACITY * K;
    const KV *head_v = v + head / GROUP * CAPACITY * K;
    load_scaled(query, q + (head * T + t) * K, rows, SCALE);
    for (int i = 0; i < QUERIES * PADDED_K; i++)
      acc[i] = 0;
    for (int i = 0; i < QUERIES; i++) {
      row_max[i] = new_max[i] = -INFINITY;
      *(vec *)(row_sum + i * W) = 0.0f;
    }
    for (int s = 0, limit = visible_keys(S, t, rows); s < limit; s += C) {
      int n = min_int(C, limit - s);
      transpose_tile(keys, head_k + s * K, n);
      pack_panels(values, head_v + s * K, n, C);
      matmul_tile(scores, query, keys, rows);
      for (int i = 0; i < rows; i++) {
        float *row = scores + i * C;
        if (HAS_MASK)
          for (int j = 0; j < n; j++)
            row[j] += mask_at(mask, head, t + i, s + j);
        apply_causal_mask(row, S, t + i, s, n);
        new_max[i] = max_score(row, row_max[i]);
      }
      update_row_max(row_max, new_max, rescale);
      for (int i = 0; i < rows; i++) {
        vec *row = (vec *)(scores + i * C);
        vec sums = *(vec *)(row_sum + i * W) * rescale[i];
        UNROLL
        for (int j = 0; j < NV; j++) {
          row[j] = vec_exp(row[j] - new_max[i]);
          sums += row[j];
        }
        *(vec *)(row_sum + i * W) = sums;
        if (rescale[i] != 1)
          for (int p = 0; p < PADDED_K; p++)
            acc[i * PADDED_K + p] *= rescale[i];
      }
      for (int i = 0; i < rows; i += 4)
        for (int g = 0; g < PANELS; g++)
          accumulate_panel(acc + i * PADDED_K + g * PANEL, scores + i * C, C, 1,
                           values + g * C * PANEL, n);
    }
    for (int i = 0; i < rows; i++) {
      float total = hsum(*(vec *)(row_sum + i * W));
      for (int p = 0; p < K; p++)
        out[(head * T + t + i) * K + p] = total == 0 ? 0 : acc[i * PADDED_K + p] / total;
    }
  }
}
