"""A disk that fills up during a write: the old files stay, and one line says what did not fit.

The disk is a file system of 320 KiB in memory. Only root may mount one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chaos.hostile_hub import HostileHub
from conftest import FIXTURES, ROOT, with_head

import ask
from tinyformer import checkpoints, cli
from tinyformer.checkpoints import download, hub
from tinyformer.checkpoints.safetensors import write_safetensors
from tinyformer.cli import file_run
from tinyformer.cli.errors import describe
from tinyformer.files import write_text
from tinyformer.kernels import step_cache
from tinyformer.kernels.graph_runner import Recording
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

PAGE = 4096
PAGES = 80


@pytest.fixture
def disk(tmp_path):
  """Mount a small disk, and return its folder; skip if this is not permitted."""
  folder = tmp_path / "disk"
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", f"size={PAGES * PAGE}", "tmpfs", str(folder)]
  try:
    subprocess.run(command, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as e:
    pytest.skip(f"a disk cannot be mounted: {e}")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_free(disk: Path, pages: int) -> None:
  """Fill a disk until at most this number of pages is free."""
  (disk / "filling").unlink(missing_ok=True)
  free = shutil.disk_usage(disk).free // PAGE
  (disk / "filling").write_bytes(bytes(max(0, free - pages) * PAGE))
  assert shutil.disk_usage(disk).free <= pages * PAGE


def contents(folder: Path) -> dict[str, bytes]:
  """Return the contents of a folder's files by name."""
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Each function returns two functions, which write an old and a new version into a folder.
Write = Callable[[Path], None]


def text_file() -> list[Write]:
  return [lambda folder, n=n: write_text(folder / "a.txt", n * 30_000) for n in "12"]


def weights() -> list[Write]:
  arrays = [np.full((50, 70), n, np.float32) for n in (1, 2)]
  return [lambda folder, a=a: write_safetensors(folder / "a.safetensors", {"a": a}) for a in arrays]


def tokenizer() -> list[Write]:
  documents = [" ".join(str(n) for n in range(500))]
  return [BytePairEncoding.train(documents, size).save for size in (300, 310)]


def checkpoint() -> list[Write]:
  model = checkpoints.load_module(FIXTURES / "gpt2-a")
  return [lambda folder, t=t: checkpoints.save(model, folder, t) for t in ("float16", "float32")]


def cached_step() -> list[Write]:
  recordings = [Recording([("k", bytes(20_000))], [], [n], (0, 0, (1,), "f")) for n in (1, 2)]
  files = [step_cache.to_bytes(recording) for recording in recordings]
  return [lambda folder, f=f: step_cache.save(folder / "step", f, 4) for f in files]


