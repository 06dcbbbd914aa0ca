"""Which device computes, and where its C compiler comes from: tinygrad's CPU device needs a clang on every machine."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

CURE = {"darwin": "xcode-select --install", "win32": "winget install LLVM.LLVM"}.get(
  sys.platform, "sudo apt install clang (or your system's package of it)"
)


class NoDevice(RuntimeError):
  """Nothing can compute here. The message has a line for the trouble and a line for the cure."""


def select_device(device: str | None = None) -> str:
  """Chooses tinygrad's device and opens it; call this before tinygrad computes anything, at best before it is imported. `device` is tinygrad's DEV, None whatever it finds.

  Where there is no clang, ziglang's takes its place if that package is installed. Returns the device's name, raises NoDevice.
  """
  if device:
    os.environ["DEV"] = device
    if "tinygrad" in sys.modules:
      sys.modules["tinygrad"].helpers.DEV.value = device  # which has read DEV already
  compiler = os.environ.get("CC") or shutil.which("clang") or zig_clang()
  if compiler:
    os.environ["CC"] = compiler
  mark, asked = sign(compiler), os.environ.get("DEV")
  found = (
    mark is not None
    and mark.exists()
    and asked in (None, "", "CPU")
    and "tinygrad" not in sys.modules
  )
  if found:
    os.environ["DEV"] = "CPU"
  from tinygrad import Device

  try:
    with without_queue() if found else contextlib.nullcontext():
      name, renderer = Device.DEFAULT, type(Device[Device.DEFAULT].renderer).__name__
    if name != "CPU" or renderer != "ClangRenderer" or (compiler and shutil.which(compiler)):
      if (
        mark and not asked and (name, renderer) == ("CPU", "ClangRenderer")
      ):  # tinygrad's own choice
        with contextlib.suppress(OSError):
          mark.parent.mkdir(parents=True, exist_ok=True)
          mark.touch()
      return name
    trouble = "tinygrad found no GPU"  # the CPU's own kernels came from its cache, the first new one would fail
  except Exception as e:
    trouble = (
      f"tinygrad cannot open the device {device or os.environ['DEV']} ({why(e)})"
      if os.environ.get("DEV")
      else "tinygrad found no GPU"
    )
    if device and not device.upper().startswith("CPU"):
      raise NoDevice(f"{trouble}.\nLeave --device out to take what there is.") from e
    if compiler and shutil.which(compiler):
      raise NoDevice(
        f"{trouble}, and {compiler} did not compile for the CPU ({why(e)}).\n"
        "Is it a clang? Otherwise unset CC; --device names another device."
      ) from e
  raise NoDevice(
    f"{trouble}, and there is no clang to compile for the CPU.\nInstall one: {CURE}, or pip install ziglang"
  )


def cache() -> Path:
  """The folder for what a later run need not do again."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyformer"


def sign(compiler: str | None) -> Path | None:
  """A file that is there if an earlier run found the CPU and nothing better, on this machine as it is now: its devices, libraries, tinygrad and compiler.

  tinygrad looks for every kind of GPU at each start, which takes half a second.
  """
  try:
    state = (
      sorted(os.listdir("/dev")),
      os.stat("/etc/ld.so.cache").st_mtime,
      importlib.metadata.version("tinygrad"),
      compiler,
      os.stat(shutil.which(compiler or "") or "").st_mtime,
    )
  except (OSError, importlib.metadata.PackageNotFoundError):
    return None
  return cache() / f"cpu-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def without_queue() -> Iterator[None]:
  """tinygrad's CPU device makes four programs when it opens, for a queue that runs only with HCQ2 set. Leaving them out saves another half a second."""
  from tinygrad.device import TinyELF
  from tinygrad.helpers import Target
  from tinygrad.runtime import ops_cpu

  nothing = SimpleNamespace(to_elf=lambda: TinyELF(b"\0", "nothing", Target(), ()))
  with (
    contextlib.nullcontext()
    if os.environ.get("HCQ2")
    else mock.patch.object(ops_cpu, "do_to_program", lambda *_: nothing)
  ):
    yield


def why(e: Exception) -> str:
  return str(e).split("\n")[0][:200] or type(e).__name__


def zig_clang() -> str | None:
  """A program that runs the clang inside the package ziglang, or None without that package. tinygrad's CC is one word, this is two."""
  spec = importlib.util.find_spec("ziglang")
  if not spec or not spec.origin:
    return None
  zig, windows = (
    Path(spec.origin).with_name("zig.exe" if sys.platform == "win32" else "zig"),
    sys.platform == "win32",
  )
  script = (
    f'@"{zig}" clang %*\r\n' if windows else f'#!/bin/sh\nexec {shlex.quote(str(zig))} clang "$@"\n'
  )
  folder = cache()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    folder = Path(tempfile.gettempdir())
  launcher = (
    folder
    / f"zig-clang-{hashlib.sha256(script.encode()).hexdigest()[:8]}{'.bat' if windows else ''}"
  )  # each environment its own: one may be deleted
  if not launcher.exists() or launcher.read_text() != script:
    part = launcher.with_name(f"{os.getpid()}-{launcher.name}")
    part.write_text(script)
    part.chmod(0o755)
    os.replace(part, launcher)
  return str(launcher)
