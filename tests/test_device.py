"""Selecting tinygrad's device and a compiler, each time in a process without a compiler."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
from conftest import ROOT
from tinygrad.helpers import PARALLEL

from tinyformer import device
from tinyformer.device import select_device

# As on a machine with pocl and no GPU.
OPENCL_ON_CPU = """
import tinygrad
from tinyformer import device
device.is_opencl_on_cpu = lambda name: name == "CL"
type(tinygrad.Device)._select_device = "CL"
print(device.select_device(), tinygrad.Tensor([1]).device, device.select_device())
"""
WITHOUT_ZIGLANG = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ziglang" else find(name, *a)
import gpt
from tinyformer import cli
sys.exit(cli.run(lambda: gpt.main(["-p", "Once", "-m", "nothing"])))
"""
COMPUTE = """
import sys
from tinyformer.device import select_device
print(select_device(), "tinygrad.runtime.ops_nv" in sys.modules)
from tinygrad import Tensor
print((Tensor([1, 2]) + 1).sum().item())
"""
COMPUTE_HALF = """
from tinyformer.device import select_device
print(select_device())
from tinygrad import Tensor
print((Tensor([1, 2]) + 1).half().float().sum().item())
"""


def run_without_compiler(tmp_path, code, **env):
  """Run code in a process without clang and with empty caches."""
  removed = ("CC", "DEV", "CACHEDB", "PATH", "XDG_CACHE_HOME")
  inherited = {name: value for name, value in os.environ.items() if name not in removed}
  isolated = {
    "PATH": str(tmp_path),
    "XDG_CACHE_HOME": str(tmp_path),
    "DEV": "CPU",
    "CACHEDB": str(tmp_path / "c.db"),
  }
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=inherited | isolated | env,
  )


def test_without_a_compiler_the_error_names_the_problem_and_the_remedy(tmp_path):
  result = run_without_compiler(tmp_path, WITHOUT_ZIGLANG)
  problem, remedy, *rest = result.stderr.split("\n")
  assert result.returncode == 1
  assert rest == [""]
  assert result.stdout == ""
  assert "clang" in problem
  assert device.INSTALL_CLANG in remedy
  assert "pip install ziglang" in remedy


def test_the_error_for_a_cc_that_is_not_a_clang_has_two_lines(tmp_path):
  gcc = tmp_path / "gcc"
  gcc.write_text("#!/bin/sh\nexit 1\n")
  gcc.chmod(0o755)
  result = run_without_compiler(tmp_path, WITHOUT_ZIGLANG, CC=str(gcc))
  assert result.returncode == 1
  assert "Set CC to a clang" in result.stderr
  assert "Traceback" not in result.stderr
  assert result.stderr.count("\n") == 2


def test_the_error_for_an_unknown_device_names_the_device(tmp_path):
  code = WITHOUT_ZIGLANG.replace('"Once"', '"Once", "--device", "NOSUCH"')
  result = run_without_compiler(tmp_path, code)
  assert result.returncode == 1
  assert "NOSUCH" in result.stderr
  assert "Traceback" not in result.stderr
  assert "compile" not in result.stderr


@pytest.mark.parametrize("by_option", [True, False])
def test_the_error_for_a_missing_gpu_does_not_blame_the_compiler(tmp_path, by_option):
  code = WITHOUT_ZIGLANG.replace(
    '"Once"', '"Once", "--device", "NOSUCH"' if by_option else '"Once"'
  )
  env = {} if by_option else {"DEV": "NOSUCH"}
  result = run_without_compiler(tmp_path, code, CC=shutil.which("true"), **env)
  problem, remedy, _ = result.stderr.split("\n")
  assert problem.startswith("error: tinygrad cannot open the device NOSUCH (")
  assert remedy.startswith("Omit --device" if by_option else "Unset DEV")


