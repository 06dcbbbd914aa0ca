"""Snapshots: what a later process reads instead of the checkpoint, and when it must not."""

import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, randomise
from tinygrad import Device

import gpt
from models.gpt2 import GPT2, GPT2Config
from tinyformer import checkpoints, cli
from tinyformer.generation import Engine
from tinyformer.kernels.compiled_step import memory_view
from tinyformer.model import Model
from tinyformer.snapshots import capture, identity, storage
from tinyformer.snapshots.engine import open_snapshot
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

pytestmark = pytest.mark.skipif(
  Device.DEFAULT != "CPU" or not identity.is_supported(),
  reason="snapshots are used on the CPU of a Linux machine with x86-64 only",
)
CONTEXT = 80
LIMIT = "TINYFORMER_SNAPSHOT_GB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("model")
  tokenizer = BytePairEncoding.train(["the king had a daughter " * 20], 270)
  tokenizer.save(path)
  model = randomise(GPT2(GPT2Config(len(tokenizer), CONTEXT, 12, 3, 2)))
  checkpoints.save(model, path, eos_token_id=tokenizer.end)
  return path


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
  """A cache folder with a snapshot that has the step for one token only."""
  path = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as m:
    m.setenv("XDG_CACHE_HOME", str(path))
    m.setenv(LIMIT, "1")
    save_snapshot(folder)
  return path


@pytest.fixture
def cache(saved, tmp_path, monkeypatch):
  """The folder of snapshots in a copy of that cache."""
  shutil.copytree(saved, tmp_path / "cache")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv(LIMIT, "1")
  return tmp_path / "cache" / "tinyformer" / "snapshots"


def request(folder, dtype="float32", candidates=3):
  return identity.Request(folder.resolve(), dtype, None, 1, candidates)


def load_engine(folder, dtype="float32", candidates=3):
  model = Model(folder, dtype)
  return Engine(model.module, key=model.key, top_k=candidates)


def save_snapshot(folder, dtype="float32", num_tokens=(1,)):
  """Save a snapshot as the second process with a model does."""
  wanted = request(folder, dtype)
  for _ in range(2):
    engine = load_engine(folder, dtype)
    for n in num_tokens:
      engine.position = 0
      engine(ids(n))
    capture.save(engine, wanted, wanted.identity(), engine.model.vocab_size)
  return engine


def ids(n):
  return np.arange(n, dtype=np.int32)[None] % 200 + 7


def must_not_load():
  raise AssertionError("the model was loaded")


def opened(folder, dtype="float32", load=must_not_load):
  wanted = request(folder, dtype)
  return open_snapshot(wanted, wanted.identity(), load)


@pytest.mark.parametrize(
  ("dtype", "sizes"),
  [
    ("float32", (1,)),
    pytest.param("float32", (1, 40), marks=pytest.mark.slow),
    pytest.param("bfloat16", (1, 40), marks=pytest.mark.slow),
    pytest.param("int8", (1, 40), marks=pytest.mark.slow),
    pytest.param("int4", (1, 40), marks=pytest.mark.slow),
  ],
)
def test_logits_and_keys_of_a_snapshot_equal_its_engines_bit_by_bit(folder, cache, dtype, sizes):
  engine = save_snapshot(folder, dtype, sizes)
  snapshot = opened(folder, dtype)
  for n in (*sizes, 1):
    engine.position = snapshot.position = 0
    np.testing.assert_array_equal(snapshot(ids(n)), engine(ids(n)))
  for name, array in snapshot.buffers.items():
    if name.startswith("cache."):
      rows = memory_view(engine.captured_buffers[name])[:, :, :1]
      np.testing.assert_array_equal(array[:, :, :1], rows)


