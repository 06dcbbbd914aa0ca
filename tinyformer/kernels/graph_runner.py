"""A traced step on the CPU as a list of kernels that is run from machine code: no Python between them, and the parts of each on all cores."""

import ctypes
import functools
import queue
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Device, Tensor, UOp
from tinygrad.device import Buffer, TinyELF
from tinygrad.engine.jit import CapturedJit
from tinygrad.engine.realize import get_call_arg_uops, resolve_params
from tinygrad.helpers import NUM_CPU_THREADS
from tinygrad.runtime.ops_cpu import CPUProgram
from tinygrad.uop.ops import Ops

from tinyformer.kernels.c_kernel import ABI, buffer_of

HEAD, WORDS, ARGUMENTS = 32, 64, 61  # 64-bit words before the commands, and in each
# A step is a list of commands. A kernel of several parts is done by whoever has a core free: `ticket` says which command is on and which of its
# parts is the next, and taking one is a compare-and-swap, so that a helper that comes late, or never, costs nothing but its help.
SOURCE = r"""
typedef unsigned long long word;
typedef struct { word kernel, parts, core, count, a[ARGUMENTS - 1]; } command;
typedef int ABI yield(void);
typedef struct { volatile word ticket, gap[15], done, rest[15]; command commands[]; } step;
static inline __attribute__((always_inline)) void perform(command *c, word part) {
  word a[ARGUMENTS];
  for (word i = 0; i < c->count; i++) a[i] = i == c->core ? part : c->a[i];
  if (c->count <= 12) ((void ABI (*)(FEW_TYPES))c->kernel)(FEW);
  else ((void ABI (*)(ALL_TYPES))c->kernel)(ALL);
}
static inline __attribute__((always_inline)) void rest(word waited, yield *leave) {   // for long: others may have the core, perhaps the one that is waited for
  if (waited >= 256) { leave(); return; }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}
static inline __attribute__((always_inline)) int take(step *s, word ticket) {   // one more part of the command that is on, if any is left
  command *c = s->commands + (ticket >> 32);
  if ((ticket & 0xffffffff) >= c->parts || !__atomic_compare_exchange_n(&s->ticket, &ticket, ticket + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return 0;
  perform(c, ticket & 0xffffffff);
  __atomic_fetch_add(&s->done, 1, __ATOMIC_RELEASE);
  return 1;
}
#ifdef HELP
ABI void help(step *s, word over, yield *leave) {
  for (word idle = 0; idle < 1 << 22; idle++) {   // about a second: then the core is left to others until the next step
    word ticket = __atomic_load_n(&s->ticket, __ATOMIC_ACQUIRE);
    if (ticket >> 32 == over) return;
    if (take(s, ticket)) idle = 0; else rest(idle, leave);
  }
}
#else
ABI void run(step *s, word over, yield *leave) {
  for (word i = 0; i < over; i++) {
    command *c = s->commands + i;
    if (c->parts == 1) { perform(c, 0); continue; }
    __atomic_store_n(&s->done, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&s->ticket, i << 32, __ATOMIC_RELEASE);
    for (word t; (t = __atomic_load_n(&s->ticket, __ATOMIC_ACQUIRE)), (t & 0xffffffff) < c->parts;) take(s, t);
    for (word waited = 0; __atomic_load_n(&s->done, __ATOMIC_ACQUIRE) < c->parts; waited++) rest(waited, leave);
  }
  __atomic_store_n(&s->ticket, over << 32, __ATOMIC_RELEASE);
}
#endif
"""


@functools.cache
def load(name: str, code: bytes) -> CPUProgram:
  device: Any = Device["CPU"]
  return CPUProgram(device, TinyELF(code, name, device.renderer.target, ()))


@functools.cache
def runner(helper: bool) -> CPUProgram:
  few, every = ([f"a[{i}]" for i in range(n)] for n in (12, ARGUMENTS))
  words = dict(
    ABI=ABI,
    ARGUMENTS=ARGUMENTS,
    FEW=", ".join(few),
    ALL=", ".join(every),
    FEW_TYPES=", ".join("word" for _ in few),
    ALL_TYPES=", ".join("word" for _ in every),
  )
  source = (
    "".join(f"#define {key} {value}\n" for key, value in words.items())
    + "#define HELP\n" * helper
    + SOURCE
  )
  return load("help" if helper else "run", Device["CPU"].renderer.compiler.compile_cached(source))


def threads() -> int:
  """How many cores there are to help with a step."""
  return NUM_CPU_THREADS.value - 1


@functools.cache
def leave() -> ctypes.c_uint64:
  """The address of the system's function that lets other threads have the core."""
  if sys.platform == "win32":
    function = ctypes.WinDLL("kernel32").SwitchToThread
  else:
    function = ctypes.CDLL(None).sched_yield
  return ctypes.c_uint64(ctypes.cast(function, ctypes.c_void_p).value or 0)


@functools.cache
def helpers() -> queue.SimpleQueue:
  """Where a step calls the threads that help with it, one for each further core."""
  calls: queue.SimpleQueue = queue.SimpleQueue()
  help = runner(True).fxn

  def serve() -> None:
    while True:
      table, over = calls.get()  # the table stays alive as long as it is looked at
      help(ctypes.c_uint64(table.ctypes.data), ctypes.c_uint64(over), leave())

  for _ in range(threads()):
    threading.Thread(target=serve, daemon=True).start()
  return calls