def test_opencl_on_a_cpu_is_not_selected(tmp_path):
  if not device.is_program(os.environ.get("CC")):
    pytest.skip("there is no clang")
  result = run_without_compiler(tmp_path, OPENCL_ON_CPU, CC=os.environ["CC"], DEV="")
  assert result.stdout.split() == ["CPU", "CPU", "CPU"], result.stderr


@pytest.mark.slow
def test_opencl_on_a_cpu_is_selected_on_request_only():
  """Needs pocl, which OCL_ICD_VENDORS can name without an installation."""
  code = "from tinyformer.device import select_device\nprint(select_device())"

  def selected(**env):
    environment = {name: value for name, value in os.environ.items() if name != "DEV"} | env
    run = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    return run.stdout.strip()

  if selected(DEV="CL") != "CL" or selected() not in ("CPU", "CL"):
    pytest.skip("there is no OpenCL device, or there is a GPU")
  assert selected() == "CPU"


def test_more_devices_than_exist_are_reported():
  with pytest.raises(device.NoDeviceError, match=r"the device NOSUCH:0 .*\n.* --devices"):
    device.open_devices("NOSUCH", 2)
  assert device.open_devices("CPU", 2) == ("CPU:0", "CPU:1")


def test_ziglangs_clang_is_used_if_there_is_no_other(tmp_path):
  pytest.importorskip("ziglang")
  result = run_without_compiler(tmp_path, COMPUTE_HALF)
  assert result.stdout.split() == ["CPU", "5.0"], result.stderr
  [launcher] = (tmp_path / "tinyformer").glob("zig-clang-*")
  assert os.stat(launcher).st_mode & stat.S_IXUSR
  assert "ziglang" in launcher.read_text()


@pytest.mark.slow
def test_the_search_for_gpus_runs_once(tmp_path):
  pytest.importorskip("ziglang")

  def markers():
    return list((tmp_path / "tinyformer").glob("cpu-*"))

  # A requested CPU does not show whether there is another device.
  assert run_without_compiler(tmp_path, COMPUTE).stdout.split() == ["CPU", "False", "5"]
  assert not markers()
  first = run_without_compiler(tmp_path, COMPUTE, DEV="").stdout.split()
  if first[0] != "CPU":
    pytest.skip("there is a GPU")
  assert first == ["CPU", "True", "5"]
  assert len(markers()) == 1
  # The second run finds the marker and does not search.
  assert run_without_compiler(tmp_path, COMPUTE, DEV="").stdout.split() == ["CPU", "False", "5"]
  markers()[0].unlink()
  assert run_without_compiler(tmp_path, COMPUTE, DEV="").stdout.split() == ["CPU", "True", "5"]


def test_a_clang_on_the_path_is_used(tmp_path, monkeypatch):
  monkeypatch.delenv("CC", raising=False)
  monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/clang")
  select_device()
  assert os.environ["CC"] == "/somewhere/clang"


def test_tinygrad_caches_nothing_if_its_cache_cannot_be_written(tmp_path):
  (tmp_path / "file").touch()
  code = """from tinyformer.device import select_device
select_device("CPU")
from tinygrad.helpers import CACHELEVEL
print(CACHELEVEL.value)"""
  levels = []
  for folder in (tmp_path / "cache", tmp_path / "file", tmp_path / ("x" * 300)):
    environment = os.environ | {"XDG_CACHE_HOME": str(folder)}
    run = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    levels.append(int(run.stdout))
  assert levels[0] > 0
  assert levels[1:] == [0, 0]


@pytest.mark.parametrize(
  "variables, processes", [({}, 0), ({"BEAM": "0"}, 0), ({"BEAM": "2"}, 5), ({"PARALLEL": "3"}, 5)]
)
def test_kernels_are_compiled_in_other_processes_on_request_only(variables, processes, monkeypatch):
  for name in ("BEAM", "PARALLEL"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(PARALLEL, "value", 5)
  device.compile_in_this_process()
  assert PARALLEL.value == processes
