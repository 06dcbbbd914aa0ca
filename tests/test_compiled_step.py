import subprocess

import numpy as np
import pytest
from conftest import ROOT, normal
from tinygrad import Context, Device, Tensor, UOp

from tinyformer.kernels import compiled_step, graph_runner
from tinyformer.kernels.compiled_step import CompiledStep, source_digest

on_cpu = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="only the CPU's kernels are kept")
WEIGHT = normal(64, 300, seed=1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "tinyformer" / "steps"


def made(key: str | None = None, weight=WEIGHT, traced: list | None = None):
  """A step with a weight, a memory that it writes to, and a place."""
  captured_buffers = {
    "weight": Tensor(weight).realize(),
    "memory": Tensor.zeros(8, 300).contiguous().realize(),
  }

  def step(x: Tensor, place: UOp) -> Tensor:
    if traced is not None:
      traced.append(place)
    captured_buffers["memory"][place : place + 1].assign((x @ captured_buffers["weight"]).relu())
    return captured_buffers["memory"].sum(0).realize()

  return CompiledStep(step, (UOp.variable("place", 0, 7),), captured_buffers, key)


def check(step, weight=WEIGHT):
  want = np.zeros((8, 300), np.float32)
  for place in (3, 0, 5, 3):
    x = normal(1, 64, seed=place)
    want[place] = np.maximum(x @ weight, 0)
    np.testing.assert_allclose(step(x, place=place), want.sum(0), atol=1e-4)


def test_a_step_is_traced_once_and_runs_on_new_inputs():
  traced = []
  check(made(traced=traced))
  assert len(traced) == 1


@on_cpu
def test_on_the_cpu_a_step_runs_from_machine_code():
  step = made()
  check(step)
  assert isinstance(step.graph_runner, graph_runner.GraphRunner)


def test_another_shape_is_refused():
  double = CompiledStep(lambda x: (x * 2).sum().realize())
  for _ in range(4):
    assert double(np.ones((3, 4), np.float32)).item() == 24
  with pytest.raises(ValueError, match=r"\(3, 4\).*\(5, 4\)"):
    double(np.ones((5, 4), np.float32))


@on_cpu
@pytest.mark.parametrize("threads", [0, 1, 5])
def test_all_parts_of_a_kernel_are_done_once_by_however_many_threads(monkeypatch, threads):
  if threads == 0:
    monkeypatch.setattr(
      graph_runner, "helpers", lambda: type("None", (), {"put": lambda self, step: None})()
    )
  monkeypatch.setattr(graph_runner, "threads", lambda: threads)
  x = normal(600, 700)
  step = CompiledStep(lambda x: (x.exp() + x).realize())
  with Context(NOOPT=0):  # which gives a kernel its parts
    for i in range(30):
      np.testing.assert_allclose(
        step(x + i / 10), np.exp(x + i / 10) + x + i / 10, rtol=1e-4, atol=1e-5
      )
  assert (
    max(step.graph_runner.table[graph_runner.HEAD + 1 :: graph_runner.WORDS]) > 1
    or graph_runner.NUM_CPU_THREADS.value == 1
  )


@on_cpu
def test_a_later_process_need_not_trace(cache):
  check(made("a key"))
  traced, other = [], normal(64, 300, seed=2)
  check(made("a key", other, traced), other)
  assert not traced and len(list(cache.iterdir())) == 1
  check(made("another key", other, traced), other)
  assert len(traced) == 1


@on_cpu
def test_what_is_kept_holds_no_weights(cache):
  check(made("a key"))
  [file] = cache.iterdir()
  assert file.stat().st_size < WEIGHT.nbytes and WEIGHT[0, :8].tobytes() not in file.read_bytes()


def test_a_steps_memory_begins_where_a_line_does():
  for size in (0, 1, 64, 5000):
    assert (graph_runner.room(size).ctypes.data % 64, len(graph_runner.room(size))) == (
      0,
      max(1, size),
    )


@on_cpu
@pytest.mark.parametrize(
  "file_errors",
  [
    lambda data: b"",
    lambda data: data[:100],
    lambda data: data[:-1],
    lambda data: data + b"?",
    lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
  ],
)
def test_a_damaged_file_is_made_again(cache, file_errors):
  check(made("a key"))
  [file] = cache.iterdir()
  whole, traced = file.read_bytes(), []
  file.write_bytes(file_errors(whole))
  check(made("a key", traced=traced))
  assert len(traced) == 1 and len(file.read_bytes()) == len(whole)
  check(made("a key", traced=traced))
  assert len(traced) == 1


@on_cpu
def test_a_step_of_other_sources_or_another_machine_is_another(cache, monkeypatch):
  check(made("a key"))
  monkeypatch.setattr(compiled_step, "machine", lambda: ("another",))
  traced = []
  check(made("a key", traced=traced))
  assert len(traced) == 1


@on_cpu
def test_where_nothing_can_be_kept_it_runs_all_the_same(cache):
  cache.parent.mkdir()
  cache.write_text("in the way")
  check(made("a key"))


@on_cpu
def test_what_has_numbers_of_its_own_is_not_kept(cache):
  own = Tensor(
    normal(1, 5, seed=3)
  ).realize()  # not among `known`: a later process would not have it
  step = CompiledStep(lambda x: (x + own).realize(), key="a key")
  np.testing.assert_allclose(step(np.ones((1, 5), np.float32)), 1 + own.numpy())
  assert not cache.exists()


@on_cpu
def test_only_so_many_are_kept(cache):
  for i in range(3):
    compiled_step.save_cached(
      cache / str(i), graph_runner.Recording([], [], [], (0, 0, (), "f")), most=2
    )
  assert len(list(cache.iterdir())) == 2


@on_cpu
def test_a_step_too_large_for_the_list_of_commands_runs_as_a_tinyjit():
  step = CompiledStep(lambda *x: sum(x, start=Tensor.zeros(1)).realize())
  given = [np.full(1, i, np.float32) for i in range(80)]
  for _ in range(3):
    assert step(*given).item() == sum(range(80))


def test_editing_any_source_file_changes_the_key(tmp_path):
  """A compiled step must not be replayed after a file has changed that decides what it computes."""
  names = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
  ).stdout.splitlines()
  sources = [
    n
    for n in names
    if n.split("/")[0] in ("transformer.py", "layers", "models", "tinyformer")
    and n.endswith((".py", ".c", ".h"))
  ]
  if not sources:
    pytest.skip("this is not a git checkout")
  for name in sources:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes((ROOT / name).read_bytes())
  digest = source_digest(tmp_path)
  assert len(sources) > 50 and digest == source_digest(ROOT) == source_digest()
  for name in [*sources, "tinyformer/kernels/c/new.c", "tinyformer/kernels/c/new.h"]:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_bytes() if file.exists() else None
    file.write_bytes((before or b"") + b"\n")
    assert source_digest(tmp_path) != digest, name
    if before is None:
      file.unlink()
    else:
      file.write_bytes(before)
