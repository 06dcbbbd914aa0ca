"""The C files are formatted, compile without warnings, and equal their naive loops.

The slow tests build them for three kinds of x86-64 CPU with AddressSanitizer and UBSan, which stop
at the first access beyond a buffer and at the first undefined operation.
"""

import contextlib
import functools
import itertools
import math
import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT, normal
from tinygrad import Device, dtypes

from tinyformer.kernels.attention import QUERIES
from tinyformer.kernels.c_kernel import C_FOLDER, define, dtype_macros, has_clang, read_source
from tinyformer.kernels.quantization import quantize_int4, quantize_int8, quantized_row_size
from tinyformer.kernels.tinygrad_internals import position_independent

C_FILES = sorted(C_FOLDER.glob("*.c"))
DRIVERS = ROOT / "tests" / "c"
# The flags that select a target.
TARGETS = {
  "x86-64 with AVX-512": ["-target", "x86_64-linux-gnu", "-march=x86-64-v4"],
  "x86-64 with AVX2": ["-target", "x86_64-linux-gnu", "-march=x86-64-v3"],
  "x86-64": ["-target", "x86_64-linux-gnu", "-march=x86-64"],
  "aarch64": ["-target", "aarch64-linux-gnu"],
}
# More targets, with instructions for dot products of bytes and bfloat16, for gemm_dot.c.
DOT_TARGETS = {
  "x86-64 with AVX512-VNNI and AVX512-BF16": [
    *TARGETS["x86-64 with AVX-512"],
    "-mavx512vnni",
    "-mavx512bf16",
    "-D__znver4__",  # gemm_dot.c multiplies bfloat16 on AMD's CPUs only
  ],
  "x86-64 with AVX-VNNI": [*TARGETS["x86-64 with AVX2"], "-mavxvnni"],
  "aarch64 with dot products": ["-target", "aarch64-linux-gnu", "-march=armv8.6-a"],
}
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# As tinygrad compiles, but the naive loops call expf.
FLAGS = ["-ffreestanding", "-fno-math-errno", "-DNAIVE", "-DNAME=optimized", f"-I{C_FOLDER}"]
SANITIZE = [
  "-g",
  "-fsanitize=address,undefined",
  # The driver calls all kernels with the same prototype.
  "-fno-sanitize=function",
  "-fno-sanitize-recover=all",
]
NATIVE = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []
INF = math.inf


# cases


class Case(NamedTuple):
  """A kernel with its macros, its inputs, and the values of its variables.

  out_size: the number of elements of the output.  compared: the number of elements, from the first
  on, that the naive loop computes too.  inputs: None is an input that the kernel does not have.
  tasks_sum: the number of elements at the end of the output that each task computes by itself.
  """

  file: str
  macros: dict
  inputs: tuple[np.ndarray | None, ...]
  out_size: int
  out_dtype: type = np.float32
  compared: int | None = None
  tasks: int = 3
  variables: tuple[int, ...] = ()
  tasks_sum: int = 0


def weights(shape, dtype, seed: int = 1) -> np.ndarray:
  """Return random weights of a dtype, as the memory of a tensor."""
  values = normal(*shape, seed=seed)
  if dtype == dtypes.int8:
    return quantize_int8(values)
  if dtype == dtypes.bfloat16:
    return (values.view(np.uint32) >> 16).astype(np.uint16)
  return values.astype(np.float16) if dtype == dtypes.float16 else values


def gemv(M, N, K, dtype, bias) -> Case:
  macros = dict(M=M, N=N, K=K, HAS_BIAS=bias, **dtype_macros(dtype))
  inputs = (normal(M, K), weights((N, K), dtype), normal(N, seed=2) if bias else None)
  return Case("gemv.c", macros, inputs, M * N)


def gemv_int4(M, N, K, bias=0, x=None) -> Case:
  macros = dict(M=M, N=N, K=K, HAS_BIAS=bias)
  w = quantize_int4(normal(N, K, seed=1))
  inputs = (normal(M, K) if x is None else x, w, normal(N, seed=2) if bias else None)
  return Case("gemv_int4.c", macros, inputs, M * N)


