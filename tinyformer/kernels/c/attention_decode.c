#include "attention_mask.h"
#include "exp.h"

// Attention of one query per head, as in a step of generation: attention_forward.c with T = 1.
//
//   score[s] = SCALE * dot(q[h], k[h / GROUP][s]) + mask[h][s]         for s < S
//   weight[s] = exp(score[s] - max(score)) / sum(exp(score - max(score)))
//   out[h] = sum over s of weight[s] * v[h / GROUP][s]
//
// q and out have shape (HEADS, K), k and v (HEADS / GROUP, CAPACITY, K), with S <= CAPACITY keys in
// use. S is S_CONSTANT plus NUM_VARIABLES variables. A query whose keys are all masked gets zeros.

#ifdef NAIVE
void naive(float *out, const float *q, const KV *k, const KV *v, const float *mask, int first,
           int second) {
  const int S = S_CONSTANT + first + second;
  for (long head = 0; head < HEADS; head++) {
    const KV *head_k = k + head / GROUP * CAPACITY * K;
    const KV *head_v = v + head / GROUP * CAPACITY * K;
    float *y = out + head * K;
    float score[CAPACITY];
    float max = -INFINITY;
    float sum = 0;
    for (long s = 0; s < S; s++) {
      score[s] = 0;
      for (long p = 0; p < K; p++)
        score[s] += q[head * K + p] * (float)head_k[s * K + p];
      score[s] = score[s] * SCALE + mask_at(mask, head, 0, s);
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
#endif

// The kernel reads each key and each value once, KEYS keys at a time, for all query heads of a task
// that share them. A task is a range of query heads.
enum { KEYS = 64, VECTORS = (K + W - 1) / W };

// The running softmax of one query over the keys read so far: the largest score, the sum of
// exp(score - row_max), and the sum of the values weighted by it.
typedef struct {
  vec acc[VECTORS];
  float row_max, row_sum;
} State;

// Add keys `first` to `first` + n to the state of a query head. k and v are the rows of these keys.
INLINE void add_keys(State *state, const float *head_q, const KV *k, const KV *v, const float *mask,
                     long head, int first, int n) {
  ALIGNED float scores[KEYS];
  ALIGNED float tail[W] = {};
  float old_max = state->row_max;
  float new_max = old_max;
  for (int j = 0; j < KEYS; j++)
    scores[j] = -INFINITY;
  for (int j = 0; j < n; j++) {
    scores[j] = dot_key(head_q, k + j * K) * SCALE + mask_at(mask, head, 0, first + j);
    // The negation makes a NaN the maximum too.
    if (!(scores[j] <= new_max))
      new_max = scores[j];
  }
  state->row_max = new_max;
  if (new_max == -INFINITY)
    return;
  vec sums = 0.0f;
  vec rescale = vec_exp((vec)(old_max - new_max));
  for (int j = 0; j < KEYS; j += W) {
    vec e = vec_exp(*(vec *)(scores + j) - new_max);
    *(vec *)(scores + j) = e;
    sums += e;
  }
  state->row_sum = state->row_sum * rescale[0] + hsum(sums);
  vec acc[VECTORS];
  UNROLL
  for (int p = 0; p < VECTORS; p++)
    acc[p] = state->acc[p] * rescale[0];
  for (int j = 0; j < n; j++) {
    const KV *row = v + j * K;
    UNROLL
    for (int p = 0; p < VECTORS; p++) {
      if (p * W + W <= K) {
        acc[p] += scores[j] * load_kv(row + p * W);
      } else {
        for (int l = 0; p * W + l < K; l++)
          tail[l] = row[p * W + l];
        acc[p] += scores[j] * *(vec *)tail;
      }
    }
  }
  UNROLL
  for (int p = 0; p < VECTORS; p++)
    state->acc[p] = acc[p];
}

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
  long last = HEADS * (task + 1) / NUM_TASKS;
  for (long head = HEADS * task / NUM_TASKS; head < last;) {
    const KV *head_k = k + head / GROUP * CAPACITY * K;
    const KV *head_v = v + head / GROUP * CAPACITY * K;
    int heads = min_int(last - head, GROUP - head % GROUP);
    State states[GROUP];
    for (int i = 0; i < heads; i++)
      states[i] = (State){.row_max = -INFINITY};
    for (int s = 0; s < S; s += KEYS) {
      for (int i = 0; i < heads; i++) {
        const float *head_q = q + (head + i) * K;
        long offset = (long)s * K;
        int n = min_int(KEYS, S - s);
        add_keys(states + i, head_q, head_k + offset, head_v + offset, mask, head + i, s, n);
      }
    }
    for (int i = 0; i < heads; i++) {
      const State *state = states + i;
      for (int p = 0; p < K; p++) {
        float sum = state->acc[p / W][p % W];
        out[(head + i) * K + p] = state->row_sum == 0 ? 0 : sum / state->row_sum;
      }
    }
    head += heads;
  }
}
