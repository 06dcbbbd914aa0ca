"""Run kernels written in C on tinygrad's CPU device, split into tasks that run on all cores.

The C code uses clang's portable vector types, so it compiles for any CPU.
"""

import functools
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tinygrad import Device, Tensor, UOp, dtypes

from tinyformer.kernels.tinygrad_internals import Buffer, KernelInfo, Ops, ProgramInfo
from transformer import Size

# tinygrad compiles for a bare-metal target but calls the code with the system's calling convention.
ABI = "__attribute__((ms_abi))" if sys.platform == "win32" else ""

# What every kernel needs: vector types, horizontal reductions, dot products and the GEMM tile.
HEADER = r"""
// W: floats per vector.  NV, R: vectors per row and rows of a GEMM tile, which stays in registers.
// REGISTERS: vector registers of the CPU.
#if defined(__AVX512F__)
enum { W = 16, NV = 3, R = 8, REGISTERS = 32 };
#define REDUCE(name) name##16
#elif defined(__AVX__)
enum { W = 8, NV = 2, R = 6, REGISTERS = 16 };
#define REDUCE(name) name##8
#else
enum { W = 4, NV = 3, R = 8, REGISTERS = 32 };
#define REDUCE(name) name##4
#endif
enum { C = W * NV }; // columns of a GEMM tile

// Align to a cache line: a vector that crosses two cache lines takes twice as long to load.
#define ALIGNED __attribute__((aligned(64)))
#define KERNEL __attribute__((min_vector_width(512))) ABI void
#define INLINE static inline __attribute__((always_inline, min_vector_width(512)))
#define UNROLL _Pragma("clang loop unroll(full)")
typedef float vec __attribute__((ext_vector_type(W), aligned(4)));
typedef unsigned uint_vec __attribute__((ext_vector_type(W)));
typedef float unaligned_float __attribute__((aligned(1)));
typedef float vec4 __attribute__((ext_vector_type(4)));
typedef float vec8 __attribute__((ext_vector_type(8)));
typedef float vec16 __attribute__((ext_vector_type(16)));

// hsum(x), hmax(x): the horizontal sum and maximum of a vector, by folding one half onto the other.
#define REDUCTION(name, op) \
  INLINE float name##4(vec4 x) { \
    x = op(x, x.zwxy); \
    x = op(x, x.yxwz); \
    return x[0]; \
  } \
  INLINE float name##8(vec8 x) { \
    return name##4(op(x.lo, x.hi)); \
  } \
  INLINE float name##16(vec16 x) { \
    return name##8(op(x.lo, x.hi)); \
  }
#define ADD(x, y) ((x) + (y))
REDUCTION(hsum, ADD)
REDUCTION(hmax, __builtin_elementwise_max)
#define hsum REDUCE(hsum)
#define hmax REDUCE(hmax)

INLINE int min_int(int a, int b) {
  return a < b ? a : b;
}

// Return the dot product of a (n) and b (n).
INLINE float dot(const float *a, const float *b, long n) {
  vec s = 0.0f;
  long k = 0;
  for (; k + W <= n; k += W)
    s += *(const vec *)(a + k) * *(const vec *)(b + k);
  float y = hsum(s);
  for (; k < n; k++)
    y += a[k] * b[k];
  return y;
}

// out[j][i] = rows[i][j] for i, j < 4, where row j of out begins at out + j * ld.
INLINE void transpose4x4(float *out, long ld, const vec4 *rows) {
  typedef float out_vec __attribute__((ext_vector_type(4), aligned(4)));
  vec4 top = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  vec4 bottom = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  *(out_vec *)out = __builtin_shufflevector(top, bottom, 0, 1, 4, 5);
  *(out_vec *)(out + ld) = __builtin_shufflevector(top, bottom, 2, 3, 6, 7);
  top = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  bottom = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  *(out_vec *)(out + 2 * ld) = __builtin_shufflevector(top, bottom, 0, 1, 4, 5);
  *(out_vec *)(out + 3 * ld) = __builtin_shufflevector(top, bottom, 2, 3, 6, 7);
}

// Define a GEMM micro-kernel, which keeps its tile in registers (Goto & van de Geijn 2008, sec. 4):
//
//   out[i][j] = sum over p < depth of a[i][p] * b[p][j]  (+ accumulate[i][j] unless it is null)
//
// for i < rows and j < vectors * W. a[i][p] is at a + i * a_row + p * a_col. b (depth, vectors * W)
// is packed. Row i of out begins at out + i * ld, row i of accumulate at accumulate + i * acc_row.
// The next rows of a and b are prefetched.
#define GEMM_TILE(name, rows, vectors) \
  INLINE void name(float *out, long ld, const float *a, long a_row, long a_col, const float *b, \
                   int depth, const float *accumulate, long acc_row) { \
    vec s[rows][vectors] = {}; \
    for (int p = 0; p < depth; p++) { \
      vec y[vectors]; \
      __builtin_prefetch(a + (rows + p % rows) * a_row + p / rows * rows); \
      UNROLL \
      for (int j = 0; j < vectors; j++) { \
        const float *z = b + (p * vectors + j) * W; \
        y[j] = *(const vec *)z; \
        __builtin_prefetch(z + 8 * W * vectors); \
      } \
      UNROLL \
      for (int i = 0; i < rows; i++) { \
        UNROLL \
        for (int j = 0; j < vectors; j++) \
          s[i][j] += a[i * a_row + p * a_col] * y[j]; \
      } \
    } \
    UNROLL \
    for (int i = 0; i < rows; i++) { \
      UNROLL \
      for (int j = 0; j < vectors; j++) { \
        vec y = s[i][j]; \
        *(vec *)(out + i * ld + j * W) = \
            accumulate ? *(const vec *)(accumulate + i * acc_row + j * W) + y : y; \
      } \
    } \
  }
GEMM_TILE(gemm_tile, R, NV)
"""

