"""A kernel written in C for tinygrad's CPU device, in clang's portable vectors, done in parts by as many cores as there are."""

import functools
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tinygrad import Device, Tensor, UOp, dtypes
from tinygrad.device import Buffer
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo

from transformer import Size

ABI = (
  "__attribute__((ms_abi))" if sys.platform == "win32" else ""
)  # tinygrad compiles for a bare machine and calls as the system does
# The vectors fit any CPU; only their width, and how many make a tile of R rows by C columns that stays in registers, are chosen for this one.
# A matrix may be of float, half, bfloat16 or int8: row i of an int8 matrix holds K numbers and then the float that they are to be multiplied by.
HEADER = r"""
#if defined(__AVX512F__)
enum { W = 16, NV = 3, R = 8, REGISTERS = 32 };
#define FOLD(name) name ## 16
#elif defined(__AVX__)
enum { W = 8, NV = 2, R = 6, REGISTERS = 16 };
#define FOLD(name) name ## 8
#else
enum { W = 4, NV = 3, R = 8, REGISTERS = 32 };
#define FOLD(name) name ## 4
#endif
enum { C = W*NV };
#define ALIGNED __attribute__((aligned(64)))   // to a line of the memory: a vector that lies across two takes twice as long
#define INLINE static inline __attribute__((always_inline, min_vector_width(512)))
#define ALL _Pragma("clang loop unroll(full)")
typedef float vec __attribute__((ext_vector_type(W), aligned(4)));
typedef unsigned bits __attribute__((ext_vector_type(W)));
typedef float loose __attribute__((aligned(1)));
// sum(x), most(x): of the numbers of a vector, by adding one half to the other
typedef float four __attribute__((ext_vector_type(4)));
typedef float eight __attribute__((ext_vector_type(8)));
typedef float sixteen __attribute__((ext_vector_type(16)));
#define FOLDS(name, both) \
INLINE float name ## 4(four x) { x = both(x, x.zwxy); x = both(x, x.yxwz); return x[0]; } \
INLINE float name ## 8(eight x) { return name ## 4(both(x.lo, x.hi)); } \
INLINE float name ## 16(sixteen x) { return name ## 8(both(x.lo, x.hi)); }
#define PLUS(x, y) ((x) + (y))
FOLDS(sum, PLUS)
FOLDS(most, __builtin_elementwise_max)
#define sum FOLD(sum)
#define most FOLD(most)
INLINE float dot(const float *a, const float *b, long n) {
  vec s = 0.0f;
  long k = 0;
  for (; k + W <= n; k += W) s += *(const vec *)(a + k) * *(const vec *)(b + k);
  float y = sum(s);
  for (; k < n; k++) y += a[k] * b[k];
  return y;
}
INLINE void turn4(float *to, long ld, const four *r) {   // the columns of four rows of four, at to, to + ld and so on
  typedef float next __attribute__((ext_vector_type(4), aligned(4)));
  four low = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), high = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  *(next *)to = __builtin_shufflevector(low, high, 0, 1, 4, 5);
  *(next *)(to + ld) = __builtin_shufflevector(low, high, 2, 3, 6, 7);
  low = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7), high = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  *(next *)(to + 2*ld) = __builtin_shufflevector(low, high, 0, 1, 4, 5);
  *(next *)(to + 3*ld) = __builtin_shufflevector(low, high, 2, 3, 6, 7);
}
INLINE int least(int a, int b) { return a < b ? a : b; }
// out (rows, C) = a (rows, depth) b (depth, C) + more, if that is not 0; element r, p of a at a[r*ra + p*pa], b packed, row r of more at more + r*rm; the next rows of a and of b are asked for
#define TILE(name, rows, vectors) INLINE void name(float *out, long ld, const float *a, long ra, long pa, const float *b, int depth, const float *more, long rm) { \
  vec s[rows][vectors] = {}; \
  for (int p = 0; p < depth; p++) { \
    vec y[vectors]; \
    __builtin_prefetch(a + (rows + p % rows)*ra + p / rows * rows); \
    ALL for (int j = 0; j < vectors; j++) { const float *z = b + (p*vectors + j)*W; y[j] = *(const vec *)z; __builtin_prefetch(z + 8*W*vectors); } \
    ALL for (int i = 0; i < rows; i++) ALL for (int j = 0; j < vectors; j++) s[i][j] += a[i*ra + p*pa] * y[j]; \
  } \
  ALL for (int i = 0; i < rows; i++) ALL for (int j = 0; j < vectors; j++) *(vec *)(out + i*ld + j*W) = more ? *(const vec *)(more + i*rm + j*W) + s[i][j] : s[i][j]; \
}
TILE(tile, R, NV)
"""
NARROW = r"""
typedef TYPE narrow __attribute__((ext_vector_type(W), aligned(1)));
INLINE vec widen(const TYPE *p) {
#if BRAIN
  return (vec)(__builtin_convertvector(*(const narrow *)p, bits) << 16);
#else
  return __builtin_convertvector(*(const narrow *)p, vec);
#endif
}
INLINE float one(TYPE w) {
#if BRAIN
  union { unsigned u; float f; } v = { (unsigned)w << 16 };
  return v.f;
#else
  return w;
#endif
}
"""
EXPONENTIAL = r"""
typedef int whole __attribute__((ext_vector_type(W)));
// e^x of each of the numbers, to 2e-7 of it: 2^n for the nearest n, times a polynomial of what remains. Below -87 it is 0.
INLINE vec exponential(vec x) {
  vec y = x * 1.442695041f, n = (y + 12582912.0f) - 12582912.0f, f = y - n;
  vec p = 1.0f + f*(0.6931471806f + f*(0.2402265070f + f*(0.0555041087f + f*(0.0096181291f + f*(0.0013333558f + f*0.0001540353f)))));
  return (vec)((whole)(p * (vec)((__builtin_convertvector(n, whole) + 127) << 23)) & ~(x < -87.0f));
}
"""
TYPES = {
  dtypes.float32: "float",
  dtypes.float16: "_Float16",
  dtypes.bfloat16: "unsigned short",
  dtypes.int8: "signed char",
}


