"""Run a recorded step: machine code and the addresses of its buffers. This file needs no tinygrad.

The tasks of each kernel run on all cores, without Python between the kernels.
"""

import ctypes
import functools
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Layout of a step in 64-bit words, as in c/graph_runner.c: a header, then the commands.
HEADER_WORDS = 32
COMMAND_WORDS = 64
# The words of a command before its arguments: kernel, num_tasks, task_arg, num_args.
COMMAND_FIELDS = 4
# Arguments of a kernel, including the task: COMMAND_WORDS - COMMAND_FIELDS + 1.
MAX_ARGS = 61


@functools.cache
def yield_address() -> ctypes.c_uint64:
  """Return the address of the system function that yields the core to another thread."""
  if sys.platform == "win32":
    function = ctypes.WinDLL("kernel32").SwitchToThread
  else:
    function = ctypes.CDLL(None).sched_yield
  return ctypes.c_uint64(ctypes.cast(function, ctypes.c_void_p).value or 0)


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


def aligned_buffer(size: int) -> np.ndarray:
  """Return max(1, size) uninitialized bytes that begin at a cache line, a multiple of 64 bytes."""
  block = np.empty(max(1, size) + 63, np.uint8)
  begin = -block.ctypes.data % 64
  return block[begin : begin + max(1, size)]


class Runtime:
  """The functions `run` and `work` of c/graph_runner.c, and the threads that call `work`.

  num_workers: the number of threads: one for each core except the caller's.
  """

  def __init__(self, run: Callable, work: Callable, num_workers: int):
    self.run = run
    self.work = work
    self.num_workers = num_workers

  @functools.cached_property
  def steps(self) -> queue.SimpleQueue:
    """The worker threads' queue of steps: (table, number of commands). They start on first use."""
    steps: queue.SimpleQueue = queue.SimpleQueue()

    def serve() -> None:
      while True:
        # The reference keeps the table alive as long as `work` reads it.
        table, num_commands = steps.get()
        address = ctypes.c_uint64(table.ctypes.data)
        self.work(address, ctypes.c_uint64(num_commands), yield_address())

    for _ in range(self.num_workers):
      threading.Thread(target=serve, daemon=True).start()
    return steps

  def __call__(self, table: np.ndarray, num_commands: int) -> None:
    """Run the commands in a table on all cores."""
    # The ticket of a step that has begun but has no task to take yet.
    table[0] = 0xFFFFFFFF
    for _ in range(self.num_workers):
      self.steps.put((table, num_commands))
    address = ctypes.c_uint64(table.ctypes.data)
    self.run(address, ctypes.c_uint64(num_commands), yield_address())


class StepRunner:
  """Runs a recording, with copies of its inputs.

  programs: the address of each program's machine code.
  addresses: of the buffers by kind: a list for "workspace", a dict for "captured".
  runtime: the functions that run the table.
  Call set_result before the first run.
  """

  def __init__(
    self,
    recording: Recording,
    inputs: list[np.ndarray],
    programs: Sequence[int],
    addresses: dict[str, Any],
    runtime: Runtime,
  ):
    self.recording = recording
    self.runtime = runtime
    self.inputs = [np.empty_like(a) for a in inputs]
    self.variables: dict[str, list[int]] = {}
    self.num_commands = len(recording.commands)
    self.table = np.zeros(HEADER_WORDS + COMMAND_WORDS * self.num_commands, np.uint64)
    self.fill_table(programs, addresses | {"input": [a.ctypes.data for a in self.inputs]})

  def fill_table(self, programs: Sequence[int], addresses: dict[str, Any]) -> None:
    """Write the commands to the table, and note which words hold the variables."""
    for n, (program, tasks, arguments) in enumerate(self.recording.commands):
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
      self.table[begin:first_arg] = programs[program], tasks, task_arg, len(arguments)

  def set_result(self, blocks: Sequence[np.ndarray]) -> None:
    """Find the result in the memory of the step's own buffers."""
    which, offset, shape, dtype = self.recording.result
    nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
    self.result = blocks[which][offset : offset + nbytes].view(dtype).reshape(shape)

  def __call__(self, inputs: list[np.ndarray], variables: dict[str, int]) -> np.ndarray:
    """Run the step and return a view of its result, which the next run overwrites."""
    for buffer, array in zip(self.inputs, inputs, strict=True):
      buffer[...] = array
    for name, words in self.variables.items():
      self.table[words] = variables[name]
    self.runtime(self.table, self.num_commands)
    return self.result