# Conversions to float32 from float32, float16, bfloat16 or int8 matrices. A row of an int8 matrix
# consists of K values and the float32 scale by which they must be multiplied.
DTYPE_LOADS = r"""
typedef TYPE type_vec __attribute__((ext_vector_type(W), aligned(1)));

// Load W values as float32. The upper half of a float32 is a bfloat16.
INLINE vec load_vec(const TYPE *p) {
#if IS_BF16
  return (vec)(__builtin_convertvector(*(const type_vec *)p, uint_vec) << 16);
#else
  return __builtin_convertvector(*(const type_vec *)p, vec);
#endif
}

// Convert one value to float32.
INLINE float to_float(TYPE value) {
#if IS_BF16
  union {
    unsigned u;
    float f;
  } bits = {(unsigned)value << 16};
  return bits.f;
#else
  return value;
#endif
}
"""

VEC_EXP = r"""
typedef int int_vec __attribute__((ext_vector_type(W)));

// Return e^x for each element, with a relative error of at most 2e-7, or 0 for x < -87.
// e^x = 2^y = 2^n 2^f, where n is the integer nearest to y = x log2(e) and f = y - n.
// The Taylor polynomial of degree 6 gives 2^f; n + 127 becomes the exponent bits of 2^n.
// Adding and subtracting 1.5 * 2^23 rounds y to the nearest integer.
INLINE vec vec_exp(vec x) {
  vec y = x * 1.442695041f;
  vec n = (y + 12582912.0f) - 12582912.0f;
  vec f = y - n;
  vec p = 0.0013333558f + f * 0.0001540353f;
  p = 0.0096181291f + f * p;
  p = 0.0555041087f + f * p;
  p = 0.2402265070f + f * p;
  p = 0.6931471806f + f * p;
  p = 1.0f + f * p;
  return (vec)((int_vec)(p * (vec)((__builtin_convertvector(n, int_vec) + 127) << 23)) &
               ~(x < -87.0f));
}
"""
C_TYPES = {
  dtypes.float32: "float",
  dtypes.float16: "_Float16",
  dtypes.bfloat16: "unsigned short",
  dtypes.int8: "signed char",
}


