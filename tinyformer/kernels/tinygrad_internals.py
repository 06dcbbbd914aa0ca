"""Every import of a tinygrad internal. They may change with each release of tinygrad.

The package's other modules import tinygrad's public API, and the names below from here.
"""

import contextlib
import os

import tinygrad.helpers
from tinygrad.device import Buffer
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo

# Only the graph runner needs these. Without them it cannot be imported, and CompiledStep uses
# tinygrad's TinyJit instead.
with contextlib.suppress(ImportError):
  from tinygrad.device import TinyELF
  from tinygrad.engine.jit import CapturedJit
  from tinygrad.engine.realize import get_call_arg_uops, resolve_params
  from tinygrad.runtime.ops_cpu import CPUProgram

__all__ = [
  "Buffer",
  "CPUProgram",
  "CapturedJit",
  "KernelInfo",
  "Ops",
  "ProgramInfo",
  "TinyELF",
  "get_call_arg_uops",
  "num_cpu_threads",
  "resolve_params",
]


def num_cpu_threads() -> int:
  """Return tinygrad's number of CPU threads, or the number of cores if tinygrad has no such number.

  tinygrad reads it from the environment variable NUM_CPU_THREADS.
  """
  setting = getattr(tinygrad.helpers, "NUM_CPU_THREADS", None)
  return setting.value if setting else os.cpu_count() or 1
