"""Run the kernels of a captured JIT step from machine code, without Python between the kernels.

The tasks of each kernel run on all cores. tinygrad itself runs a CPU kernel on one core.
"""

import ctypes
import functools
import queue
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Device, Tensor, UOp

from tinyformer.kernels.c_kernel import buffer_of, define, read_source
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

# Layout of a step in 64-bit words, as in c/graph_runner.c: a header, then the commands.
HEADER_WORDS = 32
COMMAND_WORDS = 64
# The words of a command before its arguments: kernel, num_tasks, task_arg, num_args.
COMMAND_FIELDS = 4
# Arguments of a kernel, including the task: COMMAND_WORDS - COMMAND_FIELDS + 1.
MAX_ARGS = 61


@functools.cache
def load_program(name: str, code: bytes) -> CPUProgram:
  """Load machine code as an executable program."""
  device: Any = Device["CPU"]
  return CPUProgram(device, TinyELF(code, name, device.renderer.target, ()))


@functools.cache
def step_program(worker: bool) -> CPUProgram:
  """Compile `run`, which runs a step, or `work`, which helps another thread with it."""
  defines = define(WORKER=1) if worker else define()
  source = defines + read_source("graph_runner.c")
  code = Device["CPU"].renderer.compiler.compile_cached(source)
  return load_program("work" if worker else "run", code)


def num_workers() -> int:
  """Return the number of worker threads: one for each core except the caller's."""
  return num_cpu_threads() - 1


@functools.cache
def yield_address() -> ctypes.c_uint64:
  """Return the address of the system function that yields the core to another thread."""
  if sys.platform == "win32":
    function = ctypes.WinDLL("kernel32").SwitchToThread
  else:
    function = ctypes.CDLL(None).sched_yield
  return ctypes.c_uint64(ctypes.cast(function, ctypes.c_void_p).value or 0)


@functools.cache
def worker_queue() -> queue.SimpleQueue:
  """Start the worker threads and return their queue of steps: (table, number of commands)."""
  steps: queue.SimpleQueue = queue.SimpleQueue()
  work = step_program(True).fxn

  def serve() -> None:
    while True:
      # The reference keeps the table alive as long as `work` reads it.
      table, num_commands = steps.get()
      address = ctypes.c_uint64(table.ctypes.data)
      work(address, ctypes.c_uint64(num_commands), yield_address())

  for _ in range(num_workers()):
    threading.Thread(target=serve, daemon=True).start()
  return steps


class Recording(NamedTuple):
  """A captured step without its buffers, so that a later process can run it.

  programs: (name, machine code) of each kernel.
  commands: (index of the program, number of tasks, arguments). An argument is (kind, which, offset
  in bytes). kind is "captured" with the name of a captured buffer, "workspace" or "input" with an
  index, "variable" with a name, or "task".
  workspace: the sizes of the step's own buffers in bytes.
  result: the index of the result's buffer in `workspace`, the offset in bytes, shape and dtype.
  """

  programs: list[tuple[str, bytes]]
  commands: list[tuple[int, int, list[tuple[str, Any, int]]]]
  workspace: list[int]
  result: tuple[int, int, tuple[int, ...], str]

  def self_contained(self) -> bool:
    """Return whether each workspace buffer is written before it is read.

    If so, the initial contents of the workspace do not matter.
    """
    written: set[tuple] = set()
    for _, _, (out, *inputs) in self.commands:
      if any(arg[0] == "workspace" and arg not in written for arg in inputs):
        return False
      written.add(out)
    return True


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


def aligned_buffer(size: int) -> np.ndarray:
  """Return max(1, size) uninitialized bytes that begin at a cache line, a multiple of 64 bytes."""
  block = np.empty(max(1, size) + 63, np.uint8)
  begin = -block.ctypes.data % 64
  return block[begin : begin + max(1, size)]


def address_of(buffer: np.ndarray | Buffer) -> int:
  """Return the address of an array's or buffer's first byte."""
  if isinstance(buffer, np.ndarray):
    return buffer.ctypes.data
  return buffer.get_buf("CPU").va_addr


class GraphRunner:
  """Runs a recording, with buffers for its inputs, workspace and result.

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
    self.inputs = [np.empty_like(a) for a in inputs]
    blocks: list[Any] = workspace or [aligned_buffer(size) for size in recording.workspace]
    programs = [load_program(*p) for p in recording.programs]
    # The table contains their addresses, so they must stay alive.
    self.references = programs, blocks, captured_buffers
    self.variables: dict[str, list[int]] = {}
    self.num_commands = len(recording.commands)
    self.table = np.zeros(HEADER_WORDS + COMMAND_WORDS * self.num_commands, np.uint64)
    addresses: dict[str, Any] = {
      "input": [address_of(a) for a in self.inputs],
      "workspace": [address_of(b) for b in blocks],
      "captured": {name: address_of(buffer_of(t)) for name, t in captured_buffers.items()},
    }
    self.fill_table(recording, programs, addresses)
    which, offset, shape, dtype = recording.result
    if workspace is None:
      memory = blocks[which]
    else:
      memory = np.frombuffer(workspace[which].as_memoryview(force_zero_copy=True), np.uint8)
    nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
    self.result = memory[offset : offset + nbytes].view(dtype).reshape(shape)

  def fill_table(
    self, recording: Recording, programs: list[CPUProgram], addresses: dict[str, Any]
  ) -> None:
    """Write the commands to the table, and note which words hold the variables."""
    for n, (program, tasks, arguments) in enumerate(recording.commands):
      begin = HEADER_WORDS + COMMAND_WORDS * n
      first_arg = begin + COMMAND_FIELDS
      task_arg = MAX_ARGS
      for i, (kind, which, offset) in enumerate(arguments):
        if kind == "task":
          task_arg = i
        elif kind == "variable":
          self.variables.setdefault(which, []).append(first_arg + i)
        else:
          self.table[first_arg + i] = addresses[kind][which] + offset
      self.table[begin:first_arg] = programs[program].addr, tasks, task_arg, len(arguments)

  def __call__(self, inputs: list[np.ndarray], variables: dict[str, int]) -> np.ndarray:
    """Run the step and return a view of its result, which the next run overwrites."""
    for buffer, array in zip(self.inputs, inputs, strict=True):
      buffer[...] = array
    for name, words in self.variables.items():
      self.table[words] = variables[name]
    # The ticket of a step that has begun but has no task to take yet.
    self.table[0] = 0xFFFFFFFF
    for _ in range(num_workers()):
      worker_queue().put((self.table, self.num_commands))
    address = ctypes.c_uint64(self.table.ctypes.data)
    step_program(False).fxn(address, ctypes.c_uint64(self.num_commands), yield_address())
    return self.result
