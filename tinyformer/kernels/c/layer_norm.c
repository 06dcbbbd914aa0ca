#include "kernel.h"

// Layer normalization (Ba et al. 2016, sec. 3) of x (M, D) with weight and bias (D):
//
//   normed[m][i] = (x[m][i] - mean(x[m])) * scale[m], where scale[m] = 1 / sqrt(var(x[m]) + EPS)
//   out[m][i] = normed[m][i] * weight[i] + bias[i]
//
// If BACKWARD, the gradients instead, from the gradient dy (M, D) of the output:
//
//   g[m][i] = dy[m][i] * weight[i]
//   dx[m][i] = (g[m][i] - mean(g[m]) - normed[m][i] * mean(g[m] * normed[m])) * scale[m]
//   dweight[i] = sum over m of dy[m][i] * normed[m][i]        dbias[i] = sum over m of dy[m][i]
//
// out is then dx (M, D), followed by dweight and dbias (2, D).

#ifdef NAIVE
void naive(float *out, const float *xs, const float *weight, const float *last) {
  float *dweight = out + M * D;
  float *dbias = dweight + D;
  if (BACKWARD)
    for (long i = 0; i < 2 * D; i++)
      dweight[i] = 0;
  for (long m = 0; m < M; m++) {
    const float *x = xs + m * D;
    float *y = out + m * D;
    float mean = 0;
    float variance = 0;
    for (long i = 0; i < D; i++)
      mean += x[i] / D;
    for (long i = 0; i < D; i++)
      variance += (x[i] - mean) * (x[i] - mean) / D;
    float scale = 1 / __builtin_sqrtf(variance + EPS);
    if (!BACKWARD) {
      const float *bias = last;
      for (long i = 0; i < D; i++)
        y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
      continue;
    }
    const float *dy = last + m * D;
    float mean_g = 0;
    float mean_g_normed = 0;
    for (long i = 0; i < D; i++) {
      mean_g += dy[i] * weight[i] / D;
      mean_g_normed += dy[i] * weight[i] * (x[i] - mean) * scale / D;
    }
    for (long i = 0; i < D; i++) {
      float normed = (x[i] - mean) * scale;
      y[i] = (dy[i] * weight[i] - mean_g - normed * mean_g_normed) * scale;
      dweight[i] += dy[i] * normed;
      dbias[i] += dy[i];
    }
  }
}
#endif

// The kernel computes W elements of a row at a time, and reads a row from memory once. A task is a
// range of rows. If BACKWARD, each task has its own sums dweight and dbias: out ends with
// (NUM_TASKS, 2, D).
KERNEL NAME(float *restrict out, const float *restrict xs, const float *restrict weight,
#if BACKWARD
            const float *restrict dy,
#else
            const float *restrict bias,
#endif
            int task) {
#if BACKWARD
  float *dweight = out + (M + 2L * task) * D;
  float *dbias = dweight + D;
  for (int i = 0; i < 2 * D; i++)
    dweight[i] = 0;
#endif
  for (long m = M * task / NUM_TASKS; m < M * (task + 1) / NUM_TASKS; m++) {
    const float *x = xs + m * D;
    float *y = out + m * D;
    vec s = 0.0f;
    for (int i = 0; i + W <= D; i += W)
      s += *(const vec *)(x + i);
    float mean = hsum(s);
    for (int i = D / W * W; i < D; i++)
      mean += x[i];
    mean /= D;
    s = 0.0f;
    for (int i = 0; i + W <= D; i += W) {
      vec d = *(const vec *)(x + i) - mean;
      s += d * d;
    }
    float variance = hsum(s);
    for (int i = D / W * W; i < D; i++)
      variance += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / __builtin_sqrtf(variance / D + EPS);
#if BACKWARD
    const float *row_dy = dy + m * D;
    vec sum_g = 0.0f;
    vec sum_gx = 0.0f;
    for (int i = 0; i + W <= D; i += W) {
      vec g = *(const vec *)(row_dy + i) * *(const vec *)(weight + i);
      sum_g += g;
      sum_gx += g * (*(const vec *)(x + i) - mean);
    }
    float mean_g = hsum(sum_g);
    float mean_gx = hsum(sum_gx);
    for (int i = D / W * W; i < D; i++) {
      mean_g += row_dy[i] * weight[i];
      mean_gx += row_dy[i] * weight[i] * (x[i] - mean);
    }
    mean_g /= D;
    mean_gx *= scale / D;
    for (int i = 0; i < D; i++) {
      float normed = (x[i] - mean) * scale;
      y[i] = (row_dy[i] * weight[i] - mean_g - normed * mean_gx) * scale;
      dweight[i] += row_dy[i] * normed;
      dbias[i] += row_dy[i];
    }
#else
    for (int i = 0; i < D; i++)
      y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
#endif
  }
}
