"""`python -m minigrad`: the graph, the order of the backward pass, and the checks."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

from minigrad import ops
from tinyformer import minigrad_walkthrough

WITHOUT_TRAINING = """
from tinyformer import minigrad_walkthrough as walkthrough
del walkthrough.SECTIONS[-1]
raise SystemExit(walkthrough.main(["-v"]))
"""


def run(*arguments: str) -> str:
  result = subprocess.run(
    [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
  )
  return result.stdout


def test_the_graph_is_drawn_with_values_and_gradients():
  lines = run("-c", WITHOUT_TRAINING).splitlines()
  node = r"[│├└─ ]*(\w)(?: = \w+\(.*\))? +value +(\S+) +gradient +(\S+)"
  matches = [match for match in (re.match(node, line) for line in lines) if match]
  nodes = {match[1]: (float(match[2]), float(match[3])) for match in matches}
  w, x, b = 2.0, 3.0, -1.0
  z = w * x + b
  dz = 2 * z
  expected = {"w": (w, dz * x), "x": (x, dz * w), "b": (b, dz)}
  assert nodes == expected | {"p": (w * x, dz), "z": (z, dz), "L": (z * z, 1)}
  summary = re.fullmatch(r"(\d+) checks passed, .*, on NUMPY, \d+ s", lines[-1])
  assert summary and int(summary[1]) == sum("✓" in line for line in lines)


def test_every_primitive_is_checked():
  primitives = {f.__name__ for f in ops.Function.__subclasses__()}
  assert set(minigrad_walkthrough.EXAMPLES) == primitives


@pytest.mark.slow
def test_the_gpt_learns():
  lines = run("-m", "minigrad", "-v").splitlines()
  assert "  It continues 1 1 with 2 3 5 8 3 1 4 5 9 4." in lines