@pytest.mark.slow
def test_the_first_process_with_a_model_saves_no_weights(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setenv(LIMIT, "1")
  engine = load_engine(folder)
  engine(ids(1))
  assert engine.step(1, None).is_new
  capture.save(engine, request(folder), request(folder).identity(), engine.model.vocab_size)
  assert opened(folder) is None


def test_the_loaded_model_continues_with_the_keys_and_values_of_the_snapshot(folder, cache):
  snapshot = opened(folder, load=lambda: load_engine(folder))
  engine = load_engine(folder)
  for n in (1, 2):
    np.testing.assert_array_equal(snapshot(ids(n)), engine(ids(n)))
  assert snapshot.loaded is None
  del snapshot.steps[1]
  np.testing.assert_array_equal(snapshot(ids(1)), engine(ids(1)))
  assert snapshot.loaded is not None


@pytest.mark.slow
def test_a_step_that_the_snapshot_lacks_continues_with_the_loaded_model(folder, cache):
  snapshot = opened(folder, load=lambda: load_engine(folder))
  engine = load_engine(folder)
  for n in (1, 1, 50, 1):
    np.testing.assert_array_equal(snapshot(ids(n)), engine(ids(n)))
    assert (snapshot.loaded is None) == (snapshot.position < 50)
  assert snapshot.resume(list(range(7, 60))) == engine.resume(list(range(7, 60)))


def test_a_snapshot_of_more_candidates_or_another_dtype_is_another_one(folder):
  names = {request(folder, dtype, n).name for dtype in ("float32", "int8") for n in (0, 1, 4, 5)}
  assert len(names) == 8
  assert request(folder, candidates=4).name == request(folder, candidates=3).name


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "merges.txt"])
def test_a_snapshot_is_not_used_after_a_file_of_the_model_has_changed(folder, cache, file):
  assert opened(folder) is not None
  status = (folder / file).stat()
  os.utime(folder / file, ns=(0, 0))
  assert opened(folder) is None
  os.utime(folder / file, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert opened(folder) is not None


@pytest.mark.parametrize("name", identity.VARIABLES)
def test_a_snapshot_is_not_used_with_other_settings(folder, monkeypatch, name):
  before = request(folder).identity()
  monkeypatch.setenv(name, "7")
  assert request(folder).identity() != before


@pytest.mark.parametrize(
  "source", ["transformer.py", "models/gpt2.py", "tinyformer/kernels/c/gemv.c", "layers/norms.py"]
)
def test_a_snapshot_is_not_used_after_a_source_has_changed(folder, monkeypatch, source):
  before = request(folder).identity()
  file_state = identity.file_state
  changed = ROOT / source
  monkeypatch.setattr(identity, "file_state", lambda p: [0] if p == changed else file_state(p))
  assert request(folder).identity() != before


def change_bytes(path, change):
  data = bytearray(path.read_bytes())
  path.write_bytes(change(data))


@pytest.mark.parametrize("suffix", [".steps", ".weights"])
@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "others write", "link"])
def test_damaged_files_and_files_that_others_can_write_are_ignored(folder, cache, suffix, kind):
  name = request(folder).name if suffix == ".steps" else request(folder).weights_name
  file = cache / name
  backup = cache.parent / "backup"
  shutil.copy2(file, backup)
  if kind == "others write":
    file.chmod(0o620)
  elif kind in ("missing", "link"):
    file.unlink()
    if kind == "link":
      file.symlink_to(backup)
  else:
    change_bytes(file, lambda data: data[: -len(data) // 3] if kind == "cut" else b"")
  assert opened(folder) is None


def test_one_wrong_byte_of_machine_code_is_noticed(folder, cache):
  change_bytes(cache / request(folder).name, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
  assert opened(folder) is None


DAY = storage.CHECK_INTERVAL


@pytest.mark.parametrize(
  "seconds_since_check, uptime, is_due",
  [(60, 2 * DAY, False), (DAY + 60, 2 * DAY, True), (60, 30, True), (-DAY, 2 * DAY, True)],
)
def test_one_wrong_byte_of_the_weights_is_noticed_when_a_check_is_due(
  folder, cache, seconds_since_check, uptime, is_due, monkeypatch
):
  """A file is checked once a day, and after each start of the system."""
  file = cache / request(folder).weights_name
  monkeypatch.setattr(storage.time, "clock_gettime", lambda _: uptime)
  checked = int(time.time()) - seconds_since_check
  for byte in (0, 1):
    change_bytes(file, lambda data, byte=byte: data[:-70] + bytes([data[-70] ^ byte]) + data[-69:])
    os.utime(file, (checked, checked))
    is_damaged = byte == 1
    assert (opened(folder) is None) == (is_due and is_damaged)
    # The time of a successful check is noted.
    assert (file.stat().st_mtime != checked) == (is_due and not is_damaged)
  if is_due:
    save_snapshot(folder)  # replaces the damaged file
    os.utime(file, (checked, checked))
    assert opened(folder) is not None


def test_the_checksum_of_weights_changes_if_two_blocks_swap_their_places():
  words = np.arange(3 * storage.BLOCK_BYTES // 4, dtype=np.float32)
  first, second, third = words.reshape(3, -1)
  swapped = np.concatenate([second, first, third])
  assert storage.checksum([], {}, {"a": words}) == storage.checksum([], {}, {"a": words.copy()})
  assert storage.checksum([], {}, {"a": words}) != storage.checksum([], {}, {"a": swapped})


def test_a_folder_that_others_can_write_is_ignored(folder, cache):
  cache.chmod(0o770)
  assert opened(folder) is None
  save_snapshot(folder)
  assert cache.stat().st_mode & 0o777 == 0o700
  assert opened(folder) is not None
  assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o600}


@pytest.mark.parametrize("limit", ["0", "nan", "-1", "1e999", "much"])
def test_nothing_is_written_beyond_the_limit(cache, monkeypatch, limit):
  monkeypatch.setenv(LIMIT, limit)
  with pytest.raises(OSError):
    storage.write_arrays(cache / "arrays", [], {"a": np.zeros(5)})
  assert not (cache / "arrays").exists()


def test_the_least_recently_used_files_are_deleted_first(cache, monkeypatch):
  for path in cache.iterdir():
    path.unlink()
  for n in range(4):
    (cache / str(n)).write_bytes(bytes(1000))
    os.utime(cache / str(n), ns=(n, n))
  storage.touch(cache / "0")
  monkeypatch.setenv(LIMIT, "2.5e-6")
  storage.delete_oldest()
  assert {path.name for path in cache.iterdir()} == {"0", "3"}
  monkeypatch.setattr(storage, "MAX_FILES", 1)
  storage.delete_oldest()
  assert {path.name for path in cache.iterdir()} == {"0"}


def test_mapped_arrays_equal_the_written_ones_and_are_aligned(cache):
  arrays = {str(n): np.arange(n, dtype=np.int8).reshape(n, 1) for n in (1, 63, 64, 65)}
  arrays["float"] = np.ones((3, 5), np.float32)
  file = cache / "arrays"
  storage.write_arrays(file, ["a"], arrays)
  mapped = storage.map_arrays(file, ["a"])
  for name, array in arrays.items():
    np.testing.assert_array_equal(mapped[name], array)
    assert mapped[name].dtype == array.dtype
    assert mapped[name].ctypes.data % 64 == 0
  with pytest.raises(ValueError):
    storage.map_arrays(file, ["b"])


def generate(folder, monkeypatch, *arguments):
  """Return what gpt.py prints."""
  out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
  monkeypatch.setattr(sys, "stdout", out)
  argv = ["-m", str(folder), "-p", "the king", "-n", "5", "-t", "0", "-q", *arguments]
  assert cli.run(lambda: gpt.main(argv)) == 0
  out.flush()
  return out.buffer.getvalue().decode()


@pytest.mark.slow
def test_the_third_run_of_gpt_py_needs_no_tinygrad(folder, cache, monkeypatch):
  texts = [generate(folder, monkeypatch) for _ in range(2)]
  code = (
    "import sys, gpt; gpt.main(sys.argv[1:]); "
    "assert not {'tinygrad', 'minigrad', 'models'} & sys.modules.keys()"
  )
  argv = ["-m", str(folder), "-p", "the king", "-n", "5", "-t", "0", "-q"]
  text = subprocess.check_output([sys.executable, "-c", code, *argv], text=True, cwd=ROOT)
  assert [text, text] == texts


def test_a_file_of_another_task_is_refused_as_without_snapshots(folder, tmp_path):
  config = json.loads((folder / "config.json").read_text()) | {"model_type": "unknown"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert cli.run(lambda: gpt.main(["-m", str(tmp_path), "-p", "a"])) == 1
