"""The product of a linear layer as kernels of its own for the CPU: the same numbers as the plain one, several times sooner."""
import functools, math
from collections.abc import Callable
from tinygrad import Device, Tensor, UOp, dtypes
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo
import transformer

# clang's vectors fit any CPU; only their number and width are chosen for this one.
VECTORS = r"""
#if defined(__AVX512F__)
enum { W = 16, NV = 3, R = 8 };
#elif defined(__AVX__)
enum { W = 8, NV = 2, R = 6 };
#else
enum { W = 4, NV = 3, R = 8 };
#endif
typedef float vec __attribute__((ext_vector_type(W), aligned(4)));
"""
# out (M, N) = a (M, K) b (K, N), element i, k of a at a[i*AR + k*AC], element k, j of b at b[k*BR + j*BC].
# b is packed block by block, so that a tile's columns lie side by side; a tile of `out` stays in registers while k runs
# (Goto & van de Geijn 2008, sec. 4). clang's vectors fit any CPU; only their number and width are chosen for this one.
PRODUCT = VECTORS + r"""
enum { C = W*NV, KB = 256, CB = 480 / C * C };   // a tile is R rows by C columns; a block of b, KB by CB, stays in the second cache
static inline int least(int a, int b) { return a < b ? a : b; }
static inline __attribute__((always_inline, min_vector_width(512))) void tile(float *out, long ld, const float *a, long ra, long pa, const float *b, int depth, int add) {
  vec s[R][NV] = {};
  for (int p = 0; p < depth; p++) {
    vec y[NV];
#pragma clang loop unroll(full)
    for (int j = 0; j < NV; j++) y[j] = *(const vec *)(b + p*C + j*W);
#pragma clang loop unroll(full)
    for (int i = 0; i < R; i++)
#pragma clang loop unroll(full)
      for (int j = 0; j < NV; j++) s[i][j] += a[i*ra + p*pa] * y[j];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < R; i++)
#pragma clang loop unroll(full)
    for (int j = 0; j < NV; j++) { vec *o = (vec *)(out + i*ld + j*W); *o = add ? *o + s[i][j] : s[i][j]; }
}
__attribute__((min_vector_width(512)))
void NAME(float *restrict out, const float *restrict a, const float *restrict b) {
  float pb[KB*CB], pk[KB*R];
  for (int k = 0; k < K; k += KB) for (int c = 0; c < N; c += CB) {
    int depth = least(KB, K - k), width = least(CB, N - c);
    for (int j = 0; j < width; j += C) {
      float *to = pb + j*depth;
      if (BC == 1 && j + C <= width) for (int p = 0; p < depth; p++) for (int v = 0; v < NV; v++) *(vec *)(to + p*C + v*W) = *(const vec *)(b + (k+p)*BR + c + j + v*W);
      else for (int l = 0; l < C; l++) for (int p = 0; p < depth; p++) to[p*C + l] = j + l < width ? b[(k+p)*BR + (c+j+l)*BC] : 0;
    }
    for (int i = 0; i < M; i += R) {
      int rows = least(R, M - i);
      const float *x = a + i*AR + k*AC; long ra = AR, pa = AC;
      if (AC != 1 || rows < R) { for (int p = 0; p < depth; p++) for (int r = 0; r < R; r++) pk[p*R + r] = r < rows ? x[r*AR + p*AC] : 0; x = pk; ra = 1; pa = R; }
      for (int j = 0; j < width; j += C) {
        float *to = out + i*N + c + j, edge[R*C];
        int cols = least(C, width - j);
        if (rows == R && cols == C) tile(to, N, x, ra, pa, pb + j*depth, depth, k > 0);
        else {
          tile(edge, C, x, ra, pa, pb + j*depth, depth, 0);
          for (int r = 0; r < rows; r++) for (int l = 0; l < cols; l++) to[r*N + l] = edge[r*C + l] + (k > 0 ? to[r*N + l] : 0);
        }
      }
    }
  }
}
"""

