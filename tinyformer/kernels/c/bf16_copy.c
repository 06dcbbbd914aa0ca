#include "kernel.h"

// Round head (N, K) to the nearest bfloat16, the upper half of a float32:
//
//   out[n][k] = (bits of head[n][k] + 0x8000) >> 16

#ifdef NAIVE
void naive(unsigned short *out, const float *head) {
  for (long i = 0; i < N * K; i++) {
    unsigned bits;
    __builtin_memcpy(&bits, head + i, sizeof(bits));
    out[i] = (bits + 0x8000) >> 16;
  }
}
#endif

// A task is a range of the elements.
KERNEL NAME(unsigned short *restrict out, const float *restrict head, int task) {
  for (long i = N * K * task / NUM_TASKS; i < N * K * (task + 1) / NUM_TASKS; i++) {
    union {
      float f;
      unsigned u;
    } value = {head[i]};
    out[i] = (value.u + 0x8000) >> 16;
  }
}