def experts(selected, N, K, dtype, same_x=0) -> Case:
  """A product with selected experts. The last of them is the last in the weight."""
  macros = dict(M=1, N=N, K=K, HAS_BIAS=0, EXPERTS=len(selected), SAME_X=same_x)
  total = max(selected) + 1
  x = normal(1 if same_x else len(selected), K)
  indices = np.array(selected, np.int32)
  if dtype == "int4":
    w = quantize_int4(normal(total * N, K, seed=1))
    return Case("gemv_int4.c", macros, (x, w, None, indices), len(selected) * N)
  w = weights((total * N, K), dtype)
  inputs = (x, w, None, indices)
  return Case("gemv.c", macros | dtype_macros(dtype), inputs, len(selected) * N)


def gemm_int4(M, N, K, bias=0, split=0) -> Case:
  macros = dict(M=M, N=N, K=K, SPLIT_COLUMNS=split, HAS_BIAS=bias)
  w = quantize_int4(normal(N, K, seed=1))
  inputs = (int8_rows(normal(M, K), 32), w, normal(N, seed=2) if bias else None)
  return Case("gemm_int4.c", macros, inputs, M * N)


def gemm(batch, M, N, K, dtype=dtypes.float32, bias=0, transpose=(0, 1), split=0) -> Case:
  transpose_a, transpose_b = transpose
  b = weights((batch * (N if transpose_b else K), K if transpose_b else N), dtype)
  row_size = b.shape[-1]
  macros = dict(
    BATCH=batch,
    M=M,
    N=N,
    K=K,
    A_ROW=1 if transpose_a else K,
    A_COL=M if transpose_a else 1,
    B_ROW=1 if transpose_b else row_size,
    B_COL=row_size if transpose_b else 1,
    A_BATCH=M * K,
    B_BATCH=b.size // batch,
    SPLIT_COLUMNS=split,
    HAS_BIAS=bias,
    **dtype_macros(dtype),
  )
  inputs = (normal(batch, M, K), b, normal(N, seed=2) if bias else None)
  return Case("gemm.c", macros, inputs, batch * M * N)


