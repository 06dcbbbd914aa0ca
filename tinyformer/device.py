"""Select the device: one of tinygrad's, or NUMPY for minigrad. Find a clang for tinygrad.

tinygrad's CPU device compiles its kernels with clang on every machine.
"""

import atexit
import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from tinyformer import backend
from tinyformer.files import atomic_write

INSTALL_CLANG = {"darwin": "xcode-select --install", "win32": "winget install LLVM.LLVM"}.get(
  sys.platform, "sudo apt install clang (or your system's package)"
)
NO_CLANG = (
  ", and there is no clang to compile for the CPU.\n"
  f"Install one: {INSTALL_CLANG}, or pip install ziglang"
)


class NoDeviceError(RuntimeError):
  """No device can be used. The message has a line with the problem and a line with the remedy."""


def select_device(device: str | None = None) -> str:
  """Select and open a device, and return its name.

  device: NUMPY for minigrad, or a value of tinygrad's DEV. None uses the variables
    TINYFORMER_DEVICE and DEV, or the best device found. OpenCL on a CPU is used only on request.
  Call this function before tinygrad computes anything, preferably before importing tinygrad.
  If there is no clang, the clang of the package ziglang is used. Raises NoDeviceError, or
  BackendError if the other backend is already in use.
  """
  device = device or os.environ.get("TINYFORMER_DEVICE")
  if backend.is_numpy(device) or (device is None and backend.is_minigrad()):
    backend.use_minigrad()
    return "NUMPY"
  if device:
    backend.require_tinygrad(device)
    set_device(device)
  compile_in_this_process()
  if not can_cache_kernels():
    # tinygrad would raise an error for the first kernel.
    level = os.environ.setdefault("CACHELEVEL", "0")
    if "tinygrad" in sys.modules:  # it has read the variable already
      from tinygrad.helpers import CACHELEVEL

      CACHELEVEL.value = int(level)
  compiler = os.environ.get("CC") or shutil.which("clang") or zig_clang()
  if compiler:
    os.environ["CC"] = compiler
  marker = cpu_marker(compiler)
  requested = os.environ.get("DEV")
  cpu_is_best = (
    marker is not None
    and os.path.exists(marker)  # unlike Path.exists, false without permission
    and requested in (None, "", "CPU")
    and "tinygrad" not in sys.modules
  )
  if cpu_is_best:
    set_device("CPU")
  from tinygrad import Device

  selected_by_tinygrad = not requested and not cpu_is_best
  try:
    name = Device.DEFAULT
    if selected_by_tinygrad and is_opencl_on_cpu(name):
      # tinygrad tries OpenCL before the CPU, but the CPU's own kernels are many times faster.
      name = "CPU"
      set_device(name)
    renderer = type(Device[name].renderer).__name__
  except Exception as e:
    raise NoDeviceError(open_failure(e, device, requested, compiler)) from e
  cpu_with_clang = (name, renderer) == ("CPU", "ClangRenderer")
  if cpu_with_clang and not is_program(compiler):
    # The device opened with cached programs, but compiling the first new kernel would fail.
    raise NoDeviceError(f"tinygrad found no GPU{NO_CLANG}")
  if cpu_with_clang and marker and not requested:
    with contextlib.suppress(OSError):
      marker.parent.mkdir(parents=True, exist_ok=True)
      marker.touch()
  return name


def set_device(device: str) -> None:
  """Make a device tinygrad's default, in this process and in its children."""
  os.environ["DEV"] = device
  if "tinygrad" in sys.modules:
    # tinygrad reads DEV when it is imported.
    sys.modules["tinygrad"].helpers.DEV.value = device


def compile_in_this_process() -> None:
  """Keep tinygrad from starting processes that compile kernels, unless PARALLEL or BEAM is set.

  Such processes can outlive a killed command, and a command that ends can wait for them forever.
  On two cores they save no time.
  """
  if "PARALLEL" in os.environ or os.environ.get("BEAM", "0") != "0":
    return
  os.environ["PARALLEL"] = "0"
  if "tinygrad" in sys.modules:  # it has read the variable already
    sys.modules["tinygrad"].helpers.PARALLEL.value = 0


def is_opencl_on_cpu(device: str) -> bool:
  """Return whether a device is OpenCL, and computes on the CPU, as pocl does."""
  if device.split(":")[0] != "CL":
    return False
  from tinyformer.kernels.tinygrad_internals import opencl_is_on_cpu

  return opencl_is_on_cpu(device)


