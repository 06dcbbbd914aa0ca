import os
import shutil
import stat
import subprocess
import sys

import pytest
from conftest import ROOT

from tinyformer import device
from tinyformer.device import select_device

HIDE = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ziglang" else find(name, *a)
import gpt
from tinyformer import cli
sys.exit(cli.run(lambda: gpt.main(["-p", "Once", "-m", "nothing"])))
"""


def alone(tmp_path, code, **env):
  """Runs code where there is no clang and no kernel was ever compiled."""
  keep = {
    k: v
    for k, v in os.environ.items()
    if k not in ("CC", "DEV", "CACHEDB", "PATH", "XDG_CACHE_HOME")
  }
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=keep
    | {
      "PATH": str(tmp_path),
      "XDG_CACHE_HOME": str(tmp_path),
      "DEV": "CPU",
      "CACHEDB": str(tmp_path / "c.db"),
    }
    | env,
  )


def test_without_a_compiler_the_trouble_and_the_cure_are_told(tmp_path):
  done = alone(tmp_path, HIDE)
  trouble, cure, *rest = done.stderr.split("\n")
  assert done.returncode == 1 and rest == [""] and done.stdout == ""
  assert "clang" in trouble and device.CURE in cure and "pip install ziglang" in cure


def test_a_cc_that_is_no_clang_is_told(tmp_path):
  fake = tmp_path / "gcc"
  fake.write_text("#!/bin/sh\nexit 1\n")
  fake.chmod(0o755)
  done = alone(tmp_path, HIDE, CC=str(fake))
  assert (
    done.returncode == 1
    and "Is it a clang?" in done.stderr
    and "Traceback" not in done.stderr
    and done.stderr.count("\n") == 2
  )


def test_an_unknown_device_is_told(tmp_path):
  done = alone(tmp_path, HIDE.replace('"Once"', '"Once", "--device", "NOSUCH"'))
  assert (
    done.returncode == 1
    and "NOSUCH" in done.stderr
    and "Traceback" not in done.stderr
    and "compile" not in done.stderr
  )


def test_ziglangs_clang_serves_where_there_is_no_other(tmp_path):
  pytest.importorskip("ziglang")
  done = alone(
    tmp_path,
    "from tinyformer.device import select_device; print(select_device()); from tinygrad import Tensor; print((Tensor([1, 2]) + 1).half().float().sum().item())",
  )
  assert done.stdout.split() == ["CPU", "5.0"], done.stderr
  [launcher] = (tmp_path / "tinyformer").glob("zig-clang-*")
  assert os.stat(launcher).st_mode & stat.S_IXUSR and "ziglang" in launcher.read_text()


OPEN = "import sys; from tinyformer.device import select_device; print(select_device(), 'tinygrad.runtime.ops_nv' in sys.modules); from tinygrad import Tensor; print((Tensor([1, 2]) + 1).sum().item())"


@pytest.mark.slow
def test_that_there_is_no_gpu_is_found_out_once(tmp_path):
  pytest.importorskip("ziglang")

  def marks():
    return list((tmp_path / "tinyformer").glob("cpu-*"))

  assert (
    alone(tmp_path, OPEN).stdout.split() == ["CPU", "False", "5"] and not marks()
  )  # asked for: it says nothing of what else there is
  first = alone(tmp_path, OPEN, DEV="").stdout.split()
  if first[0] != "CPU":
    pytest.skip("there is a GPU")
  assert first == ["CPU", "True", "5"] and len(marks()) == 1
  assert alone(tmp_path, OPEN, DEV="").stdout.split() == [
    "CPU",
    "False",
    "5",
  ]  # nothing was looked for again
  marks()[0].unlink()
  assert alone(tmp_path, OPEN, DEV="").stdout.split() == ["CPU", "True", "5"]


def test_a_clang_that_is_there_is_taken(tmp_path, monkeypatch):
  monkeypatch.delenv("CC", raising=False)
  monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/clang")
  select_device()
  assert os.environ["CC"] == "/somewhere/clang"
