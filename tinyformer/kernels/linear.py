"""Compute matrix products on the CPU with C kernels, from weights of any supported dtype."""

import math
from collections.abc import Callable
from typing import Any

from tinygrad import Tensor, UOp, dtypes

import transformer
from tinyformer.kernels.c_kernel import (
  C_TYPES,
  contiguous_buffer,
  dtype_macros,
  empty,
  has_clang,
  kernel,
  num_tasks,
  static_size,
)
from tinyformer.kernels.fused import Size, linear
from tinyformer.kernels.quantization import GROUP, is_quantized, quantized_row_size, to_float32

# PackedLinear multiplies up to this many rows of x by GEMV, and more by GEMM.
MAX_GEMV_ROWS = 16
# GEMM with int8 weights quantizes each row of x to int8 in groups of this size, each with its own
# scale. With int4 weights, the groups are those of the weights.
INT8_GROUP = 256


def matmul(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
  """Return a (..., M, K) times b (..., K, N) -> (..., M, N), on the CPU. It is not differentiable.

  transpose_a: a is passed as (..., K, M).  transpose_b: b is passed as (..., N, K).
  """
  M, K = a.shape[-2:][::-1] if transpose_a else a.shape[-2:]
  N = b.shape[-2 if transpose_b else -1]
  batch = math.prod(a.shape[:-2])
  function = matmul_kernel((batch, M, N, K), b, transpose_a, transpose_b)
  out = empty(*a.shape[:-2], M, N)
  return out.custom_kernel(contiguous_buffer(a), contiguous_buffer(b), fxn=function)[0]


def matmul_kernel(
  sizes: tuple[Size, Size, Size, Size],
  b: Tensor,
  transpose_a: bool = False,
  transpose_b: bool = False,
  bias: bool = False,
) -> Callable:
  """Return the GEMM kernel for sizes (batch, M, N, K); b and the flags are those of `matmul`."""
  batch, M, N, K = sizes
  # A row of an int8 matrix is 4 longer than K.
  row_size = b.shape[-1]
  # Each task packs what it reads of b and of a transposed a.
  split_columns = not transpose_a and N >= 192
  max_tasks = 16 if split_columns or batch > 1 else -(-static_size(M) // 32)
  macros: dict[str, Any] = dict(
    BATCH=batch,
    M=M,
    N=N,
    K=K,
    A_ROW=1 if transpose_a else K,
    A_COL=M if transpose_a else 1,
    B_ROW=1 if transpose_b else row_size,
    B_COL=row_size if transpose_b else 1,
    A_BATCH=M * K,
    B_BATCH=math.prod(b.shape[-2:]),
    SPLIT_COLUMNS=int(split_columns),
    HAS_BIAS=int(bias),
    **dtype_macros(b.dtype),
  )
  tasks = min(num_tasks(batch * M * N * K), max_tasks)
  return kernel("gemm", 3 + bias, tasks, **macros)


def dot_kernel(sizes: tuple[Size, Size, Size], weight: Tensor, bias: bool) -> Callable:
  """Return the kernel that multiplies x (M, K) by an int8, int4 or bfloat16 weight.

  sizes: M, N and K. x is what int8_rows returns for the weight, or float32 if the weight is
  bfloat16. The kernel rounds it to bfloat16 then.
  """
  M, N, K = (static_size(n) for n in sizes)
  split_columns = N >= 192
  tasks = min(num_tasks(M * N * K), 16 if split_columns else -(-M // 32))
  macros: dict[str, Any] = dict(M=M, N=N, K=K, HAS_BIAS=int(bias), SPLIT_COLUMNS=int(split_columns))
  if weight.dtype == dtypes.uint8:
    return kernel("gemm_int4", 3 + bias, tasks, **macros)
  if weight.dtype == dtypes.int8:
    macros["GROUP"] = INT8_GROUP
  return kernel("gemm_dot", 3 + bias, tasks, **macros, **dtype_macros(weight.dtype))


def int8_rows(x: Tensor, group: int) -> Tensor:
  """Quantize the rows of x (M, K) to int8 in groups, as c/quantize_rows.c describes."""
  M, K = (static_size(n) for n in x.shape)
  out = Tensor.empty(M, quantized_row_size(K, group), dtype=dtypes.int8, device="CPU")
  function = kernel("quantize_rows", 2, num_tasks(10 * M * K), M=M, K=K, GROUP=group)
  return out.custom_kernel(contiguous_buffer(x), fxn=function)[0]


def linear_backward(grad: UOp, call: UOp) -> tuple[UOp | None, ...]:
  """Return the gradients of y = x w^T + bias: dx = dy w, dw = dy^T x, dbias = the sum of dy's rows.

  dy (M, N), x (M, K), w (N, K), bias (N), if there is one.
  """
  dy = Tensor(grad).contiguous()
  x, w, *bias = (Tensor(u) for u in call.src[2:])
  if is_quantized(w):  # it has no gradient
    return None, matmul(dy, to_float32(w)).uop, None, *(dy.sum(0).uop for _ in bias)
  dx = matmul(dy, w)
  dw = matmul(dy, x, transpose_a=True).cast(w.dtype)
  if not bias:
    return None, dx.uop, dw.uop
  M, N = dy.shape
  function = kernel("column_sums", 2, num_tasks(4 * M * N), M=M, N=N)
  return None, dx.uop, dw.uop, empty(N).custom_kernel(dy, fxn=function)[0].uop


def supports_experts(x: Tensor, weight: Tensor) -> bool:
  """Return whether expert_products multiplies x by these matrices."""
  return (
    x.dtype == dtypes.float32
    and x.device == weight.device
    and has_clang(str(x.device))
    and (weight.dtype in C_TYPES or weight.dtype == dtypes.uint8)
  )


def expert_products(x: Tensor, weight: Tensor, indices: Tensor, experts: int) -> Tensor:
  """Return the products of x with the matrices of selected experts. It is not differentiable.

  x (selected, K), or (1, K) if it is the same for all; weight: the matrices of all experts
  (experts * N, K), in any dtype of PackedLinear.product; indices (selected) -> (selected, N).
  """
  selected = static_size(indices.shape[0])
  N = static_size(weight.shape[0]) // experts
  K = static_size(x.shape[-1])
  macros: dict[str, Any] = dict(M=1, N=N, K=K, HAS_BIAS=0, EXPERTS=selected)
  macros["SAME_X"] = int(x.shape[0] == 1)
  tasks = num_tasks(5 * N * K)
  if weight.dtype == dtypes.uint8:
    function = kernel("gemv_int4", 4, tasks, **macros)
  else:
    function = kernel("gemv", 4, tasks, **macros, **dtype_macros(weight.dtype))
  # Whatever the router computes, the kernel must not read beyond the matrices.
  indices = indices.clamp(0, experts - 1).cast(dtypes.int32)
  inputs = (contiguous_buffer(x), contiguous_buffer(weight), contiguous_buffer(indices))
  return empty(selected, N).custom_kernel(*inputs, fxn=function)[0]


class PackedLinear(transformer.Linear):
  """A transformer.Linear whose product is a C kernel, if x is float32 and on the CPU."""

  @staticmethod
  def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias (..., N), for x (..., K) and bias (N).

    weight: (N, K) in float32, float16 or bfloat16, (N, K + 4) in int8 as quantize_int8 returns
    it, or (N, K / 32 * 18) in int4 as quantize_int4 returns it. Calls that the kernels do not
    support are passed on to fused.linear.
    """
    N = weight.shape[0]
    M = math.prod(x.shape[:-1])
    K = x.shape[-1]
    shape = x.shape[:-1]
    supported = (
      isinstance(M, int)
      and M
      and x.device == weight.device
      and has_clang(str(x.device))
      and x.dtype == dtypes.float32
      and (weight.dtype in C_TYPES or weight.dtype == dtypes.uint8)
    )
    if not supported:
      return linear(x, weight, bias)
    biases = [] if bias is None else [contiguous_buffer(bias)]
    x = x.reshape(M, K)
    if M > MAX_GEMV_ROWS and weight.dtype in (dtypes.int8, dtypes.uint8, dtypes.bfloat16):
      function = dot_kernel((M, N, K), weight, bool(biases))
      if is_quantized(weight):
        x = int8_rows(x, INT8_GROUP if weight.dtype == dtypes.int8 else GROUP)
    elif M > MAX_GEMV_ROWS:
      function = matmul_kernel((1, M, N, K), weight, transpose_b=True, bias=bool(biases))
    elif weight.dtype == dtypes.uint8:
      sizes = dict(M=M, N=N, K=K, HAS_BIAS=len(biases))
      function = kernel("gemv_int4", 3 + len(biases), num_tasks(5 * N * K), **sizes)
    else:
      macros = dtype_macros(weight.dtype) | {"HAS_BIAS": len(biases)}
      tasks = num_tasks(5 * N * K)
      function = kernel("gemv", 3 + len(biases), tasks, M=M, N=N, K=K, **macros)
    inputs = (contiguous_buffer(x), contiguous_buffer(weight), *biases)
    y = empty(M, N).custom_kernel(*inputs, fxn=function, grad_fxn=linear_backward)[0]
    return y.reshape(*shape, N)

  def __call__(self, x: Tensor) -> Tensor:
    """Return x W^T + bias: (..., inputs) -> (..., outputs)."""
    return self.product(x, self.weight, self.bias)