def open_devices(device: str, count: int) -> tuple[str, ...]:
  """Open the first `count` devices of a kind, and return their names. Raises NoDeviceError."""
  from tinygrad import Device

  names = tuple(f"{device}:{i}" for i in range(count))
  for name in names:
    try:
      Device[name]
    except Exception as e:
      raise NoDeviceError(
        f"tinygrad cannot open the device {name} ({first_line(e)}).\n"
        "Pass a smaller number of --devices."
      ) from e
  return names


def open_failure(
  e: Exception, device: str | None, requested: str | None, compiler: str | None
) -> str:
  """Return the message for an exception that opening a device raised: problem and remedy.

  device: the argument of select_device.  requested: the same, or the variable DEV.
  """
  if requested:
    problem = f"tinygrad cannot open the device {requested} ({first_line(e)})"
  else:
    problem = "tinygrad found no GPU"
  if requested and not requested.upper().startswith("CPU"):
    remedy = "Omit --device" if device else "Unset DEV"
    return f"{problem}.\n{remedy} to use the best device of this machine."
  if is_program(compiler):
    return (
      f"{problem}, and {compiler} did not compile for the CPU ({first_line(e)}).\n"
      "Set CC to a clang, or unset CC; --device selects another device."
    )
  return f"{problem}{NO_CLANG}"


def first_line(e: Exception) -> str:
  """Return the first line of an exception's message, or its type if the message is empty."""
  return str(e).split("\n")[0][:200] or type(e).__name__


def is_program(compiler: str | None) -> bool:
  return bool(compiler and shutil.which(compiler))


def cache_folder() -> Path:
  """Return the folder for results that later runs reuse. Raises OSError if the user has no home."""
  try:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyformer"
  except RuntimeError as e:
    raise FileNotFoundError("there is no home directory: set HOME or XDG_CACHE_HOME") from e


def tinygrad_cache_folder() -> Path:
  """Return the folder of tinygrad's cache. Raises RuntimeError if the user has no home."""
  if folder := os.environ.get("XDG_CACHE_HOME"):
    return Path(folder) / "tinygrad"
  return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "tinygrad"


def can_cache_kernels() -> bool:
  """Return whether tinygrad can write its cache, of which a user without a home has none."""
  if "CACHEDB" in os.environ:
    return True  # the user has chosen another file
  try:
    folder = tinygrad_cache_folder()
  except RuntimeError:
    return False
  database = folder / "cache.db"
  return can_write(folder) and (not database.exists() or os.access(database, os.W_OK))


def can_write(folder: Path) -> bool:
  """Return whether a megabyte fits into a folder, which is made if it does not exist."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as f:
      f.write(bytes(1 << 20))
  except OSError:
    return False
  return True


def cpu_marker(compiler: str | None) -> Path | None:
  """Return the file that exists if an earlier run found no device better than the CPU.

  The search for GPUs takes half a second of each start. The file's name depends on the machine's
  devices, libraries, tinygrad and compiler; None means that these cannot be determined.
  """
  import importlib.metadata  # it takes longer to import than the rest of this file

  try:
    folder = cache_folder()
    state = (
      sorted(os.listdir("/dev")),
      os.stat("/etc/ld.so.cache").st_mtime,
      importlib.metadata.version("tinygrad"),
      compiler,
      os.stat(shutil.which(compiler or "") or "").st_mtime,
    )
  except (OSError, importlib.metadata.PackageNotFoundError):
    return None
  return folder / f"cpu-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"


def zig_clang() -> str | None:
  """Return a script that runs the clang of the package ziglang, or None without the package.

  tinygrad's CC must be a single word, but the command `zig clang` has two.
  """
  spec = importlib.util.find_spec("ziglang")
  if not spec or not spec.origin:
    return None
  if sys.platform == "win32":
    zig = Path(spec.origin).with_name("zig.exe")
    script = f'@"{zig}" clang %*\r\n'
    suffix = ".bat"
  else:
    zig = Path(spec.origin).with_name("zig")
    script = f'#!/bin/sh\nexec {shlex.quote(str(zig))} clang "$@"\n'
    suffix = ""
  # Each virtual environment has its own script, because another environment may be deleted.
  digest = hashlib.sha256(script.encode()).hexdigest()[:8]
  name = f"zig-clang-{digest}{suffix}"
  try:
    return write_launcher(cache_folder() / name, script)
  except OSError:
    # Others may write to the folder of temporary files, but not to a new folder in it.
    folder = Path(tempfile.mkdtemp(prefix="tinyformer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_launcher(folder / name, script)


def write_launcher(path: Path, script: str) -> str:
  """Write an executable script, unless it exists, and return its path.

  Raises OSError if its folder cannot be written, for example because the disk is full.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists() or path.read_text() != script:
    with atomic_write(path) as part:
      part.write_text(script)
      part.chmod(0o755)
  return str(path)
