"""The notebooks of examples/ run from the first cell to the last, without Jupyter."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from test_docs import check_links

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for number, code in enumerate(json.load(open(sys.argv[1])), 1):
  exec(compile(code, f"cell {number}", "exec"), namespace)
"""


def cells(path, kind: str) -> list[str]:
  notebook = json.loads(path.read_text(encoding="utf-8"))
  return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_there_is_a_notebook():
  assert ROOT / "examples" / "look_inside.ipynb" in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_cells_run_in_order(path, tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  (tmp_path / "cells.json").write_text(json.dumps(cells(path, "code")))
  env = {k: v for k, v in os.environ.items() if k != "CC"}
  env |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
  command = [sys.executable, "-c", RUNNER, "cells.json"]
  process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert "(4, 4, 12, 12)" in process.stdout  # the shape of the attention weights


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_in_text_cells_exist(path):
  check_links(path.relative_to(ROOT), "\n\n".join(cells(path, "markdown")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_has_the_output_of_every_cell_that_prints(path):
  notebook = json.loads(path.read_text(encoding="utf-8"))
  assert notebook["nbformat"] == 4
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code" and "print(" in "".join(cell["source"]):
      assert cell["outputs"]