def dtype_macros(dtype) -> dict[str, str | int]:
  """Return the macros that DTYPE_LOADS needs for a matrix of this dtype."""
  return {"TYPE": C_TYPES[dtype], "IS_BF16": int(dtype == dtypes.bfloat16)}


@functools.cache
def kernel(
  name: str,
  body: str,
  num_buffers: int = 3,
  tasks: int = 1,
  variables: tuple[UOp, ...] = (),
  **macros,
) -> Callable:
  """Return a function for Tensor.custom_kernel that runs the C function in `body`.

  name: the prefix of the function's name.  body: C source that defines
  `void NAME(out, inputs..., variables..., task)`.  num_buffers: the number of outputs and inputs.
  tasks: the function is called once for each task from 0 to tasks - 1.
  variables: symbolic integers, which are bound on each call.  macros: macros for `body`.
  """
  digest = zlib.crc32(repr((body, tasks, macros)).encode())
  sizes = "_".join(str(value) for value in macros.values() if isinstance(value, int))
  name = f"{name}_{sizes}_{digest:08x}"
  defines = ""
  for key, value in (macros | {"NUM_TASKS": tasks, "NAME": name, "ABI": ABI}).items():
    defines += f"#define {key} {f'{value}L' if isinstance(value, int) else value}\n"

  def program(*buffers: UOp) -> UOp:
    parameters = [v.replace(op=Ops.PARAM) for v in variables]
    parameters.append(UOp.variable("core_id", 0, tasks - 1, dtypes.int, param=True))
    info = ProgramInfo(
      name=name,
      globals=tuple(range(num_buffers)),
      outs=(0,),
      ins=tuple(range(1, num_buffers)),
      target=Device["CPU"].renderer.target,
      vars=tuple(
        v.replace(arg=replace(v.arg, slot=num_buffers + i, dtype=dtypes.int))
        for i, v in enumerate(parameters)
      ),
      global_size=(tasks, 1, 1),
    )
    sink = UOp.sink(*buffers, arg=KernelInfo(name=name))
    source = UOp(Ops.SOURCE, arg=defines + HEADER + body)
    return UOp(Ops.PROGRAM, src=(sink, UOp(Ops.LINEAR, src=buffers), source), arg=info)

  return program


def static_size(n: Size) -> int:
  """Return n, which must be an int: the kernels do not support symbolic sizes."""
  assert isinstance(n, int)
  return n


def num_tasks(work: Size) -> int:
  """Return the number of parallel tasks for `work` multiply-adds.

  It is a power of two up to 16, so that two, four or eight cores share the tasks evenly.
  Each task has at least about 500k multiply-adds, because starting one has a cost.
  """
  return 1 << min(16, max(1, static_size(work) // 500_000)).bit_length() - 1


@functools.cache
def has_clang(device: str) -> bool:
  """Return whether C can be compiled for the device: the CPU, with clang as tinygrad's compiler."""
  return device == "CPU" and type(Device[device].renderer).__name__ == "ClangRenderer"


def contiguous_buffer(x: Tensor) -> Tensor:
  """Return x as a contiguous buffer, copied only if x is not one already. Reshapes are free."""
  u = x.uop
  while u.op is Ops.RESHAPE:
    u = u.src[0]
  return x if u.op in (Ops.CONTIGUOUS, Ops.AFTER, Ops.BUFFER) else x.contiguous()


def buffer_of(t: Tensor) -> Buffer:
  """Return the allocated buffer of a realized tensor."""
  buffer: Any = t.uop.base.buffer
  return buffer.ensure_allocated()


def empty(*shape: Size) -> Tensor:
  """Return an uninitialized float32 tensor on the CPU, for the output of a kernel."""
  return Tensor.empty(*shape, device="CPU")
