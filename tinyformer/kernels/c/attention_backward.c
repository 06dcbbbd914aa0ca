#include "attention_tiles.h"

// The gradients of attention_forward.c, without a mask other than CAUSAL. For each head, with the
// weights P = softmax(SCALE q k^T) and the gradient dy of the output:
//
//   dP = dy v^T    dS = P * (dP - delta), where delta = sum over the keys of P * dP
//   dq = SCALE dS k    dk = SCALE dS^T q    dv = P^T dy
//
// q and dy have shape (HEADS, T, K), k and v (HEADS / GROUP, S, K). out holds dq (HEADS, T, K),
// then dk and dv (HEADS, S, K), not yet summed over the heads that share a key-value head.

#ifdef NAIVE
void naive(float *out, const float *q, const float *k, const float *v, const float *dy) {
  for (long i = 0; i < HEADS * (T + 2 * S) * K; i++)
    out[i] = 0;
  for (long head = 0; head < HEADS; head++) {
    const float *head_k = k + head / GROUP * S * K;
    const float *head_v = v + head / GROUP * S * K;
    float *dk = out + (HEADS * T + head * S) * K;
    float *dv = dk + HEADS * S * K;
    for (long t = 0; t < T; t++) {
      const float *row_q = q + (head * T + t) * K;
      const float *row_dy = dy + (head * T + t) * K;
      float *dq = out + (head * T + t) * K;
      long end = CAUSAL ? S - T + t + 1 : S; // number of visible keys
      float p[S], dp[S];
      float max = -INFINITY;
      float sum = 0;
      float delta = 0;
      for (long s = 0; s < end; s++) {
        p[s] = 0;
        dp[s] = 0;
        for (long i = 0; i < K; i++) {
          p[s] += SCALE * row_q[i] * head_k[s * K + i];
          dp[s] += row_dy[i] * head_v[s * K + i];
        }
        if (p[s] > max)
          max = p[s];
      }
      for (long s = 0; s < end; s++)
        sum += __builtin_expf(p[s] - max);
      for (long s = 0; s < end; s++) {
        p[s] = __builtin_expf(p[s] - max) / sum;
        delta += p[s] * dp[s];
      }
      for (long s = 0; s < end; s++)
        for (long i = 0; i < K; i++) {
          float ds = p[s] * (dp[s] - delta);
          dq[i] += SCALE * ds * head_k[s * K + i];
          dk[s * K + i] += SCALE * ds * row_q[i];
          dv[s * K + i] += p[s] * row_dy[i];
        }
    }
  }
}
#endif

// The kernel is FlashAttention's backward pass (Dao et al. 2022, algorithm 4), with tiles of
// QUERIES queries by C keys. P is recomputed. out ends with a workspace for each task, of
// (T + QUERIES) * (PADDED_K + 3) floats: the dq of one head (T + QUERIES, PADDED_K), then
// row_max, row_sum and delta, T + QUERIES floats each. A task is a range of heads.

// Turn the scores and dP of a tile of queries by keys into P and dS.
INLINE void softmax_grad(float *weights, float *ds, const float *row_max, const float *row_sum,
                         const float *delta, int rows, long t, long s, int n) {
  for (int i = 0; i < rows; i++) {
    apply_causal_mask(weights + i * C, S, t + i, s, n);
    UNROLL
    for (int j = 0; j < NV; j++) {
      vec *p = (vec *)(weights + i * C + j * W);
      vec *d = (vec *)(ds + i * C + j * W);
      *p = row_sum[t + i] == 0 ? (vec)0.0f : vec_exp(*p - row_max[t + i]) / row_sum[t + i];
      *d = *p * (*d - delta[t + i]);
    }
  }
}

