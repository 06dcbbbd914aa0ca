"""A disk that fills up during a write: the old files stay, and one line says what did not fit.

The disk is a file system of 320 KiB in memory. Only root may mount one.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chaos.hostile_hub import HostileHub
from conftest import FIXTURES, ROOT

from tinyformer import checkpoints
from tinyformer.checkpoints import download, hub
from tinyformer.checkpoints.safetensors import write_safetensors
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
  return [lambda folder, r=r: step_cache.save(folder / "step", r, 4) for r in recordings]


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
