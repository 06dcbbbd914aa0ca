"""Compiled steps compute what their functions compute, and are cached between processes."""

import os
import pickle
import stat
import subprocess

import numpy as np
import pytest
from conftest import ROOT, normal
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Context, Device, Tensor, UOp, dtypes

from tinyformer.kernels import compiled_step, graph_runner, jit_cache, step_cache, step_runner
from tinyformer.kernels.compiled_step import CompiledStep, memory_view, source_digest
from tinyformer.kernels.tinygrad_internals import num_cpu_threads

on_cpu = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="GraphRunner runs CPU kernels only")
WEIGHT = normal(64, 300, seed=1)


@pytest.fixture(params=["GraphRunner", "TinyJit"])
def cache(request, tmp_path, monkeypatch):
  """Use an empty cache directory, and return the folder of the cached steps in it.

  The second time, TinyJit runs the steps, as it does on other devices.
  """
  if request.param == "TinyJit":
    monkeypatch.setattr(compiled_step, "uses_graph_runner", lambda: False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "tinyformer" / "steps"


def make_step(key: str | None = None, weight=WEIGHT, traces: list | None = None):
  """Return a step that writes relu(x @ weight) to a row of a buffer and returns the rows' sum.

  Each time the step is traced, an item is appended to `traces`.
  """
  captured_buffers = {
    "weight": Tensor(weight).realize(),
    "rows": Tensor.zeros(8, 300).contiguous().realize(),
  }

  def step(x: Tensor, position: UOp) -> Tensor:
    if traces is not None:
      traces.append(position)
    row = (x @ captured_buffers["weight"]).relu()
    captured_buffers["rows"][position : position + 1].assign(row)
    return captured_buffers["rows"].sum(0).realize()

  return CompiledStep(step, (UOp.variable("position", 0, 7),), captured_buffers, key)


def check(step, weight=WEIGHT):
  expected = np.zeros((8, 300), np.float32)
  for position in (3, 0, 5, 3):
    x = normal(1, 64, seed=position)
    expected[position] = np.maximum(x @ weight, 0)
    np.testing.assert_allclose(step(x, position=position), expected.sum(0), atol=1e-4)


def test_a_step_is_traced_once_and_runs_on_new_inputs():
  traces = []
  check(make_step(traces=traces))
  assert len(traces) == 1


@on_cpu
def test_on_the_cpu_a_step_runs_in_a_graph_runner():
  step = make_step()
  check(step)
  assert isinstance(step.graph_runner, graph_runner.GraphRunner)


@pytest.mark.parametrize(
  "view",
  [
    lambda x: x.T,
    lambda x: x[1:],
    lambda x: x[:, 1:3],
    lambda x: x.reshape(2, 10),
    lambda x: x.flip(0),
    lambda x: x[:1].cat(x[1:2], dim=1),
  ],
  ids=["transposed", "rows", "columns", "reshaped", "flipped", "concatenated"],
)
def test_a_result_can_be_a_view_of_a_buffer(cache, view):
  step = CompiledStep(lambda x: view((x + 1).contiguous().realize()).realize())
  for seed in range(3):
    x = normal(4, 5, seed=seed)
    np.testing.assert_array_equal(step(x), view(Tensor(x + 1)).numpy())


def test_a_result_that_the_function_does_not_realize_is_computed(cache):
  step = CompiledStep(lambda x: -(x + 1).realize())
  for seed in range(3):
    x = normal(4, 5, seed=seed)
    np.testing.assert_array_equal(step(x), -(x + 1))


def test_the_kernels_run_once_in_each_call(cache):
  count = Tensor.zeros(1).contiguous().realize()

  def step(x: Tensor) -> Tensor:
    count.assign(count + 1)
    return (x + count).realize()

  compiled = CompiledStep(step, captured_buffers={"count": count})
  assert [compiled(np.zeros(3, np.float32)).max() for _ in range(3)] == [1, 2, 3]


def test_a_step_can_write_to_a_tensor_that_is_not_among_the_captured_buffers(cache):
  target = Tensor.zeros(3).contiguous().realize()

  def step(x: Tensor) -> Tensor:
    target.assign(x * 2)
    return x.sum().realize(target)

  compiled = CompiledStep(step)
  for value in (1, 5):
    assert compiled(np.full(3, value, np.float32)).item() == 3 * value
    assert target.tolist() == [2 * value] * 3


def test_inputs_of_another_shape_are_rejected():
  double = CompiledStep(lambda x: (x * 2).sum().realize())
  for _ in range(4):
    assert double(np.ones((3, 4), np.float32)).item() == 24
  with pytest.raises(ValueError, match=r"\(5, 4\).*\(3, 4\)"):
    double(np.ones((5, 4), np.float32))


@on_cpu
@pytest.mark.parametrize("workers", [0, 1, 5])
def test_each_task_of_a_kernel_runs_once_with_any_number_of_workers(monkeypatch, workers):
  compiled = graph_runner.runtime()
  runtime = step_runner.Runtime(compiled.run, compiled.work, workers)
  monkeypatch.setattr(graph_runner, "runtime", lambda: runtime)
  array = normal(600, 700)
  step = CompiledStep(lambda x: (x.exp() + x).realize())
  # tinygrad splits a kernel into tasks only if it optimizes.
  with Context(NOOPT=0):
    for i in range(30):
      x = array + i / 10
      np.testing.assert_allclose(step(x), np.exp(x) + x, rtol=1e-4, atol=1e-5)
  num_tasks = step.graph_runner.table[step_runner.HEADER_WORDS + 1 :: step_runner.COMMAND_WORDS]
  assert max(num_tasks) > 1 or num_cpu_threads() == 1


@on_cpu
def test_a_later_process_loads_the_cached_kernels_instead_of_tracing(cache):
  check(make_step("a key"))
  traces = []
  weight = normal(64, 300, seed=2)
  check(make_step("a key", weight, traces), weight)
  assert not traces
  assert len(list(cache.iterdir())) == 1
  check(make_step("another key", weight, traces), weight)
  assert len(traces) == 1


@on_cpu
def test_a_cached_step_contains_no_weights(cache):
  check(make_step("a key"))
  [file] = cache.iterdir()
  assert file.stat().st_size < WEIGHT.nbytes
  assert WEIGHT[0, :8].tobytes() not in file.read_bytes()


def test_aligned_buffers_begin_at_a_cache_line():
  for size in (0, 1, 64, 5000):
    assert step_runner.aligned_buffer(size).ctypes.data % 64 == 0
    assert len(step_runner.aligned_buffer(size)) == max(1, size)


@on_cpu
@pytest.mark.parametrize(
  "corrupt",
  [
    lambda data: b"",
    lambda data: data[:100],
    lambda data: data[:-1],
    lambda data: data + b"?",
    lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
  ],
)
def test_a_damaged_cache_file_is_replaced(cache, corrupt):
  check(make_step("a key"))
  [file] = cache.iterdir()
  intact = file.read_bytes()
  traces = []
  file.write_bytes(corrupt(intact))
  check(make_step("a key", traces=traces))
  assert len(traces) == 1
  assert len(file.read_bytes()) == len(intact)
  check(make_step("a key", traces=traces))
  assert len(traces) == 1


@on_cpu
def test_a_change_of_the_environment_changes_the_cache_key(cache, monkeypatch):
  check(make_step("a key"))
  monkeypatch.setattr(compiled_step, "environment", lambda: ("another",))
  traces = []
  check(make_step("a key", traces=traces))
  assert len(traces) == 1


@on_cpu
@pytest.mark.parametrize("name", ["NOOPT", "BEAM", "NUM_CPU_THREADS"])
def test_tinygrads_settings_change_the_environment(name, monkeypatch):
  environments = set()
  for value in ("1", "2"):
    monkeypatch.setenv(name, value)
    environments.add(compiled_step.environment.__wrapped__())
  assert len(environments) == 2


@on_cpu
def test_a_step_runs_if_the_cache_cannot_be_written(cache):
  cache.parent.mkdir()
  cache.write_text("a file where the folder should be")
  check(make_step("a key"))


@on_cpu
def test_a_step_that_reads_a_tensor_of_its_own_is_not_cached(cache):
  # It is not in captured_buffers, so a later process could not supply it.
  constant = Tensor(normal(1, 5, seed=3)).realize()
  step = CompiledStep(lambda x: (x + constant).realize(), key="a key")
  np.testing.assert_allclose(step(np.ones((1, 5), np.float32)), 1 + constant.numpy())
  assert not cache.exists()


@on_cpu
def test_the_oldest_cached_steps_are_deleted(cache):
  for i in range(3):
    step_cache.save(cache / str(i), b"kernels", max_files=2)
  assert len(list(cache.iterdir())) == 2


posix = pytest.mark.skipif(os.name != "posix", reason="the modes of files are POSIX's")


@on_cpu
@posix
def test_only_the_owner_can_read_cached_steps(cache):
  cache.mkdir(parents=True)
  cache.chmod(0o777)
  check(make_step("a key"))
  [file] = cache.iterdir()
  assert stat.S_IMODE(cache.stat().st_mode) == 0o700
  assert stat.S_IMODE(file.stat().st_mode) == 0o600


def replace_by_link(file):
  file.rename(file.with_name("elsewhere"))
  file.symlink_to(file.with_name("elsewhere"))


def replace_by_fifo(file):
  file.unlink()
  os.mkfifo(file)


@on_cpu
@posix
@pytest.mark.parametrize(
  "change",
  [
    lambda file: file.chmod(0o620),
    lambda file: file.chmod(0o602),
    lambda file: file.parent.chmod(0o770),
    lambda file: os.chown(file, 12345, -1),
    replace_by_link,
    replace_by_fifo,
  ],
  ids=["group may write", "others may write", "folder", "another owner", "link", "FIFO"],
)
def test_a_file_that_others_could_have_written_is_ignored(cache, change):
  check(make_step("a key"))
  [file] = cache.iterdir()
  if change.__code__.co_names[-1:] == ("chown",) and os.getuid() != 0:
    pytest.skip("only root can change the owner of a file")
  change(file)
  traces = []
  check(make_step("a key", traces=traces))
  assert len(traces) == 1


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_recording(data):
  with pytest.raises(ValueError):
    step_cache.from_bytes(data)


@pytest.mark.parametrize("data", [b"", b"\x80", pickle.dumps(1), pickle.dumps(os.getcwd)])
def test_kernels_are_not_loaded_from_other_pickles(data):
  with pytest.raises(ValueError):
    jit_cache.from_bytes(data, {})


def test_a_recording_is_restored_from_its_bytes():
  arguments = [("workspace", 0, 64), ("captured", "cache.k.0", 0), ("task", None, 0)]
  recording = step_runner.Recording(
    [("gemm", b"\x00\xff"), ("gemv", b"")], [(1, 4, arguments)], [128], (0, 64, (1, 5), "f")
  )
  assert step_cache.from_bytes(step_cache.to_bytes(recording)) == recording


def test_a_step_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  step_cache.save(tmp_path / "step", b"kernels", 4)
  assert not list(tmp_path.iterdir())


@on_cpu
def test_a_kernel_with_too_many_arguments_runs_in_tinyjit():
  step = CompiledStep(lambda *x: sum(x, start=Tensor.zeros(1)).realize())
  arrays = [np.full(1, i, np.float32) for i in range(80)]
  for _ in range(3):
    assert step(*arrays).item() == sum(range(80))


@on_cpu
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16, dtypes.int8, dtypes.int32])
def test_a_memory_view_has_the_tensors_values_and_writing_to_it_changes_the_tensor(dtype):
  tensor = Tensor(normal(3, 5) * 9).cast(dtype).contiguous().realize()
  view = memory_view(tensor)
  np.testing.assert_array_equal(view, tensor.numpy())
  assert view.dtype == tensor.numpy().dtype
  view[1] = 7
  assert (tensor.numpy()[1] == 7).all()


@on_cpu
def test_a_memory_view_of_bfloat16_values_has_their_bits():
  tensor = Tensor([1.0, -2.5]).cast(dtypes.bfloat16).contiguous().realize()
  assert memory_view(tensor).tolist() == [0x3F80, 0xC020]


def test_a_device_with_its_own_memory_has_no_memory_view():
  assert memory_view(Tensor([1.0], device="PYTHON").contiguous().realize()) is None


def test_editing_any_source_file_changes_the_cache_key(tmp_path):
  """A cached step must not be replayed after a source file that determines its result changes."""
  command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  sources = [
    name
    for name in listing.stdout.splitlines()
    if name.split("/")[0] in ("transformer.py", "layers", "models", "tinyformer")
    and name.endswith((".py", ".c", ".h"))
  ]
  if not sources:
    pytest.skip("this is not a git checkout")
  for name in sources:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes((ROOT / name).read_bytes())
  digest = source_digest(tmp_path)
  assert len(sources) > 50
  assert digest == source_digest(ROOT) == source_digest()
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