KERNEL NAME(float *restrict out, const float *restrict q, const float *restrict k,
            const float *restrict v, const float *restrict dy, int task) {
  ALIGNED float query[QUERIES * K], grad[QUERIES * K], keys[K * C], values[K * C];
  ALIGNED float packed_query[PANELS * QUERIES * PANEL], packed_grad[PANELS * QUERIES * PANEL];
  ALIGNED float packed_keys[PANELS * C * PANEL], weights[QUERIES * C], ds[QUERIES * C];
  ALIGNED float acc_dk[QUERIES * PADDED_K], acc_dv[QUERIES * PADDED_K];
  ALIGNED float new_max[QUERIES], rescale[QUERIES];
  float *dq = out + HEADS * (T + 2 * S) * K + task * (T + QUERIES) * (PADDED_K + 3);
  float *row_max = dq + (T + QUERIES) * PADDED_K;
  float *row_sum = row_max + T + QUERIES;
  float *delta = row_sum + T + QUERIES;
  for (long head = HEADS * task / NUM_TASKS; head < HEADS * (task + 1) / NUM_TASKS; head++) {
    const float *head_q = q + head * T * K;
    const float *head_dy = dy + head * T * K;
    const float *head_k = k + head / GROUP * S * K;
    const float *head_v = v + head / GROUP * S * K;

    // row_max, row_sum and delta of each query
    for (long t = 0; t < T; t += QUERIES) {
      int rows = min_int(QUERIES, T - t);
      int limit = visible_keys(S, t, rows);
      load_scaled(query, head_q + t * K, rows, SCALE);
      load_scaled(grad, head_dy + t * K, rows, 1);
      for (int i = 0; i < QUERIES; i++)
        row_max[t + i] = new_max[i] = -INFINITY;
      for (int i = 0; i < rows; i++)
        row_sum[t + i] = delta[t + i] = 0;
      for (long s = 0; s < limit; s += C) {
        int n = min_int(C, limit - s);
        transpose_tile(keys, head_k + s * K, n);
        transpose_tile(values, head_v + s * K, n);
        matmul_tile(weights, query, keys, rows);
        matmul_tile(ds, grad, values, rows);
        for (int i = 0; i < rows; i++) {
          apply_causal_mask(weights + i * C, S, t + i, s, n);
          new_max[i] = max_score(weights + i * C, row_max[t + i]);
        }
        update_row_max(row_max + t, new_max, rescale);
        for (int i = 0; i < rows; i++) {
          vec sums = 0.0f;
          vec products = 0.0f;
          UNROLL
          for (int j = 0; j < NV; j++) {
            vec e = vec_exp(*(vec *)(weights + i * C + j * W) - new_max[i]);
            sums += e;
            products += e * *(vec *)(ds + i * C + j * W);
          }
          row_sum[t + i] = row_sum[t + i] * rescale[i] + hsum(sums);
          delta[t + i] = delta[t + i] * rescale[i] + hsum(products);
        }
      }
      for (int i = 0; i < rows; i++)
        if (row_sum[t + i] != 0)
          delta[t + i] /= row_sum[t + i];
    }

    // dq, dk and dv
    for (long i = 0; i < (T + QUERIES) * PADDED_K; i++)
      dq[i] = 0;
    for (long s = 0; s < S; s += C) {
      int n = min_int(C, S - s);
      transpose_tile(keys, head_k + s * K, n);
      transpose_tile(values, head_v + s * K, n);
      pack_panels(packed_keys, head_k + s * K, n, C);
      for (int i = 0; i < QUERIES * PADDED_K; i++)
        acc_dk[i] = acc_dv[i] = 0;
      for (long t = 0; t < T; t += QUERIES) {
        int rows = min_int(QUERIES, T - t);
        if (visible_keys(S, t, rows) <= s)
          continue;
        load_scaled(query, head_q + t * K, rows, SCALE);
        load_scaled(grad, head_dy + t * K, rows, 1);
        matmul_tile(weights, query, keys, rows);
        matmul_tile(ds, grad, values, rows);
        softmax_grad(weights, ds, row_max, row_sum, delta, rows, t, s, n);
        for (int i = 0; i < rows; i += 4)
          for (int g = 0; g < PANELS; g++)
            accumulate_panel(dq + (t + i) * PADDED_K + g * PANEL, ds + i * C, C, 1,
                             packed_keys + g * C * PANEL, n);
        pack_panels(packed_query, query, rows, QUERIES);
        pack_panels(packed_grad, grad, rows, QUERIES);
        for (int j = 0; j < C; j += 4)
          for (int g = 0; g < PANELS; g++) {
            int at = j * PADDED_K + g * PANEL;
            accumulate_panel(acc_dk + at, ds + j, 1, C, packed_query + g * QUERIES * PANEL, rows);
            accumulate_panel(acc_dv + at, weights + j, 1, C, packed_grad + g * QUERIES * PANEL,
                             rows);
          }
      }
      float *dk = out + (HEADS * T + head * S + s) * K;
      float *dv = dk + HEADS * S * K;
      for (int j = 0; j < n; j++)
        for (int p = 0; p < K; p++) {
          dk[j * K + p] = acc_dk[j * PADDED_K + p];
          dv[j * K + p] = acc_dv[j * PADDED_K + p];
        }
    }
    for (int t = 0; t < T; t++)
      for (int p = 0; p < K; p++)
        out[(head * T + t) * K + p] = dq[t * PADDED_K + p] * SCALE;
  }
}
