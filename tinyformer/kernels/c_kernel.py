"""Run kernels written in C on tinygrad's CPU device, split into tasks that run on all cores.

The C files are in the folder c. They use clang's portable vector types, so they compile for any
CPU. Each defines one kernel, and the naive loop that the kernel is equal to (see c/kernel.h).
"""

import functools
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinygrad import Device, Tensor, UOp, dtypes

from tinyformer.kernels.fused import Size
from tinyformer.kernels.tinygrad_internals import Buffer, KernelInfo, Ops, ProgramInfo
from tinyformer.kernels.workgroup import contiguous_buffer as contiguous_buffer

C_FOLDER = Path(__file__).parent / "c"

# Functions to call with the source of each C kernel that is about to be used.
listeners: list[Callable[[str], None]] = []

C_TYPES = {
  dtypes.float32: "float",
  dtypes.float16: "_Float16",
  dtypes.bfloat16: "unsigned short",
  dtypes.int8: "signed char",
}


def dtype_macros(dtype) -> dict[str, str | int]:
  """Return the macros that dtypes.h needs for a matrix of this dtype."""
  return {"TYPE": C_TYPES[dtype], "IS_BF16": int(dtype == dtypes.bfloat16)}


@functools.cache
def read_source(file: str) -> str:
  """Return the source of a C file in which each of our headers replaces its first #include.

  tinygrad compiles a single text.
  """
  included = set()

  def read(name: str) -> str:
    if name in included:
      return ""
    included.add(name)
    text = (C_FOLDER / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(r'^#include "(.+)"\n', lambda match: read(match[1]), text, flags=re.M)

  return read(file)


def define(**macros: str | int) -> str:
  """Return lines of C that define macros. Integers have the type long."""
  macros["WINDOWS"] = int(sys.platform == "win32")
  lines = []
  for key, value in macros.items():
    lines.append(f"#define {key} {f'{value}L' if isinstance(value, int) else value}\n")
  return "".join(lines)


@functools.cache
def kernel(
  name: str,
  num_buffers: int = 3,
  tasks: int = 1,
  variables: tuple[UOp, ...] = (),
  **macros: str | int,
) -> Callable:
  """Return a function for Tensor.custom_kernel that runs the kernel in the C file c/NAME.c.

  num_buffers: the number of outputs and inputs.
  tasks: the kernel is called once for each task from 0 to tasks - 1.
  variables: symbolic integers, which are bound on each call.
  macros: macros for the C file, such as sizes. The file's kernel has the parameters
  (out, inputs..., variables..., task).
  """
  source = read_source(f"{name}.c")
  digest = zlib.crc32(repr((source, tasks, macros)).encode())
  sizes = "_".join(str(value) for value in macros.values() if isinstance(value, int))
  function_name = f"{name}_{sizes}_{digest:08x}"
  code = define(NAME=function_name, NUM_TASKS=tasks, **macros) + source

  def program(*buffers: UOp) -> UOp:
    parameters = [v.replace(op=Ops.PARAM) for v in variables]
    parameters.append(UOp.variable("core_id", 0, tasks - 1, dtypes.int, param=True))
    info = ProgramInfo(
      name=function_name,
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
    sink = UOp.sink(*buffers, arg=KernelInfo(name=function_name))
    text = UOp(Ops.SOURCE, arg=code)
    for listener in listeners:
      listener(code)
    return UOp(Ops.PROGRAM, src=(sink, UOp(Ops.LINEAR, src=buffers), text), arg=info)

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


def buffer_of(t: Tensor) -> Buffer:
  """Return the allocated buffer of a realized tensor."""
  buffer: Any = t.uop.base.buffer
  return buffer.ensure_allocated()


def empty(*shape: Size) -> Tensor:
  """Return an uninitialized float32 tensor on the CPU, for the output of a kernel."""
  return Tensor.empty(*shape, device="CPU")
