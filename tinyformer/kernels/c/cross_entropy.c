#include "exp.h"

// Cross-entropy with label smoothing (Szegedy et al. 2016, sec. 7), of logits x (M, V), targets
// (M). The loss of row m is log(sum_exp[m]) + offset[m], where row_max = max(x[m]) and
//
//   sum_exp[m] = sum over i < V of exp(x[m][i] - row_max)
//   offset[m] = row_max - (1 - SMOOTHING) * x[m][targets[m]] - SMOOTHING * mean(x[m])
//
// out is sum_exp and offset (2, M). offset is NaN if the target is not in 0..V-1.
//
// If BACKWARD, out is the gradient (M, V) instead, from the gradients grads (2, M) of sum_exp and
// offset:
//
//   out[m][i] = exp(x[m][i] - row_max) * grads[0][m]
//               - grads[1][m] * (SMOOTHING / V + (i == targets[m] ? 1 - SMOOTHING : 0))
//
// The gradient by row_max is zero, because its parts by sum_exp and by offset cancel.

#ifdef NAIVE
void naive(float *out, const float *logits, const int *targets, const float *grads) {
  for (long m = 0; m < M; m++) {
    const float *x = logits + m * V;
    int valid = targets[m] >= 0 && targets[m] < V;
    float row_max = x[0];
    for (int i = 1; i < V; i++)
      row_max = x[i] > row_max ? x[i] : row_max;
    if (BACKWARD) {
      for (int i = 0; i < V; i++) {
        float target_share = SMOOTHING / V + (i == targets[m] ? 1 - SMOOTHING : 0);
        out[m * V + i] = __builtin_expf(x[i] - row_max) * grads[m] - grads[M + m] * target_share;
      }
      continue;
    }
    float sum_exp = 0;
    float mean_share = 0;
    for (int i = 0; i < V; i++) {
      sum_exp += __builtin_expf(x[i] - row_max);
      if (SMOOTHING > 0) // 0 times a logit of -inf would be NaN
        mean_share += SMOOTHING / V * x[i];
    }
    out[m] = sum_exp;
    out[M + m] = __builtin_nanf("");
    if (valid)
      out[M + m] = row_max - (1 - SMOOTHING) * x[targets[m]] - mean_share;
  }
}
#endif

// The kernel computes W logits of a row at a time. A task is a range of rows.
KERNEL NAME(float *restrict out, const float *restrict logits, const int *restrict targets,
#if BACKWARD
            const float *restrict grads,
#endif
            int task) {
  for (long m = M * task / NUM_TASKS; m < M * (task + 1) / NUM_TASKS; m++) {
    const float *x = logits + m * V;
    int end = V / W * W;
    int target = targets[m];
    int valid = target >= 0 && target < V;
    float row_max = x[0];
    vec high = (vec)row_max;
    for (int i = 0; i < end; i += W)
      high = __builtin_elementwise_max(high, *(const vec *)(x + i));
    row_max = hmax(high);
    for (int i = end; i < V; i++)
      if (x[i] > row_max)
        row_max = x[i];
#if BACKWARD
    float *dx = out + m * V;
    float d_sum = grads[m];
    float d_offset = grads[M + m];
    for (int i = 0; i < end; i += W)
      *(vec *)(dx + i) =
          vec_exp(*(const vec *)(x + i) - row_max) * d_sum - d_offset * SMOOTHING / V;
    for (int i = end; i < V; i++)
      dx[i] = vec_exp((vec)(x[i] - row_max))[0] * d_sum - d_offset * SMOOTHING / V;
    if (valid)
      dx[target] -= d_offset * (1 - SMOOTHING);
#else
    vec vec_sum_exp = 0.0f;
    vec vec_sum_x = 0.0f;
    for (int i = 0; i < end; i += W) {
      vec y = *(const vec *)(x + i);
      vec_sum_exp += vec_exp(y - row_max);
      vec_sum_x += y;
    }
    float sum_exp = hsum(vec_sum_exp);
    float sum_x = hsum(vec_sum_x);
    for (int i = end; i < V; i++) {
      sum_exp += vec_exp((vec)(x[i] - row_max))[0];
      sum_x += x[i];
    }
    out[m] = sum_exp;
    // 0 times a logit of -inf would be NaN.
    out[M + m] =
        valid ? row_max - (1 - SMOOTHING) * x[target] - (SMOOTHING > 0 ? SMOOTHING / V * sum_x : 0)
              : __builtin_nanf("");
#endif
  }
}
