"""Generation works if a later tinygrad lacks an internal name that is not essential."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from tinygrad import Device

pytestmark = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="GraphRunner runs CPU kernels only")

# tinygrad itself imports such names too, so they are deleted after its CPU device is open.
GENERATE = """
from tinyformer.device import select_device
select_device()
import tinygrad.engine.realize, tinygrad.helpers
{delete}
import gpt
from tinyformer.kernels import compiled_step
runs = 0
if compiled_step.HAS_GRAPH_RUNNER:
  from tinyformer.kernels.graph_runner import GraphRunner
  run = GraphRunner.__call__
  def count(*args):
    global runs
    runs += 1
    return run(*args)
  GraphRunner.__call__ = count
gpt.main(["-m", "weights/tiny", "-p", "Once upon", "-t", "0", "-n", "10"])
print("runs:", runs)
"""


def generate(folder, delete: str) -> tuple[str, int]:
  """Generate ten tokens in a process that first runs `delete`, with empty caches.

  Returns the text and the number of steps that GraphRunner ran.
  """
  process = subprocess.run(
    [sys.executable, "-c", GENERATE.format(delete=delete)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {"XDG_CACHE_HOME": str(folder)},
  )
  assert process.returncode == 0, process.stderr
  text, _, runs = process.stdout.rpartition("runs:")
  return text, int(runs)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> str:
  text, _ = generate(tmp_path_factory.mktemp("cache"), "")
  assert len(text.split()) > 5
  return text


def test_the_graph_runner_generates_without_num_cpu_threads(tmp_path, expected):
  text, runs = generate(tmp_path, "del tinygrad.helpers.NUM_CPU_THREADS")
  assert text == expected
  assert runs >= 9


def test_tinyjit_generates_if_the_graph_runner_cannot_be_imported(tmp_path, expected):
  # tinygrad itself calls this function, so it is missing only while we import it.
  delete = """
realize = tinygrad.engine.realize
resolve_params = realize.__dict__.pop("resolve_params")
import tinyformer.kernels.compiled_step
realize.resolve_params = resolve_params
"""
  text, runs = generate(tmp_path, delete)
  assert text == expected
  assert runs == 0
