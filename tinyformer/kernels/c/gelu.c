#include "exp.h"

// GELU in its tanh form (Hendrycks & Gimpel 2016, sec. 2), for x (N):
//
//   out[i] = x[i] * sigmoid(2 z), where z = sqrt(2 / pi) * (x[i] + 0.044715 * x[i]^3)
//
// x sigmoid(2 z) is x (1 + tanh z) / 2. If BACKWARD, out is the gradient instead, from the gradient
// dy (N) of the output:
//
//   out[i] = dy[i] * sigmoid(2 z) * (1 + x[i] * (1 - sigmoid(2 z)) * 2 dz/dx)
//   2 dz/dx = 2 sqrt(2 / pi) * (1 + 3 * 0.044715 * x[i]^2)

#ifdef NAIVE
void naive(float *out, const float *x, const float *dy) {
  for (long i = 0; i < N; i++) {
    float two_z = 1.5957691216f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
    float sigmoid = 1 / (1 + __builtin_expf(-two_z));
    float d_two_z = 1.5957691216f * (1 + 3 * 0.044715f * x[i] * x[i]);
    if (BACKWARD)
      out[i] = dy[i] * (sigmoid + x[i] * sigmoid * (1 - sigmoid) * d_two_z);
    else
      out[i] = x[i] * sigmoid;
  }
}
#endif

INLINE vec sigmoid_2z(vec x) {
  vec minus_2z = -1.5957691216f * x * (1.0f + 0.044715f * x * x);
  // The minimum keeps the exponential finite.
  return 1.0f / (1.0f + vec_exp(__builtin_elementwise_min(minus_2z, (vec)87.0f)));
}

#if BACKWARD
INLINE vec gelu_grad(vec x, vec dy) {
  vec sigmoid = sigmoid_2z(x);
  return dy * sigmoid * (1.0f + x * (1.0f - sigmoid) * 1.5957691216f * (1.0f + 0.134145f * x * x));
}
#else
INLINE vec gelu(vec x) {
  return x * sigmoid_2z(x);
}
#endif

// The kernel computes W elements at a time. A task is a range of i.
KERNEL NAME(float *restrict out, const float *restrict x,
#if BACKWARD
            const float *restrict dy,
#endif
            int task) {
  enum { UNITS = (N + W - 1) / W };
  long i = UNITS * task / NUM_TASKS * W;
  long last = UNITS * (task + 1) / NUM_TASKS * W;
  for (; i < last; i += W) {
    if (i + W <= N) {
#if BACKWARD
      *(vec *)(out + i) = gelu_grad(*(const vec *)(x + i), *(const vec *)(dy + i));
#else
      *(vec *)(out + i) = gelu(*(const vec *)(x + i));
#endif
      continue;
    }
    for (long j = i; j < N; j++) {
#if BACKWARD
      out[j] = gelu_grad((vec)x[j], (vec)dy[j])[0];
#else
      out[j] = gelu((vec)x[j])[0];
#endif
    }
  }
}
