"""Build llama.cpp's programs from the source distribution of llama-cpp-python.

Needs cmake and a C++ compiler. bench.py then measures llama.cpp too.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

if __name__ == "__main__":
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.llama_cpp import PROGRAMS, default_folder, is_built
from tinyformer import cli

REQUIREMENT = "llama-cpp-python==0.3.36"
# Programs without shared libraries, for this machine's instructions.
SETTINGS = {
  "CMAKE_BUILD_TYPE": "Release",
  "GGML_NATIVE": "ON",
  "BUILD_SHARED_LIBS": "OFF",
  "LLAMA_BUILD_TESTS": "OFF",
  "LLAMA_BUILD_EXAMPLES": "OFF",
  "LLAMA_BUILD_SERVER": "OFF",
  "LLAMA_OPENSSL": "OFF",
}


def download(folder: Path) -> None:
  """Download the source distribution with pip, and put llama.cpp's source in folder/source."""
  with tempfile.TemporaryDirectory(dir=folder) as temporary:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary]
    subprocess.run([*pip, "--no-binary", ":all:", REQUIREMENT], check=True)
    [archive] = Path(temporary).glob("*.tar.gz")
    with tarfile.open(archive) as tar:
      tar.extractall(temporary, filter="data")
    [source] = Path(temporary).glob("*/vendor/llama.cpp")
    shutil.move(source, folder / "source")


def build(folder: Path, jobs: int) -> None:
  """Build the programs in folder/build."""
  options = [f"-D{name}={value}" for name, value in SETTINGS.items()]
  build_folder = folder / "build"
  configure = ["cmake", "-S", str(folder / "source"), "-B", str(build_folder), *options]
  subprocess.run(configure, check=True)
  command = ["cmake", "--build", str(build_folder), "--parallel", str(jobs), "--target", *PROGRAMS]
  subprocess.run(command, check=True)


def main(argv: list[str] | None = None) -> int:
  description = (__doc__ or "").split("\n")[0]
  p = argparse.ArgumentParser(prog="build_llama_cpp.py", description=description)
  p.add_argument(
    "folder",
    nargs="?",
    type=Path,
    default=default_folder(),
    help="folder for source/ and build/ (default: %(default)s)",
  )
  p.add_argument(
    "--jobs",
    type=cli.number(int, 1, 1000),
    default=os.cpu_count() or 1,
    help="number of parallel compilations (default: %(default)s)",
  )
  args = p.parse_args(argv)
  if shutil.which("cmake") is None:
    raise cli.UsageError("cmake is not installed: run pip install cmake")
  args.folder.mkdir(parents=True, exist_ok=True)
  try:
    if not (args.folder / "source").exists():
      download(args.folder)
    if not is_built(args.folder):
      build(args.folder, args.jobs)
  except subprocess.CalledProcessError as e:
    program = Path(e.cmd[0]).name
    raise cli.UsageError(f"{program} failed with status {e.returncode}: see its messages") from e
  print(f"llama.cpp is built in {args.folder}")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
