"""A lock on an output folder: one run at a time, and none after the process has ended."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from tinyformer import cli
from tinyformer.cli import folder_lock
from tinyformer.cli.folder_lock import LOCK, FolderLock

fcntl = pytest.importorskip("fcntl")

HOLD = """
import sys
from pathlib import Path
from tinyformer.cli.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])):
  print("locked", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock of a folder until its standard input ends."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path / "run")],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdout.readline() == b"locked\n"
  yield process
  process.kill()
  process.communicate()


def test_a_folder_that_another_process_has_locked_is_refused_with_the_process_id(tmp_path, holder):
  with pytest.raises(cli.UsageError, match=rf"process {holder.pid}\) is writing to .*run: wait"):
    FolderLock(tmp_path / "run")
  holder.communicate()
  assert not (tmp_path / "run").exists()
  with FolderLock(tmp_path / "run"):
    pass


def test_a_killed_process_leaves_its_file_but_no_lock(tmp_path, holder):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (tmp_path / "run" / LOCK).read_text() == f"{holder.pid}\n"
  with FolderLock(tmp_path / "run"):
    assert (tmp_path / "run" / LOCK).read_text() == f"{os.getpid()}\n"
  assert not list((tmp_path / "run").iterdir())


def test_a_lock_is_exclusive_within_a_process_and_ends_with_its_object(tmp_path):
  lock = FolderLock(tmp_path)
  with pytest.raises(cli.UsageError, match="name another folder with -o"):
    FolderLock(tmp_path)
  del lock
  with FolderLock(tmp_path):
    pass


def test_a_file_that_its_owner_deletes_before_it_is_locked_is_not_used(tmp_path, monkeypatch):
  """Otherwise two runs would lock two files of the same name."""
  lock_file = folder_lock.lock
  descriptors = []

  def delete_first(file):
    lock_file(file)
    descriptors.append(file)
    if len(descriptors) == 1:
      (tmp_path / LOCK).unlink()

  monkeypatch.setattr(folder_lock, "lock", delete_first)
  with FolderLock(tmp_path):
    assert len(descriptors) == 2
    monkeypatch.undo()
    with pytest.raises(cli.UsageError, match="is writing to"):
      FolderLock(tmp_path)


def test_a_new_folder_is_deleted_unless_the_run_wrote_to_it(tmp_path):
  with FolderLock(tmp_path / "a" / "b"):
    assert (tmp_path / "a" / "b" / LOCK).exists()
  assert not (tmp_path / "a" / "b").exists()
  with FolderLock(tmp_path / "a" / "b"):
    (tmp_path / "a" / "b" / "log.csv").write_text("x")
  assert [f.name for f in (tmp_path / "a" / "b").iterdir()] == ["log.csv"]


def test_a_file_in_place_of_the_folder_is_a_usage_error(tmp_path):
  (tmp_path / "file").write_text("x")
  for path in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(cli.UsageError, match=f"cannot write to the folder {path}: .*-o"):
      FolderLock(path)
  assert (tmp_path / "file").read_text() == "x"


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with FolderLock(tmp_path):
    assert "make sure that no other run" in capsys.readouterr().err
