#include "int4.h"

// Weights w (N, K) in int4 (see int4.h) -> out (N, K) in float32, exactly.

#ifdef NAIVE
void naive(float *out, const byte *w) {
  for (long n = 0; n < N; n++)
    for (long k = 0; k < K; k++) {
      const byte *block = w + n * W_ROW + k / GROUP * BLOCK;
      byte pair = block[2 + k % HALF];
      int q = k % GROUP < HALF ? pair % 16 : pair / 16;
      out[n * K + k] = (q - 8) * block_scale(block);
    }
}
#endif

// A task is a range of rows.
KERNEL NAME(float *restrict out, const byte *restrict w, int task) {
  const byte *block = w + N * task / NUM_TASKS * W_ROW;
  const byte *last = w + N * (task + 1) / NUM_TASKS * W_ROW;
  float *y = out + N * task / NUM_TASKS * K;
  for (; block < last; block += BLOCK, y += GROUP) {
    float scale = block_scale(block);
    for (int i = 0; i < HALF; i++) {
      y[i] = ((block[2 + i] & 15) - 8) * scale;
      y[HALF + i] = ((block[2 + i] >> 4) - 8) * scale;
    }
  }
}
