// The optional bias of a matrix product: a parameter of the kernel if HAS_BIAS, else a null
// pointer.
#pragma once

#if HAS_BIAS
#define BIAS_PARAMETER const float *restrict bias,
#else
#define BIAS_PARAMETER
static const float *const bias = 0;
#endif
