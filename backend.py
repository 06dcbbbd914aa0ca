"""Which device computes, and where its C compiler comes from: tinygrad's CPU device needs a clang on every machine."""
import importlib.util, os, shlex, shutil, sys, tempfile
from pathlib import Path

CURE = {"darwin": "xcode-select --install", "win32": "winget install LLVM.LLVM"}.get(sys.platform, "sudo apt install clang (or your system's package of it)")

class NoDevice(RuntimeError):
  """Nothing can compute here. The message has a line for the trouble and a line for the cure."""

def prepare(device:str|None=None) -> str:
  """Chooses tinygrad's device and opens it; call this before tinygrad is imported. `device` is tinygrad's DEV, None whatever it finds.

  Where there is no clang, ziglang's takes its place if that package is installed. Returns the device's name, raises NoDevice.
  """
  if device: os.environ["DEV"] = device
  compiler = os.environ.get("CC") or shutil.which("clang") or zig_clang()
  if compiler: os.environ["CC"] = compiler
  from tinygrad import Device
  try:
    name, renderer = Device.DEFAULT, type(Device[Device.DEFAULT].renderer).__name__
    if name != "CPU" or renderer != "ClangRenderer" or compiler and shutil.which(compiler): return name
    trouble = "tinygrad found no GPU"   # the CPU's own kernels came from its cache, the first new one would fail
  except Exception as e:
    trouble = f"tinygrad cannot open the device {device or os.environ['DEV']} ({why(e)})" if os.environ.get("DEV") else "tinygrad found no GPU"
    if device and not device.upper().startswith("CPU"): raise NoDevice(f"{trouble}.\nLeave --device out to take what there is.") from e
    if compiler and shutil.which(compiler): raise NoDevice(f"{trouble}, and {compiler} did not compile for the CPU ({why(e)}).\n"
                                                           "Is it a clang? Otherwise unset CC; --device names another device.") from e
  raise NoDevice(f"{trouble}, and there is no clang to compile for the CPU.\nInstall one: {CURE}, or pip install ziglang")

def why(e:Exception) -> str: return str(e).split("\n")[0][:200] or type(e).__name__

def zig_clang() -> str|None:
  """A program that runs the clang inside the package ziglang, or None without that package. tinygrad's CC is one word, this is two."""
  spec = importlib.util.find_spec("ziglang")
  if not spec or not spec.origin: return None
  zig, windows = Path(spec.origin).with_name("zig.exe" if sys.platform == "win32" else "zig"), sys.platform == "win32"
  script = f'@"{zig}" clang %*\r\n' if windows else f'#!/bin/sh\nexec {shlex.quote(str(zig))} clang "$@"\n'
  folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyformer"
  try: folder.mkdir(parents=True, exist_ok=True)
  except OSError: folder = Path(tempfile.gettempdir())
  launcher = folder / ("zig-clang.bat" if windows else "zig-clang")
  if not launcher.exists() or launcher.read_text() != script:
    part = launcher.with_name(f"{os.getpid()}-{launcher.name}")
    part.write_text(script)
    part.chmod(0o755)
    os.replace(part, launcher)
  return str(launcher)
