"""Run the kernels of a captured JIT step from machine code, without Python between the kernels.

The tasks of each kernel run on all cores. tinygrad itself runs a CPU kernel on one core.
"""

import functools
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, UOp

from tinyformer.kernels.c_kernel import buffer_of, define, read_source
from tinyformer.kernels.step_runner import (
  MAX_ARGS,
  Recording,
  Runtime,
  StepRunner,
  aligned_buffer,
)
from tinyformer.kernels.tinygrad_internals import (
  Buffer,
  CapturedJit,
  CPUProgram,
  Ops,
  TinyELF,
  get_call_arg_uops,
  num_cpu_threads,
  resolve_params,
)


@functools.cache
def load_program(name: str, code: bytes) -> CPUProgram:
  """Load machine code as an executable program."""
  device: Any = Device["CPU"]
  return CPUProgram(device, TinyELF(code, name, device.renderer.target, ()))


@functools.cache
def step_code(worker: bool) -> bytes:
  """Compile `run`, which runs a step, or `work`, which helps another thread with it."""
  defines = define(WORKER=1) if worker else define()
  source = defines + read_source("graph_runner.c")
  return Device["CPU"].renderer.compiler.compile_cached(source)


@functools.cache
def runtime() -> Runtime:
  """Return the compiled functions that run a step."""
  run = load_program("run", step_code(False))
  work = load_program("work", step_code(True))
  return Runtime(run.fxn, work.fxn, num_cpu_threads() - 1)


def record(
  captured: CapturedJit, inputs: list[UOp], captured_buffers: dict[str, Tensor]
) -> tuple[Recording, list[Buffer]]:
  """Return the recording of what a TinyJit captured, and the step's own buffers.

  Raises ValueError if anything but CPU kernels was captured, or if a kernel has too many arguments.
  """
  programs: dict[tuple[str, bytes], int] = {}
  names = {id(buffer_of(t)): name for name, t in captured_buffers.items()}
  workspace: dict[int, tuple[int, Buffer]] = {}

  def locate(buffer: Buffer) -> tuple[str, Any, int]:
    base = buffer.base
    if id(base) in names:
      return "captured", names[id(base)], buffer.offset
    index, _ = workspace.setdefault(id(base), (len(workspace), base))
    return "workspace", index, buffer.offset

  commands = []
  for call in captured.linear.src:
    program = call.src[0]
    if program.op is not Ops.PROGRAM or call.device != "CPU":
      raise ValueError(
        f"{program.op} on device {call.device} cannot be recorded: only CPU kernels can"
      )
    kernel = program.arg
    call_args = get_call_arg_uops(call)
    resolved = resolve_params(call, tuple(inputs))
    arguments: list[tuple[str, Any, int]] = []
    for slot in kernel.globals:
      param = next((u for u in call_args[slot].toposort() if u.op is Ops.PARAM), None)
      buffer = resolved[slot].buffer.ensure_allocated()
      if param is None:
        arguments.append(locate(buffer))
      else:
        arguments.append(("input", param.arg.slot, buffer.offset))
    for variable in kernel.vars:
      is_task = variable.expr == "core_id"
      arguments.append(("task", None, 0) if is_task else ("variable", variable.expr, 0))
    if len(arguments) >= MAX_ARGS:
      raise ValueError(
        f"{kernel.name} has {len(arguments)} arguments: at most {MAX_ARGS - 1} can be recorded"
      )
    key = (kernel.function_name, program.src[3].arg)
    index = programs.setdefault(key, len(programs))
    commands.append((index, int(kernel.global_size[0]), arguments))
  kind, which, offset = locate(captured.ret.uop.base.buffer.ensure_allocated())
  if kind != "workspace":
    raise ValueError(f"the result is the captured buffer {which!r}: return a new tensor instead")
  result = (which, offset, captured.ret.shape, captured.ret.dtype.fmt)
  buffers = [buffer for _, buffer in workspace.values()]
  return Recording(list(programs), commands, [b.nbytes for b in buffers], result), buffers


def address_of(buffer: np.ndarray | Buffer) -> int:
  """Return the address of an array's or buffer's first byte."""
  if isinstance(buffer, np.ndarray):
    return buffer.ctypes.data
  return buffer.get_buf("CPU").va_addr


class GraphRunner(StepRunner):
  """Runs a recording with tinygrad's buffers.

  captured_buffers: the tensors that the recording names.  workspace: the step's own buffers;
  if None, they are allocated.
  """

  def __init__(
    self,
    recording: Recording,
    inputs: list[np.ndarray],
    captured_buffers: dict[str, Tensor],
    workspace: list[Buffer] | None = None,
  ):
    blocks: list[Any] = workspace or [aligned_buffer(size) for size in recording.workspace]
    programs = [load_program(*p) for p in recording.programs]
    # The table contains their addresses, so they must stay alive.
    self.references = programs, blocks, captured_buffers
    addresses: dict[str, Any] = {
      "workspace": [address_of(b) for b in blocks],
      "captured": {name: address_of(buffer_of(t)) for name, t in captured_buffers.items()},
    }
    super().__init__(recording, inputs, [p.addr for p in programs], addresses, runtime())
    self.set_result([bytes_view(b) for b in blocks])


def bytes_view(buffer: np.ndarray | Buffer) -> np.ndarray:
  """Return the bytes of an array or a buffer."""
  if isinstance(buffer, np.ndarray):
    return buffer
  return np.frombuffer(buffer.as_memoryview(force_zero_copy=True), np.uint8)