def quantize_rows(M, K, group) -> Case:
  x = normal(M, K) * np.float32(10) ** np.arange(-3, M - 3, dtype=np.float32)[:, None]
  x[M // 2] = 0
  size = M * quantized_row_size(K, group)
  return Case("quantize_rows.c", dict(M=M, K=K, GROUP=group), (x,), size, np.int8)


def gemm_dot(M, N, K, dtype, bias=0, split=0, group=16) -> Case:
  macros = dict(M=M, N=N, K=K, SPLIT_COLUMNS=split, HAS_BIAS=bias, **dtype_macros(dtype))
  x = normal(M, K)
  if dtype == dtypes.int8:
    macros["GROUP"] = group
    x = int8_rows(x, group)
  inputs = (x, weights((N, K), dtype), normal(N, seed=2) if bias else None)
  return Case("gemm_dot.c", macros, inputs, M * N)


def int8_rows(x, group) -> np.ndarray:
  """Return activations quantized to int8, laid out as quantize_rows.c writes them."""
  M, K = x.shape
  groups = -(-K // group)
  padded = np.pad(x, ((0, 0), (0, groups * group - K))).reshape(M, groups, group)
  scale = np.abs(padded).max(-1) / np.float32(127)
  q = np.rint(padded / scale[..., None]).astype(np.int8)
  sums = q.sum(-1, dtype=np.int32)
  values = np.pad(q.reshape(M, -1), ((0, 0), (0, 4)))[:, : -(-K // 4) * 4]
  return np.concatenate([values, scale.view(np.int8), sums.view(np.int8)], 1)


def gelu(N, backward) -> Case:
  x = normal(N) * 4
  x[:4] = (1e4, -1e4, -40, 0)[:N]
  dy = normal(N, seed=1) if backward else None
  return Case("gelu.c", dict(N=N, BACKWARD=backward), (x, dy), N)


def layer_norm(M, D, backward) -> Case:
  last = normal(M, D, seed=1) if backward else normal(D, seed=1)
  inputs = (normal(M, D) * 3 + 1, normal(D, seed=2), last)
  macros = dict(M=M, D=D, EPS="1e-3f", BACKWARD=backward)
  if not backward:
    return Case("layer_norm.c", macros, inputs, M * D)
  return Case("layer_norm.c", macros, inputs, (M + 2 * 3) * D, tasks_sum=2 * D)


def cross_entropy(M, V, smoothing, backward) -> Case:
  logits = normal(M, V) * 5
  logits[0] -= 1e4
  if not smoothing:
    logits[-1, 0] = -INF
  targets = np.random.default_rng(0).integers(0, V, M).astype(np.int32)
  targets[-1] = V if M > 1 else 0
  targets[M // 2] = -2 if M > 2 else V - 1
  grads = normal(2, M, seed=1) if backward else None
  macros = dict(M=M, V=V, SMOOTHING=f"{smoothing}f", BACKWARD=backward)
  return Case("cross_entropy.c", macros, (logits, targets, grads), M * V if backward else 2 * M)


def attention_mask(kind: str, B, H, T, S) -> np.ndarray | None:
  """Return an additive mask of one kind: a bias, padding, keys that are all masked, or None."""
  if kind == "bias":
    return normal(1, H, T, S, seed=5)
  if kind == "padding":
    visible = np.random.default_rng(T).integers(0, 2, (B, 1, 1, S))
    return np.where(visible, 0, -INF).astype(np.float32)
  return np.full((1, 1, T, S), -INF, np.float32) if kind == "all masked" else None


def attention(B, H, G, T, S, K, kind="", unused=0, variables=(), kv_dtype=np.float32) -> Case:
  """A case with `unused` rows of the KV cache. The variables are part of S."""
  mask = attention_mask(kind, B, H, T, S)
  macros = dict(
    HEADS=B * H,
    GROUP=H // G,
    T=T,
    K=K,
    SCALE=f"{K**-0.5}f",
    CAUSAL=int(kind == "causal"),
    QUERIES=QUERIES,
    CAPACITY=S + unused,
    S_CONSTANT=S - sum(variables),
    NUM_VARIABLES=len(variables),
    HAS_MASK=int(mask is not None),
    HEADS_PER_TEXT=H,
    KV="_Float16" if kv_dtype == np.float16 else "float",
  )
  shape = mask.shape if mask is not None else (1, 1, 1, 1)
  for i, name in enumerate(("MASK_TEXT", "MASK_HEAD", "MASK_QUERY", "MASK_KEY")):
    macros[name] = 0 if shape[i] == 1 else math.prod(shape[i + 1 :])
  kv = (normal(B, G, S + unused, K, seed=seed).astype(kv_dtype) for seed in (1, 2))
  inputs = (normal(B, H, T, K), *kv, mask)
  file = "attention_forward.c" if T > 1 else "attention_decode.c"
  return Case(file, macros, inputs, B * H * T * K, variables=variables)


def attention_backward(B, H, G, T, S, K, causal, tasks=3) -> Case:
  macros = dict(HEADS=B * H, GROUP=H // G, T=T, S=S, K=K, SCALE=f"{K**-0.5}f")
  macros |= dict(CAUSAL=causal, QUERIES=QUERIES, KV="float")
  shapes = [(B, H, T, K), (B, G, S, K), (B, G, S, K), (B, H, T, K)]
  inputs = tuple(normal(*shape, seed=seed) for seed, shape in enumerate(shapes))
  size = B * H * (T + 2 * S) * K
  workspace = tasks * (T + QUERIES) * (K + 63 + 3)
  file = "attention_backward.c"
  return Case(file, macros, inputs, size + workspace, compared=size, tasks=tasks)


def exact_top_k(N, K, M, count) -> list[Case]:
  """Return the four kernels of ExactTopKHead."""
  head = normal(N, K)
  copy = quantize_int8(head)
  xs = normal(M, K, seed=3)
  approx = xs @ (copy[:, :-4] * copy[:, -4:].copy().view(np.float32)).T
  bound = np.abs(normal(N, seed=4)) / 100
  threshold = np.sort(approx)[:, -min(N, count)].copy()
  sizes = dict(N=N, K=K)
  top = (xs, approx, bound)
  return [
    Case("int8_copy.c", sizes, (head,), copy.size, np.int8),
    Case("error_bound.c", sizes | dtype_macros(dtypes.int8), (head, copy), N),
    Case("threshold.c", sizes | dict(M=M, COUNT=count), top, M),
    Case("exact_logits.c", sizes | dict(M=M), (*top, threshold, head), M * N),
  ]


def column_sums(M, N) -> Case:
  return Case("column_sums.c", dict(M=M, N=N), (normal(M, N),), N)


DTYPES = (dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8)
# Groups of zeros, of one value, of ties between integers, of huge and of tiny numbers.
UNUSUAL_GROUPS = np.zeros((5, 128), np.float32)
UNUSUAL_GROUPS[1, 40] = -3
UNUSUAL_GROUPS[2] = np.arange(128) % 32 * 0.5 - 7
UNUSUAL_GROUPS[2, ::32] = 127
UNUSUAL_GROUPS[3] = normal(128) * 1e30
UNUSUAL_GROUPS[4] = normal(128) * 1e-30
# One case per kernel and direction, for the tests that are not slow.
FEW_CASES = [
  gemv(3, 7, 67, dtypes.float16, 1),
  gemv_int4(2, 7, 416, 1),
  experts([2, 0], 7, 67, dtypes.int8),
  gemm_int4(19, 53, 416, 1),
  gemm(1, 19, 53, 389, bias=1),
  quantize_rows(5, 37, 16),
  gemm_dot(19, 53, 389, dtypes.bfloat16, 1),
  gemm_dot(19, 53, 389, dtypes.int8, 1),
  column_sums(7, 33),
  gelu(37, 0),
  gelu(37, 1),
  layer_norm(5, 19, 0),
  layer_norm(5, 19, 1),
  cross_entropy(7, 19, 0.1, 0),
  cross_entropy(7, 19, 0.1, 1),
  attention(2, 4, 2, 5, 53, 7, "bias"),
  attention(2, 4, 2, 1, 67, 7, "padding", unused=2, variables=(3,)),
  *(attention(2, 4, 2, T, 53, 23, "bias", kv_dtype=np.float16) for T in (1, 5)),
  attention_backward(1, 2, 1, 5, 53, 7, 1),
  *exact_top_k(37, 19, 2, 4),
]
GEMV_SIZES = [(1, 1, 1), (2, 9, 339), (3, 5, 257), (16, 7, 31)]
DOT_CASES = [
  gemm_dot(M, N, K, dtype, bias, split, group)
  for dtype in (dtypes.bfloat16, dtypes.int8)
  for M, N, K, bias, split, group in [
    (1, 1, 1, 0, 0, 4),
    (17, 100, 33, 1, 1, 20),
    (50, 131, 770, 0, 0, 256),
    (101, 401, 67, 1, 1, 64),
  ]
]
DOT_CASES += [
  gemm_int4(*sizes)
  for sizes in [(1, 1, 32), (17, 100, 96, 1, 1), (50, 131, 768), (101, 401, 288, 1, 1)]
]
DOT_CASES.append(gemv_int4(3, 5, 416, 1))
SIZES = [(1, 1, 1, 1), (2, 3, 3, 70), (2, 4, 2, 65), (1, 2, 2, 64), (1, 3, 1, 113)]
ALL_CASES = [
  *FEW_CASES,
  *(gemv(*sizes, dtype, 0) for sizes in GEMV_SIZES for dtype in DTYPES),
  *(gemv(1, 50, 128, dtype, 1) for dtype in DTYPES),
  *(gemv_int4(*sizes) for sizes in [(1, 1, 32), (1, 9, 256), (3, 5, 224), (16, 3, 160)]),
  gemv_int4(5, 7, 128, x=UNUSUAL_GROUPS),
  *(experts([0, 3], 9, 39, dtype, same_x=1) for dtype in DTYPES),
  *(experts([3, 1, 2], 5, 160, "int4", same_x) for same_x in (0, 1)),
  *(gemm(1, 23, 50, 400, dtype, 1) for dtype in DTYPES),
  *(gemm(1, 17, 100, 33, dtype, split=1) for dtype in DTYPES),
  *(gemm(3, 5, 7, 19, transpose=pair) for pair in itertools.product((0, 1), repeat=2)),
  *(gemm(1, 50, 131, 389, transpose=pair) for pair in itertools.product((0, 1), repeat=2)),
  gemm(4, 48, 16, 1),
  gemm(1, 1, 1, 1),
  *(quantize_rows(*sizes) for sizes in [(1, 1, 4), (7, 256, 256), (3, 301, 256), (6, 83, 20)]),
  *DOT_CASES,
  column_sums(1, 1),
  column_sums(60, 130),
  *(gelu(N, backward) for N in (1, 64, 301) for backward in (0, 1)),
  *(layer_norm(*sizes, back) for sizes in [(1, 1), (3, 64), (13, 33)] for back in (0, 1)),
  *(
    cross_entropy(*sizes, smoothing, back)
    for sizes in [(1, 1), (2, 16), (13, 67)]
    for smoothing in (0.0, 0.1)
    for back in (0, 1)
  ),
  *(
    attention(B, H, G, T, S, K, kind)
    for (B, H, G, S), T, K in zip(SIZES, (1, 2, 49, 64, 97), (1, 5, 17, 64, 100), strict=True)
    for kind in ("", "causal", "bias", "padding", "all masked")
    if T > 1 or kind != "causal"
  ),
  *(
    attention(B, H, G, 1, S, K, kind)
    for (B, H, G, S), K in zip(SIZES, (1, 5, 17, 64, 100), strict=True)
    for kind in ("", "bias", "padding", "all masked")
  ),
  *(attention(2, 2, 1, T, 50, 8, unused=13, variables=(31, 7)) for T in (1, 5)),
  attention(1, 2, 1, 7, 50, 8, "causal", unused=13, variables=(40,)),
  *(
    attention(2, 4, 2, T, 65, K, unused=3, variables=(31,), kv_dtype=np.float16)
    for T in (1, 49)
    for K in (1, 17, 64, 100)
  ),
  *(
    attention_backward(B, H, G, T, S, K, causal, tasks)
    for (B, H, G, S), T, K in zip(SIZES, (1, 2, 49, 64, 97), (1, 5, 17, 64, 100), strict=True)
    for causal, tasks in ((0, 1), (1, 2))
    if T > 1 or not causal
  ),
  attention_backward(1, 2, 2, 48, 20, 16, 1),  # queries that attend to no key
  *exact_top_k(1, 1, 1, 1),
  *exact_top_k(5, 45, 3, 8),
  *exact_top_k(401, 70, 2, 16),
]


def name_of(case: Case) -> str:
  values = [f"{key}={value}" for key, value in case.macros.items() if key != "TYPE"]
  return " ".join([case.file, *values])


# compilers


def compiler() -> str:
  """Return the compiler that the project uses, or skip the test."""
  cc = os.environ.get("CC", "clang")
  if not shutil.which(cc):
    pytest.skip("there is no clang")
  return cc


def run(*command, **options) -> subprocess.CompletedProcess:
  return subprocess.run([str(part) for part in command], capture_output=True, **options)


@functools.cache
def linker(*flags: str) -> str | None:
  """Return the first compiler that links a program with these flags that then runs, or None.

  ziglang's clang has no sanitizers' libraries; gcc's can be linked to its objects.
  """
  folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
  try:
    (folder / "main.c").write_text("int main(void) {\n  return 0;\n}\n")
    build = run(compiler(), *flags, "-c", folder / "main.c", "-o", folder / "main.o")
    for candidate in (compiler(), "clang", "gcc", "cc"):
      if build.returncode or not shutil.which(candidate):
        continue
      linked = run(candidate, *flags_of_linker(flags), folder / "main.o", "-o", folder / "main")
      with contextlib.suppress(OSError):  # the program's loader does not exist
        if linked.returncode == 0 and run(folder / "main").returncode == 0:
          return candidate
    return None
  finally:
    shutil.rmtree(folder)


def flags_of_linker(flags) -> list[str]:
  return [flag for flag in flags if flag.startswith("-fsanitize=")]


def compile_file(file: Path, result: Path, *flags: str | Path) -> None:
  process = run(compiler(), *flags, "-c", file, "-o", result)
  assert process.returncode == 0, process.stderr.decode()


def link(objects: list[Path], flags: tuple[str, ...]) -> Path:
  """Link a program and return it, or skip the test if that is not possible here."""
  sanitizers = flags_of_linker(flags)
  linked_by = linker(*sanitizers)
  if not linked_by:
    pytest.skip(f"no compiler links a program {' '.join(sanitizers)}")
  program = objects[0].with_name("program")
  process = run(linked_by, *sanitizers, *objects, "-o", program, "-lm", "-lpthread")
  assert process.returncode == 0, process.stderr.decode()
  return program


@pytest.fixture(scope="module")
def build(tmp_path_factory):
  """Return a function that compiles a case's kernel and naive loop with the driver."""

  @functools.cache
  def driver(flags: tuple[str, ...]) -> Path:
    result = tmp_path_factory.mktemp("driver") / "driver.o"
    compile_file(DRIVERS / "run_kernel.c", result, *flags)
    return result

  def build(case: Case, *flags: str) -> Path:
    folder = tmp_path_factory.mktemp("kernel")
    macros = folder / "macros.h"
    macros.write_text(define(NUM_TASKS=case.tasks, **case.macros))
    compile_file(C_FOLDER / case.file, folder / "kernel.o", *flags, *FLAGS, "-include", macros)
    return link([folder / "kernel.o", driver(flags)], flags)

  return build


def build_graph_runner(folder: Path, *flags: str) -> Path:
  """Compile both functions of graph_runner.c with their driver, and return the program."""
  objects = [folder / "run.o", folder / "work.o", folder / "driver.o"]
  compile_file(C_FOLDER / "graph_runner.c", objects[0], *flags, "-DNAIVE")
  compile_file(C_FOLDER / "graph_runner.c", objects[1], *flags, "-DWORKER=1")
  compile_file(DRIVERS / "run_steps.c", objects[2], *flags)
  return link(objects, flags)


def check(case: Case, program: Path):
  """Assert that the program's kernel and naive loop compute the same output."""
  out = np.full(case.out_size, 77, case.out_dtype)
  buffers = [out, *(array for array in case.inputs if array is not None)]
  numbers = iter(range(1, len(buffers)))
  arguments = [-1, *(0 if array is None else -1 - next(numbers) for array in case.inputs)]
  naive_arguments = [*arguments, *case.variables]
  kernel_arguments = [*(argument for argument in arguments if argument), *case.variables]
  counts = [len(buffers), len(naive_arguments), len(kernel_arguments), case.tasks]
  words = [*counts, *naive_arguments, *kernel_arguments]
  data = struct.pack(f"<{len(words)}q", *words)
  for array in buffers:
    data += struct.pack("<q", array.nbytes) + array.tobytes()
  result = run(program, input=data)
  assert result.returncode == 0, result.stderr.decode()
  expected, actual = np.frombuffer(result.stdout, case.out_dtype).reshape(2, -1)
  if case.tasks_sum:
    parts = actual[case.out_size - case.tasks * case.tasks_sum :].reshape(case.tasks, -1)
    shared = case.out_size - parts.size
    actual = np.concatenate([actual[:shared], parts.sum(0)])
    expected = expected[: shared + case.tasks_sum]
  actual, expected = actual[: case.compared], expected[: case.compared]
  finite = np.abs(expected[np.isfinite(expected)]).max(initial=1)
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5 * finite)


# The features of a target, as they are called in /proc/cpuinfo.
FEATURES = {
  "x86-64 with AVX-512": {"avx512vl"},
  "x86-64 with AVX2": {"avx2"},
  "x86-64": {"sse2"},
  "x86-64 with AVX512-VNNI and AVX512-BF16": {"avx512_vnni", "avx512_bf16"},
  "x86-64 with AVX-VNNI": {"avx_vnni"},
}


def cpu_supports(target: str) -> bool:
  if platform.machine() != "x86_64":
    return False
  return set(Path("/proc/cpuinfo").read_text().split()) >= FEATURES[target]


# tests


def test_every_kernel_has_a_case():
  tested = {case.file for case in FEW_CASES}
  assert tested == {path.name for path in C_FILES} - {"graph_runner.c"}


def test_the_c_files_are_formatted():
  formatter = shutil.which("clang-format")
  if not formatter:
    pytest.skip("clang-format is not installed")
  files = [*C_FILES, *C_FOLDER.glob("*.h"), *DRIVERS.glob("*.c")]
  result = run(formatter, "--dry-run", "-Werror", *files, cwd=ROOT)
  assert result.returncode == 0, result.stderr.decode()


@pytest.mark.parametrize("target", TARGETS)
def test_the_c_files_have_no_warnings(target, tmp_path):
  for number, case in enumerate(FEW_CASES):
    macros = tmp_path / f"{number}.h"
    macros.write_text(define(NUM_TASKS=case.tasks, **case.macros))
    flags = [*TARGETS[target], *WARNINGS, *FLAGS, "-include", macros]
    result = run(compiler(), *flags, "-fsyntax-only", C_FOLDER / case.file)
    assert not result.stderr and result.returncode == 0, result.stderr.decode()
  for flags in ([], ["-DWORKER=1"]):
    file = C_FOLDER / "graph_runner.c"
    result = run(compiler(), *TARGETS[target], *WARNINGS, *FLAGS, *flags, "-fsyntax-only", file)
    assert not result.stderr and result.returncode == 0, result.stderr.decode()


def test_a_file_compiled_by_hand_is_the_text_that_tinygrad_compiles(tmp_path):
  for path in C_FILES:
    copy = tmp_path / path.name
    copy.write_text(read_source(path.name))
    assert "#include" not in copy.read_text()
    by_hand = run(compiler(), "-E", "-P", f"-I{C_FOLDER}", path)
    assert by_hand.returncode == 0, by_hand.stderr.decode()
    assert run(compiler(), "-E", "-P", copy).stdout.split() == by_hand.stdout.split()


@pytest.mark.skipif(not has_clang(Device.DEFAULT), reason="the kernels run on the CPU only")
@pytest.mark.parametrize("case", FEW_CASES, ids=name_of)
def test_a_kernel_calls_no_library(case):
  """clang can replace a loop or a copy by a call.

  If a process has more than 2 GB of memory between the library and the kernel, tinygrad's loader
  links the call to a wrong address.
  """
  macros = define(NAME="kernel", NUM_TASKS=case.tasks, **case.macros)
  source = macros + read_source(case.file)
  code = Device["CPU"].renderer.compiler.compile_cached(source)
  assert position_independent(code) is not None


@pytest.mark.skipif(not has_clang(Device.DEFAULT), reason="the kernels run on the CPU only")
def test_code_that_calls_a_library_is_not_position_independent():
  source = "void f(char *a, const char *b, long n) { __builtin_memcpy(a, b, n); }"
  assert position_independent(Device["CPU"].renderer.compiler.compile_cached(source)) is None


@pytest.mark.parametrize("case", FEW_CASES, ids=name_of)
def test_a_kernel_equals_its_naive_loop(case, build):
  if os.name != "posix":
    pytest.skip("the driver needs POSIX")
  check(case, build(case, "-O2", *NATIVE))


@pytest.mark.parametrize(
  "flags",
  [
    pytest.param(["-O2"], id="optimized"),
    pytest.param(["-O1", "-g", "-fsanitize=thread"], id="ThreadSanitizer", marks=pytest.mark.slow),
    pytest.param(["-O1", *SANITIZE], id="AddressSanitizer", marks=pytest.mark.slow),
  ],
)
def test_worker_threads_run_each_task_once_and_in_order(flags, tmp_path):
  if os.name != "posix":
    pytest.skip("the driver needs POSIX")
  process = run(build_graph_runner(tmp_path, *flags))
  assert process.returncode == 0, process.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", FEW_CASES, ids=name_of)
def test_a_kernel_compiles_without_warnings(case, target, tmp_path):
  (tmp_path / "macros.h").write_text(define(NUM_TASKS=case.tasks, **case.macros))
  flags = [*TARGETS[target], *WARNINGS, *FLAGS, "-O2", "-include", tmp_path / "macros.h"]
  result = run(compiler(), *flags, "-c", C_FOLDER / case.file, "-o", tmp_path / "kernel.o")
  assert not result.stderr and result.returncode == 0, result.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("target", [target for target in TARGETS if "x86" in target])
@pytest.mark.parametrize("case", ALL_CASES, ids=name_of)
def test_a_kernel_equals_its_naive_loop_under_sanitizers(case, target, build):
  if not cpu_supports(target):
    pytest.skip(f"this CPU is no {target}")
  check(case, build(case, "-O1", *TARGETS[target], *SANITIZE))


@pytest.mark.slow
@pytest.mark.parametrize("target", DOT_TARGETS)
@pytest.mark.parametrize("case", DOT_CASES, ids=name_of)
def test_each_form_of_the_dot_product_equals_the_naive_loop_under_sanitizers(
  case, target, build, tmp_path
):
  (tmp_path / "macros.h").write_text(define(NUM_TASKS=case.tasks, **case.macros))
  flags = [*DOT_TARGETS[target], *WARNINGS, *FLAGS, "-O2", "-include", tmp_path / "macros.h"]
  compile_file(C_FOLDER / case.file, tmp_path / "kernel.o", *flags)
  if target not in FEATURES or not cpu_supports(target):
    pytest.skip(f"this CPU is no {target}")
  check(case, build(case, "-O1", *DOT_TARGETS[target], *SANITIZE))
