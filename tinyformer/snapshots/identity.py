"""What a snapshot depends on: the model's files, our sources, tinygrad, the CPU and settings."""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
# Variables that determine the device, the compiler or what the compiler produces.
VARIABLES = ("DEV", "TINYFORMER_DEVICE", "CC", "NOOPT", "BEAM", "NUM_CPU_THREADS")


class Request(NamedTuple):
  """What a process wants to run. The candidates are SamplingConfig.num_candidates."""

  folder: Path
  dtype: str
  device: str | None
  batch: int
  candidates: int

  @property
  def weights_name(self) -> str:
    """Return the file name of the weights, which all sizes of batches share."""
    return f"{digest([str(self.folder), self.dtype])}.weights"

  @property
  def name(self) -> str:
    """Return the file name of the snapshot's description and machine code."""
    key = [str(self.folder), self.dtype, self.device, self.batch, self.head_count]
    return f"{digest(key)}.steps"

  @property
  def head_count(self) -> int:
    """Return the candidates rounded up to a power of two, as ExactTopKHead does."""
    return 1 << (self.candidates - 1).bit_length() if self.candidates else 0

  def identity(self) -> list[Any]:
    """Return everything that a snapshot depends on, as JSON values.

    A file is identified by its size, its time of modification and its inode. Raises OSError or
    ImportError if something is missing.
    """
    spec = importlib.util.find_spec("tinygrad")
    if spec is None or spec.origin is None:
      raise ImportError("tinygrad is not installed")
    tinygrad = Path(spec.origin)
    return [
      [[p.name, *file_state(p)] for p in sorted(self.folder.iterdir()) if p.is_file()],
      [[str(path.relative_to(ROOT)), *file_state(path)] for path in sources()],
      [str(tinygrad), *file_state(tinygrad)],
      [os.environ.get(name) for name in VARIABLES],
      [shutil.which("clang"), sorted(os.listdir("/dev")), os.stat("/etc/ld.so.cache").st_mtime_ns],
      [platform.release(), cpu_flags(), len(os.sched_getaffinity(0)), cpu_quota()],
    ]


def local_folder(name: str) -> Path | None:
  """Return the folder of a model that is on disk: a path, or the name of a folder in weights/."""
  for folder in (Path(name), ROOT / "weights" / name.replace("/", "--")):
    if (folder / "config.json").is_file():
      return folder.resolve()
  return None


def digest(value: Any) -> str:
  """Return a hexadecimal digest of JSON values."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def is_supported() -> bool:
  """Return whether snapshots can be used: on Linux, on a CPU whose code has relative addresses."""
  return sys.platform == "linux" and platform.machine() == "x86_64"


def file_state(path: Path) -> list[int]:
  """Return what changes if a file is replaced or written to."""
  status = path.stat()
  return [status.st_size, status.st_mtime_ns, status.st_ino]


def sources() -> list[Path]:
  """Return every source file that can change what an engine computes."""
  folders = [ROOT / name for name in ("layers", "models", "tinyformer")]
  found = [p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".c", ".h")]
  return [ROOT / "transformer.py", *sorted(found)]


def cpu_flags() -> str:
  """Return the instruction sets of the CPU."""
  with open("/proc/cpuinfo") as f:
    return next((line for line in f if line.startswith("flags")), "")


def cpu_quota() -> str:
  """Return the limit on CPU time of this process's container, which sets the number of threads."""
  try:
    return Path("/sys/fs/cgroup/cpu.max").read_text()
  except OSError:
    return ""