def dtype_macros(dtype) -> dict[str, str | int]:
  return {"TYPE": TYPES[dtype], "BRAIN": int(dtype == dtypes.bfloat16)}


@functools.cache
def kernel(
  name: str, body: str, buffers: int = 3, parts: int = 1, variables: tuple[UOp, ...] = (), **sizes
) -> Callable:
  """What Tensor.custom_kernel takes: `void NAME(out, inputs..., variables..., part)`, with `sizes` defined; it is called once for each part."""
  name = f"{name}_{'_'.join(str(size) for size in sizes.values() if isinstance(size, int))}_{zlib.crc32(repr((body, parts, sizes)).encode()):08x}"
  source = "".join(
    f"#define {key} {f'{value}L' if isinstance(value, int) else value}\n"
    for key, value in (sizes | {"PARTS": parts, "NAME": name, "ABI": ABI}).items()
  )

  def program(*given: UOp) -> UOp:
    named = [
      *(v.replace(op=Ops.PARAM) for v in variables),
      UOp.variable("core_id", 0, parts - 1, dtypes.int, param=True),
    ]
    info = ProgramInfo(
      name=name,
      globals=tuple(range(buffers)),
      outs=(0,),
      ins=tuple(range(1, buffers)),
      target=Device["CPU"].renderer.target,
      vars=tuple(
        v.replace(arg=replace(v.arg, slot=buffers + i, dtype=dtypes.int))
        for i, v in enumerate(named)
      ),
      global_size=(parts, 1, 1),
    )
    return UOp(
      Ops.PROGRAM,
      src=(
        UOp.sink(*given, arg=KernelInfo(name=name)),
        UOp(Ops.LINEAR, src=given),
        UOp(Ops.SOURCE, arg=source + HEADER + body),
      ),
      arg=info,
    )

  return program


def static_size(n: Size) -> int:
  """A size that is known now; one that is told only when a step runs has no kernel."""
  assert isinstance(n, int)
  return n


def num_tasks(work: Size) -> int:
  """Into how many parts to cut so many multiplications, none too small to be worth the asking: a power of two, for two, four or eight cores to share them evenly."""
  return 1 << min(16, max(1, static_size(work) // 500_000)).bit_length() - 1


@functools.cache
def has_clang(device: str) -> bool:
  """Whether C can be compiled for the device: it is the CPU, and tinygrad's compiler for it is clang."""
  return device == "CPU" and type(Device[device].renderer).__name__ == "ClangRenderer"


def contiguous_buffer(x: Tensor) -> Tensor:
  """x as its numbers lie in memory one after the other; stored now, unless it is already, if in another shape."""
  u = x.uop
  while u.op is Ops.RESHAPE:
    u = u.src[0]
  return x if u.op in (Ops.CONTIGUOUS, Ops.AFTER, Ops.BUFFER) else x.contiguous()


def buffer_of(t: Tensor) -> Buffer:
  """Where a realized tensor's numbers are."""
  buffer: Any = t.uop.base.buffer
  return buffer.ensure_allocated()


def empty(*shape: Size) -> Tensor:
  return Tensor.empty(*shape, device="CPU")
