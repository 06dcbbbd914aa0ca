"""What bench.py reads from the machine: its limits, the memory of processes, installed sizes."""

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CORES = os.cpu_count() or 1
IMPORT_TIME = time.perf_counter()


def machine_limits() -> dict[str, float]:
  """Measure numpy's rates of memory reads (one core, all cores) and of a matrix product.

  Each rate is the best of three runs, in GB/s or GFLOP/s.
  """
  # Random values, because a hypervisor may store identical pages only once.
  rows = np.random.default_rng(0).random((CORES, 2**26), np.float32)
  matrix = np.ones((2048, 2048), np.float32)

  def shortest(function: Callable) -> float:
    seconds = []
    for _ in range(3):
      start = time.perf_counter()
      function()
      seconds.append(time.perf_counter() - start)
    return min(seconds)

  with ThreadPoolExecutor(CORES) as pool:
    all_cores_rate = rows.nbytes / shortest(lambda: list(pool.map(np.max, rows)))
  return {
    "one core reads, GB/s": rows[0].nbytes / shortest(rows[0].max) / 1e9,
    "all cores read, GB/s": all_cores_rate / 1e9,
    "matrix product, GFLOP/s": 2 * 2048**3 / shortest(lambda: matrix @ matrix) / 1e9,
  }


def process_age() -> float:
  """Return the seconds since this process started, or since it imported this file if not on Linux.

  On Linux, the start is known to a hundredth of a second.
  """
  try:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
  except OSError:
    return time.perf_counter() - IMPORT_TIME
  return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> float:
  """Return the peak memory of this process in MB."""
  try:
    status = Path("/proc/self/status").read_text()
  except OSError:
    import resource

    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
  # On Linux, getrusage would include the peak of the parent process.
  match = re.search(r"VmHWM:\s*(\d+) kB", status)
  if match is None:
    raise RuntimeError("/proc/self/status has no line VmHWM, so peak memory is unknown")
  return megabytes(int(match[1]))


def megabytes(max_rss: int) -> float:
  """Return getrusage's ru_maxrss in MB. Its unit is a byte on macOS and 1,024 bytes elsewhere.

  The unit kB of Linux's /proc is 1,024 bytes too.
  """
  return max_rss * (1 if sys.platform == "darwin" else 1024) / 1e6


def installed_size(packages: list[str]) -> float:
  """Return the size on disk of packages and all their dependencies, in MB."""
  packages = list(packages)
  sizes: dict[str, int] = {}
  while packages:
    requirement = re.match(r"[\w.-]+", packages.pop())
    name = requirement[0].lower().replace("_", "-")  # type: ignore[index]
    try:
      distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      continue
    if name in sizes:
      continue
    files = [Path(str(file.locate())) for file in distribution.files or []]
    sizes[name] = sum(file.stat().st_size for file in files if file.exists())
    packages = packages + [r for r in distribution.requires or [] if "extra ==" not in r]
  return sum(sizes.values()) / 1e6


def processor() -> str:
  """Return the processor's name, or its architecture if the system does not report a name."""
  with contextlib.suppress(OSError):
    if match := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
      return match[1]
  return platform.processor() or platform.machine()


def last_line(errors: str) -> str:
  """Return the last line of a process's error output."""
  return errors.strip().rpartition("\n")[2] or "the process ended without an error message"