# out (M, N) = x (M, K) w^T, w (N, K), for the few rows of a step of generation: each weight is read once, four rows of w abreast,
# which is all that the memory lets one do. Weights of 16 bits are widened on the way; the sums are float32.
ROWS = VECTORS + r"""
typedef TYPE narrow __attribute__((ext_vector_type(W), aligned(2)));
typedef unsigned wide __attribute__((ext_vector_type(W)));
static inline __attribute__((always_inline, min_vector_width(512))) vec widen(const TYPE *p) {
#if BRAIN
  return (vec)(__builtin_convertvector(*(const narrow *)p, wide) << 16);
#else
  return __builtin_convertvector(*(const narrow *)p, vec);
#endif
}
static inline float one(TYPE w) {
#if BRAIN
  union { unsigned u; float f; } v = { (unsigned)w << 16 };
  return v.f;
#else
  return w;
#endif
}
__attribute__((min_vector_width(512)))
void NAME(float *restrict out, const float *restrict x, const TYPE *restrict w) {
  for (long n = 0; n < N; n += 4) {
    const TYPE *row[4];
    for (int r = 0; r < 4; r++) row[r] = w + (n + r < N ? n + r : N - 1)*K;
    vec s[M][4] = {};
    long k = 0;
    for (; k + W <= K; k += W)
#pragma clang loop unroll(full)
      for (int r = 0; r < 4; r++) {
        vec y = widen(row[r] + k);
#pragma clang loop unroll(full)
        for (int m = 0; m < M; m++) s[m][r] += y * *(const vec *)(x + m*K + k);
      }
#pragma clang loop unroll(full)
    for (int m = 0; m < M; m++)
#pragma clang loop unroll(full)
      for (int r = 0; r < 4; r++) {
        float sum = 0;
        for (int i = 0; i < W; i++) sum += s[m][r][i];
        for (long l = k; l < K; l++) sum += one(row[r][l]) * x[m*K + l];
        if (n + r < N) out[m*N + n + r] = sum;
      }
  }
}
"""
TYPES = {dtypes.float32: "float", dtypes.float16: "_Float16", dtypes.bfloat16: "unsigned short"}

@functools.cache
def kernel(template:str, **sizes) -> Callable:
  """What Tensor.custom_kernel takes: a program above for these sizes and strides (in elements)."""
  name = "_".join(["rows" if template is ROWS else "product", *(str(size).split()[-1] for size in sizes.values())])
  source = "".join(f"#define {key} {f'{value}L' if isinstance(value, int) else value}\n" for key, value in sizes.items()) + f"#define NAME {name}\n" + template
  def program(*buffers:UOp) -> UOp:
    info = ProgramInfo(name=name, globals=(0, 1, 2), outs=(0,), ins=(1, 2), target=Device["CPU"].renderer.target)
    return UOp(Ops.PROGRAM, src=(UOp.sink(*buffers, arg=KernelInfo(name=name)), UOp(Ops.LINEAR, src=buffers), UOp(Ops.SOURCE, arg=source)), arg=info)
  return program

def gradient(dy:UOp, call:UOp) -> tuple[UOp|None, UOp, UOp]:
  """Of y = x w^T: dx = dy w and dw = dy^T x."""
  d, x, w = Tensor(dy).contiguous(), Tensor(call.src[2]), Tensor(call.src[3]).float().contiguous()
  (M, N), K = d.shape, x.shape[1]
  dx = Tensor.empty(M, K, device="CPU").custom_kernel(d, w, fxn=kernel(PRODUCT, M=M, N=K, K=N, AR=N, AC=1, BR=K, BC=1))[0]
  dw = Tensor.empty(N, K, device="CPU").custom_kernel(d, x, fxn=kernel(PRODUCT, M=N, N=K, K=M, AR=1, AC=N, BR=K, BC=1))[0]
  return None, dx.uop, dw.uop

@functools.cache
def clang_compiles(device:str) -> bool: return device == "CPU" and type(Device[device].renderer).__name__ == "ClangRenderer"

class PackedLinear(transformer.Linear):
  """transformer.Linear with its product as a kernel above: on the CPU, for inputs in float32. Elsewhere it is transformer.Linear."""
  @staticmethod
  def product(x:Tensor, weight:Tensor) -> Tensor:
    """x (..., K), weight (N, K) in float32, float16 or bfloat16 -> x weight^T (..., N)."""
    (N, K), M = weight.shape, math.prod(x.shape[:-1])
    if not (isinstance(M, int) and M and x.device == weight.device and clang_compiles(str(x.device)) and x.dtype == dtypes.float32 and weight.dtype in TYPES):
      return transformer.Linear.product(x, weight)
    if M <= 16: fxn = kernel(ROWS, M=M, N=N, K=K, TYPE=TYPES[weight.dtype], BRAIN=int(weight.dtype == dtypes.bfloat16))
    else: fxn, weight = kernel(PRODUCT, M=M, N=N, K=K, AR=K, AC=1, BR=1, BC=K), weight.float()
    y = Tensor.empty(M, N, device="CPU").custom_kernel(x.reshape(M, K).contiguous(), weight.contiguous(), fxn=fxn, grad_fxn=gradient)[0]
    return y.reshape(*x.shape[:-1], N)