@pytest.mark.parametrize("writers", [text_file, weights, tokenizer, checkpoint, cached_step])
def test_every_write_to_a_full_disk_leaves_old_or_new_files(disk, tmp_path, writers):
  old_folder, new_folder, folder = tmp_path / "old", tmp_path / "new", disk / "folder"
  write_old, write_new = writers()
  for path, write in ((old_folder, write_old), (new_folder, write_new)):
    path.mkdir()
    write(path)
  old, new = contents(old_folder), contents(new_folder)
  failures = successes = 0
  for pages in range(PAGES // 2):
    shutil.rmtree(folder, ignore_errors=True)
    (disk / "filling").unlink(missing_ok=True)
    shutil.copytree(old_folder, folder)
    leave_free(disk, pages)
    try:
      write_new(folder)
    except OSError as e:
      failures += 1
      message = describe(e)
      assert "full: free some space" in message and "\n" not in message
      assert any(f"folder/{name} " in message for name in new), message
    else:
      successes += contents(folder) == new
    now = contents(folder)
    assert now.keys() == old.keys()
    assert all(now[name] in (old[name], new[name]) for name in now)
    if writers is tokenizer:
      assert now in (old, new)
  assert successes
  assert failures or writers is cached_step  # a step is not cached if it does not fit


def test_download_onto_a_full_disk_is_completed_when_there_is_space(disk, tmp_path, monkeypatch):
  server = HostileHub([{path.name: path.read_bytes() for path in model_files(tmp_path)}])
  monkeypatch.setenv("HF_ENDPOINT", server.url)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(hub, "WEIGHTS", disk / "weights")
  # The disk fills up after the check of its free space.
  monkeypatch.setattr(download, "free_bytes", lambda folder: 1 << 30)
  try:
    for pages in range(0, PAGES // 2, 2):
      shutil.rmtree(disk / "weights", ignore_errors=True)
      (disk / "weights").mkdir()
      leave_free(disk, pages)
      try:
        hub.find("someone/model")
      except OSError as e:
        assert "full: free some space" in describe(e)
      folder = disk / "weights" / "someone--model"
      for path in folder.glob("*"):
        if ".part" not in path.name:
          assert path.read_bytes() == server.versions[0][path.name]
      (disk / "filling").unlink()
      assert contents(hub.find("someone/model")) == server.versions[0]
  finally:
    server.close()


def model_files(folder: Path) -> list[Path]:
  """Write the files of a small model, and return their paths."""
  for write in (checkpoint()[0], tokenizer()[0]):
    write(folder)
  return [
    folder / name for name in ("config.json", "model.safetensors", "vocab.json", "merges.txt")
  ]


@pytest.mark.slow
def test_command_runs_if_the_disk_of_its_caches_is_full(disk):
  for pages in (0, 5, 20):
    leave_free(disk, pages)
    environment = os.environ | {"XDG_CACHE_HOME": str(disk)}
    command = [
      sys.executable,
      "gpt.py",
      "-m",
      "tiny",
      "-p",
      "Once",
      "--max-new-tokens",
      "2",
      "-k",
      "1",
    ]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Once")
    assert not [path for path in disk.rglob("*") if "part" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("pages", [0, 6, 15, 25])
def test_training_on_a_full_disk_can_be_resumed_or_started_again(disk, tmp_path, pages):
  (tmp_path / "tales.txt").write_text("Once upon a time there was a cat. " * 400)
  options = "--layers 1 --heads 2 --dim 8 --context 16 --vocab 270 --batch 2 --sample 0"
  options += " --steps 6 --eval-interval 2"

  def train(out: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", str(tmp_path / "tales.txt"), *options.split(), *more]
    command += ["-o", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

  expected = tmp_path / "undisturbed"
  assert train(expected).returncode == 0
  out = disk / "run"
  leave_free(disk, pages)
  failed = train(out)
  error = failed.stderr.strip().splitlines()[-1]
  assert failed.returncode in (1, 2) and error.startswith("error: ")
  assert "full: free some space" in error or "No space left on device; name another" in error
  assert "Traceback" not in failed.stderr
  for weights in out.rglob("model.safetensors"):
    checkpoints.load_module(weights.parent)
  (disk / "filling").unlink()
  again = train(out, "--resume")
  if "start the run again without --resume" in again.stderr:
    again = train(out)
  assert again.returncode == 0, again.stderr
  for name in ("model.safetensors", "config.json", "vocab.json", "merges.txt"):
    assert (out / name).read_bytes() == (expected / name).read_bytes()


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(56))]
RESULT_ROWS = 600


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".npy", ".parquet"])
def test_a_disk_that_fills_while_ask_writes_results_keeps_the_finished_rows(
  disk, tmp_path, suffix, capsys, monkeypatch
):
  if suffix == ".parquet":
    pytest.importorskip("pyarrow")
  monkeypatch.setattr(file_run, "CHUNK_ROWS", 50)
  model = tmp_path / "model"
  model.mkdir()
  (with_head("bert-a", "Model", model) / "vocab.txt").write_text("\n".join(WORDS))
  texts = tmp_path / "texts.txt"
  texts.write_text("".join(f"w{i % 56} w{i // 56}\n" for i in range(RESULT_ROWS)))

  def run(output: Path) -> tuple[int, list[str]]:
    argv = ["-m", str(model), "--input", str(texts), "--output", str(output)]
    status = cli.run(lambda: ask.main(argv))
    return status, capsys.readouterr().err.splitlines()

  assert run(tmp_path / f"expected{suffix}")[0] == 0
  expected = read_vectors(tmp_path / f"expected{suffix}")
  folder = disk / "results"
  errors = []
  for pages in range(0, PAGES - 5, 5):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    leave_free(disk, pages)
    status, lines = run(folder / f"out{suffix}")
    (disk / "filling").unlink()
    if status == 0:
      same_vectors(read_vectors(folder / f"out{suffix}"), expected)
      continue
    errors.append(lines)
    assert status == 1
    [error] = [line for line in lines if line.startswith("error: ")]
    assert "full: free some space" in error and f"out{suffix}" in error
    assert "Traceback" not in "".join(lines)
    kept = RESULT_ROWS - computed_rows(error)
    status, lines = run(folder / f"out{suffix}")
    assert status == 0
    same_vectors(read_vectors(folder / f"out{suffix}"), expected)
    assert f"{kept:,} rows: continuing" in lines[0] or not kept
    names = {f"out{suffix}", f"out{suffix}.run.json"}
    assert {path.name for path in folder.iterdir()} == names
  assert any("cannot write the result of row" in lines[-1] for lines in errors)
  if suffix == ".parquet":
    assert any("cannot write the Parquet file" in lines[-1] for lines in errors)


def read_vectors(path: Path) -> tuple[list[int], np.ndarray]:
  """Return the numbers of the rows of a file with embeddings, and the embeddings (N, D)."""
  if path.suffix == ".npy":
    vectors = np.load(path)
    return list(range(1, len(vectors) + 1)), vectors
  if path.suffix == ".csv":
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
    return rows[:, 0].astype(int).tolist(), rows[:, 1:]
  if path.suffix == ".jsonl":
    records = [json.loads(line) for line in path.open()]
  else:
    from pyarrow import parquet

    records = parquet.read_table(path).to_pylist()
  return [r["row"] for r in records], np.array([r["embedding"] for r in records])


def same_vectors(actual: tuple[list[int], np.ndarray], expected: tuple[list[int], np.ndarray]):
  """Check that each row is there once. Other batches have other rounding errors."""
  assert actual[0] == expected[0] == list(range(1, RESULT_ROWS + 1))
  np.testing.assert_allclose(actual[1], expected[1], atol=1e-5)


def computed_rows(error: str) -> int:
  """Return how many rows a run must compute that continues after an error."""
  if "the Parquet file" in error:
    return 0
  row = re.search(r"result of row (\d+)", error)
  after = re.search(r"continue after row (\d+)", error)
  if after:
    return RESULT_ROWS - int(after[1])
  return RESULT_ROWS - int(row[1]) + 1 if row else RESULT_ROWS