class Recording(NamedTuple):
  """A step without its memory: what a later process can run again.

  commands: (index of the program, number of parts, arguments). An argument is (kind, which, offset in bytes): "known", a name; "own", an index;
  "input", its place among the inputs; "variable", a name; or "core", the part.  own: sizes in bytes.
  result: the result's index among `own`, its offset, shape and dtype.
  """

  programs: list[tuple[str, bytes]]
  commands: list[tuple[int, int, list[tuple[str, Any, int]]]]
  own: list[int]
  result: tuple[int, int, tuple[int, ...], str]

  def self_contained(self) -> bool:
    """Whether the step reads nothing of its own before it has written it, so that its memory may begin as anything."""
    written: set[tuple] = set()
    for _, _, (out, *others) in self.commands:
      if any(a[0] == "own" and a not in written for a in others):
        return False
      written.add(out)
    return True


def record(
  captured: CapturedJit, inputs: list[UOp], captured_buffers: dict[str, Tensor]
) -> tuple[Recording, list[Buffer]]:
  """What a TinyJit captured, and the memory that is its own. Raises ValueError if that is more than kernels on the CPU."""
  programs: dict[tuple[str, bytes], int] = {}
  names = {id(buffer_of(t)): name for name, t in captured_buffers.items()}
  own: dict[int, tuple[int, Buffer]] = {}

  def place(b: Buffer) -> tuple[str, Any, int]:
    base = b.base
    if id(base) in names:
      return "known", names[id(base)], b.offset
    return "own", own.setdefault(id(base), (len(own), base))[0], b.offset

  commands = []
  for call in captured.linear.src:
    if call.src[0].op is not Ops.PROGRAM or call.device != "CPU":
      raise ValueError(f"{call.src[0].op} on {call.device} is no kernel on the CPU")
    kernel, given, real, arguments = (
      call.src[0].arg,
      get_call_arg_uops(call),
      resolve_params(call, tuple(inputs)),
      [],
    )
    for slot in kernel.globals:
      param = next((u for u in given[slot].toposort() if u.op is Ops.PARAM), None)
      buffer = real[slot].buffer.ensure_allocated()
      arguments.append(
        ("input", param.arg.slot, buffer.offset) if param is not None else place(buffer)
      )
    arguments += [
      ("core", None, 0) if v.expr == "core_id" else ("variable", v.expr, 0) for v in kernel.vars
    ]
    if len(arguments) >= ARGUMENTS:
      raise ValueError(f"{kernel.name} takes {len(arguments)} arguments")
    commands.append(
      (
        programs.setdefault((kernel.function_name, call.src[0].src[3].arg), len(programs)),
        int(kernel.global_size[0]),
        arguments,
      )
    )
  kind, which, offset = place(captured.ret.uop.base.buffer.ensure_allocated())
  if kind != "own":
    raise ValueError("the result is no new tensor")
  return Recording(
    list(programs),
    commands,
    [b.nbytes for _, b in own.values()],
    (which, offset, captured.ret.shape, captured.ret.dtype.fmt),
  ), [b for _, b in own.values()]


def room(size: int) -> np.ndarray:
  """Memory for so many bytes, and at least one, that begins where a line of 64 does."""
  block = np.empty(max(1, size) + 63, np.uint8)
  begin = -block.ctypes.data % 64
  return block[begin : begin + max(1, size)]


class GraphRunner:
  """A recording with memory to run in. known: the tensors that it names.  own: its own memory; without it, it gets some."""

  def __init__(
    self,
    recording: Recording,
    inputs: list[np.ndarray],
    captured_buffers: dict[str, Tensor],
    own: list[Buffer] | None = None,
  ):
    self.inputs = [np.empty_like(a) for a in inputs]
    blocks: list[Any] = own or [room(size) for size in recording.own]

    def address(x) -> int:
      return x.ctypes.data if isinstance(x, np.ndarray) else x.get_buf("CPU").va_addr

    named = {name: address(buffer_of(t)) for name, t in captured_buffers.items()}
    begins = {
      "input": [address(a) for a in self.inputs],
      "own": [address(b) for b in blocks],
      "known": named,
    }
    programs = [load(*p) for p in recording.programs]
    self.kept = programs, blocks, captured_buffers  # their addresses stand in the table
    self.variables: dict[str, list[int]] = {}
    self.over = len(recording.commands)
    self.table = np.zeros(HEAD + WORDS * self.over, np.uint64)
    for n, (program, parts, arguments) in enumerate(recording.commands):
      at, core = HEAD + WORDS * n, ARGUMENTS
      for i, (kind, which, offset) in enumerate(arguments):
        if kind == "core":
          core = i
        elif kind == "variable":
          self.variables.setdefault(which, []).append(at + 4 + i)
        else:
          self.table[at + 4 + i] = begins[kind][which] + offset  # type: ignore[index]
      self.table[at : at + 4] = programs[program].addr, parts, core, len(arguments)
    which, offset, shape, dtype = recording.result
    memory = (
      blocks[which]
      if own is None
      else np.frombuffer(own[which].as_memoryview(force_zero_copy=True), np.uint8)
    )
    self.result = (
      memory[offset : offset + np.dtype(dtype).itemsize * int(np.prod(shape))]
      .view(dtype)
      .reshape(shape)
    )

  def __call__(self, inputs: list[np.ndarray], variables: dict[str, int]) -> np.ndarray:
    """Runs the step -> a view of its result, which the next run writes over."""
    for mine, given in zip(self.inputs, inputs):
      mine[...] = given
    for name, words in self.variables.items():
      self.table[words] = variables[name]
    self.table[0] = 0xFFFFFFFF  # begun, with no part to take yet
    for _ in range(threads()):
      helpers().put((self.table, self.over))
    runner(False).fxn(ctypes.c_uint64(self.table.ctypes.data), ctypes.c_uint64(self.over), leave())
    return self.result
