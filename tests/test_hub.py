"""Test downloads from the hub.

The hub is a folder served on 127.0.0.1. A test can make it truncate, redirect or refuse responses.
"""

import contextlib
import hashlib
import http.server
import json
import multiprocessing
import os
import shutil
import threading

import pytest
from conftest import FIXTURES

from tinyformer.checkpoints import hub, load_module

FILES = {
  name: (FIXTURES / "gpt2-a" / name).read_bytes() for name in ("config.json", "model.safetensors")
} | {"vocab.json": b"{}", "merges.txt": b"#version: 0.2\n"}
SHA = hashlib.sha256(FILES["model.safetensors"]).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
  """A hub that serves the same files for every repository.

  files: the contents by name.
  requests: (path, Range header, Authorization header) of each request.
  truncate_after: numbers of bytes. Each response with weights takes the last one and ends there.
  status, etag, location: an HTTP error, ETag or redirect by the name of a file.
  """

  def __init__(self):
    self.files = dict(FILES)
    self.requests = []
    self.truncate_after = []
    self.status = {}
    self.etag = {}
    self.location = {}
    super().__init__(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server_port}"
    threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *_):
    pass

  def do_GET(self):
    hub = self.server
    file = self.path.rsplit("/", 1)[1]
    range_header = self.headers.get("Range")
    hub.requests.append((self.path, range_header, self.headers.get("Authorization")))
    if status := hub.status.get(file):
      return self.send_error(status)
    if location := hub.location.get(file):
      self.send_response(302)
      self.send_header("Location", location)
      self.send_header("X-Linked-Etag", f'"{SHA}"')
      self.send_header("Content-Length", "0")
      return self.end_headers()
    if file not in hub.files:
      return self.send_error(404)
    data = hub.files[file]
    start = int(range_header.removeprefix("bytes=").removesuffix("-")) if range_header else 0
    if start > len(data):
      return self.send_error(416)
    self.send_response(206 if range_header else 200)
    if range_header:
      self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    if etag := hub.etag.get(file):
      self.send_header("ETag", f'"{etag}"')
    self.send_header("Content-Length", str(len(data) - start))
    self.end_headers()
    truncated = hub.truncate_after and file == "model.safetensors"
    end = start + hub.truncate_after.pop() if truncated else None
    with contextlib.suppress(ConnectionError):
      self.wfile.write(data[start:end])


@pytest.fixture
def server(monkeypatch, tmp_path):
  server = Hub()
  for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HF_ENDPOINT", server.url)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(hub, "WEIGHTS", tmp_path / "weights")
  yield server
  server.shutdown()
  server.server_close()


def weights(folder):
  return (folder / "model.safetensors").read_bytes()


def test_model_is_downloaded_once(server):
  reports = []
  folder = hub.find("someone/model", report=lambda *progress: reports.append(progress))
  assert folder == hub.WEIGHTS / "someone--model"
  assert {f.name for f in folder.iterdir()} == {*FILES}
  for name, data in FILES.items():
    assert (folder / name).read_bytes() == data
  size = len(FILES["model.safetensors"])
  assert reports[-1] == ("model.safetensors", size, size)
  num_requests = len(server.requests)
  assert hub.find("someone/model") == folder
  assert len(server.requests) == num_requests
  assert load_module(folder).vocab_size == 97


def test_short_name_selects_openais_model_at_a_pinned_revision(server):
  # The served weights are not OpenAI's.
  with pytest.raises(ValueError, match="SHA-256"):
    hub.find("gpt2")
  revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
  assert server.requests[0][0] == f"/openai-community/gpt2/resolve/{revision}/config.json"
  assert not (hub.WEIGHTS / "gpt2" / "model.safetensors").exists()
  assert hub.find("gpt2-medium") == hub.WEIGHTS / "gpt2-medium"
  assert server.requests[-1][0].startswith("/openai-community/gpt2-medium/resolve/main/")


def test_vocabulary_is_downloaded_without_weights_and_weights_later(server):
  folder = hub.find("someone/model", weights=False)
  assert {f.name for f in folder.iterdir()} == {"config.json", "vocab.json", "merges.txt"}
  assert hub.local() == []
  assert hub.find("someone/model", offline=True, weights=False) == folder
  with pytest.raises(hub.Unreachable):
    hub.find("someone/model", offline=True)
  assert hub.find("someone/model") == folder
  assert weights(folder) == FILES["model.safetensors"]


def test_only_four_files_of_openais_models_are_requested(server):
  hub.find("gpt2-medium")
  names = [path.rsplit("/", 1)[1] for path, _, _ in server.requests]
  assert names == ["config.json", "vocab.json", "merges.txt", "model.safetensors"]


@pytest.mark.parametrize(
  "names",
  [
    *hub.PROCESSOR_FILES,
    ("tokenizer.model", "tokenizer_config.json", "generation_config.json"),
    ("tokenizer.json", "vocab.txt"),
  ],
)
def test_one_set_of_tokenizer_files_suffices(server, names):
  for name in ("vocab.json", "merges.txt"):
    server.files.pop(name)
  for name in names:
    server.files[name] = b"{}"
  folder = hub.find("someone/model")
  unneeded = {"vocab.txt"} if "tokenizer.json" in names else set()
  expected = {"config.json", "model.safetensors", *names} - unneeded
  assert {f.name for f in folder.iterdir()} == expected
  assert hub.is_complete(folder)
  server.shutdown()
  assert hub.find("someone/model") == folder


def test_model_without_a_tokenizer_is_refused_before_its_weights_are_requested(server):
  server.files.pop("merges.txt")
  with pytest.raises(FileNotFoundError, match="someone/model has no supported tokenizer"):
    hub.find("someone/model")
  assert "model.safetensors" not in {path.rsplit("/", 1)[1] for path, _, _ in server.requests}


def test_missing_shards_are_downloaded(server):
  data = server.files.pop("model.safetensors")
  index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
  server.files |= {
    "a.safetensors": data,
    "b.safetensors": data,
    "model.safetensors.index.json": json.dumps(index).encode(),
  }
  folder = hub.find("someone/model")
  assert (folder / "a.safetensors").read_bytes() == data
  assert (folder / "b.safetensors").read_bytes() == data
  (folder / "b.safetensors").unlink()
  assert not hub.is_complete(folder)
  assert hub.is_complete(hub.find("someone/model"))


def test_index_must_not_name_a_file_outside_the_folder(server):
  server.files.pop("model.safetensors")
  index = {"weight_map": {"x": "../../evil"}}
  server.files["model.safetensors.index.json"] = json.dumps(index).encode()
  with pytest.raises(ValueError, match="outside"):
    hub.find("someone/model")


def test_interrupted_download_is_resumed(server):
  # The server takes the last number first.
  server.truncate_after = [20_000, 10_000]
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]
  ranges = [r for path, r, _ in server.requests if path.endswith("model.safetensors")]
  assert ranges == [None, "bytes=10000-", "bytes=30000-"]


def test_later_run_resumes_an_interrupted_download(server, monkeypatch):
  monkeypatch.setattr(hub.time, "sleep", lambda _: None)
  server.truncate_after = [1000] * 5
  with pytest.raises(hub.Unreachable, match="run the command again to resume"):
    hub.find("someone/model")
  folder = hub.WEIGHTS / "someone--model"
  assert not (folder / "model.safetensors").exists()
  assert not hub.is_complete(folder)
  assert (folder / "model.safetensors.part").stat().st_size == 5000
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]
  assert server.requests[-1][1] == "bytes=5000-"


def test_partial_download_of_another_file_is_deleted(server):
  server.etag["model.safetensors"] = SHA
  folder = hub.WEIGHTS / "someone--model"
  folder.mkdir(parents=True)
  (folder / "model.safetensors.part").write_bytes(b"x" * 1000)
  with pytest.raises(ValueError, match="SHA-256"):
    hub.find("someone/model")
  assert not list(folder.glob("model.safetensors*"))
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]


def test_partial_download_longer_than_the_file_is_restarted(server):
  folder = hub.WEIGHTS / "someone--model"
  folder.mkdir(parents=True)
  (folder / "model.safetensors.part").write_bytes(b"x" * 1_000_000)
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]


@pytest.mark.parametrize(
  "status, error, message",
  [
    (404, FileNotFoundError, "404"),
    (401, PermissionError, "HF_TOKEN"),
    (403, PermissionError, "HF_TOKEN"),
    (503, hub.Unreachable, "503"),
  ],
)
def test_each_http_error_raises_its_own_exception(server, monkeypatch, status, error, message):
  monkeypatch.setattr(hub.time, "sleep", lambda _: None)
  server.status["config.json"] = status
  with pytest.raises(error, match=message):
    hub.find("someone/model")


def test_token_is_sent_to_the_hub_and_to_no_other_host(server, monkeypatch):
  other = Hub()
  monkeypatch.setenv("HF_TOKEN", "secret")
  server.location["model.safetensors"] = f"{other.url}/cdn/model.safetensors"
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]
  assert {token for _, _, token in server.requests} == {"Bearer secret"}
  assert [token for _, _, token in other.requests] == [None]
  other.shutdown()


def test_redirect_within_the_hub_preserves_the_token(server, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "secret")
  server.location["model.safetensors"] = "/someone/model/cdn/weights"
  server.files["weights"] = FILES["model.safetensors"]
  hub.find("someone/model")
  assert server.requests[-1] == ("/someone/model/cdn/weights", None, "Bearer secret")


def test_download_with_a_wrong_sha256_is_refused(server):
  # The redirect announces the right sha256.
  server.location["model.safetensors"] = f"{server.url}/cdn/weights"
  server.files["weights"] = FILES["model.safetensors"][:-1] + b"?"
  with pytest.raises(ValueError, match="SHA-256"):
    hub.find("someone/model")
  assert not list((hub.WEIGHTS / "someone--model").glob("model.safetensors*"))


def test_insufficient_disk_space_is_reported_before_the_download(server, monkeypatch):
  usage = shutil.disk_usage("/")
  monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage._replace(free=5000))
  with pytest.raises(OSError, match="needs another 0 MB"):
    hub.find("someone/model")
  assert not (hub.WEIGHTS / "someone--model" / "model.safetensors").exists()


def test_disk_that_fills_up_leaves_no_folder_that_looks_complete(server, monkeypatch):
  class FullDisk:
    def __init__(self, file):
      self.file = file

    def __getattr__(self, name):
      return getattr(self.file, name)

    def __enter__(self):
      return self

    def __exit__(self, *error):
      self.file.close()

    def write(self, block):
      raise OSError(28, "No space left on device")

  def open_on_full_disk(path, mode):
    file = open(path, mode)  # noqa: SIM115
    return FullDisk(file) if mode in ("ab", "wb") else file

  monkeypatch.setattr(hub, "open", open_on_full_disk, raising=False)
  with pytest.raises(OSError, match="No space left"):
    hub.find("someone/model")
  assert not hub.is_complete(hub.WEIGHTS / "someone--model")
  monkeypatch.undo()


def download_in_process(folder, url, cache, results):
  os.environ |= {"HF_ENDPOINT": url, "HF_HUB_CACHE": cache}
  hub.WEIGHTS = folder
  results.put(weights(hub.find("someone/model")) == FILES["model.safetensors"])


def test_two_concurrent_processes_download_once(server, tmp_path):
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  arguments = (tmp_path / "weights", server.url, str(tmp_path / "cache"), results)
  processes = [context.Process(target=download_in_process, args=arguments) for _ in range(2)]
  for process in processes:
    process.start()
  assert [results.get(timeout=600) for _ in processes] == [True, True]
  assert len([path for path, _, _ in server.requests if path.endswith("model.safetensors")]) == 1


def add_to_cache(tmp_path, repo, revision, main=True):
  snapshot = tmp_path / "cache" / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
  snapshot.mkdir(parents=True)
  for name, data in FILES.items():
    (snapshot / name).write_bytes(data)
  if main:
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(revision)
  return snapshot


def test_hugging_face_cache_is_used(server, tmp_path, monkeypatch):
  snapshot = add_to_cache(tmp_path, "someone/model", "abc123")
  assert hub.find("someone/model") == snapshot
  assert not server.requests
  repo = "openai-community/gpt2"
  pinned = add_to_cache(tmp_path, repo, hub.REVISIONS[repo], main=False)
  assert hub.find("gpt2") == pinned
  assert not server.requests
  monkeypatch.delenv("HF_HUB_CACHE")
  monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
  (tmp_path / "home").mkdir()
  (tmp_path / "cache").rename(tmp_path / "home" / "hub")
  assert hub.find("gpt2").parts[-4] == "hub"


def test_offline_mode_sends_no_request(server, monkeypatch):
  with pytest.raises(hub.Unreachable, match="offline"):
    hub.find("someone/model", offline=True)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  with pytest.raises(hub.Unreachable, match="offline"):
    hub.find("gpt2")
  assert not server.requests


def test_hub_that_does_not_answer_is_unreachable(server, monkeypatch):
  server.shutdown()
  server.server_close()
  with pytest.raises(hub.Unreachable, match="does not respond"):
    hub.find("someone/model")
  monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
  with pytest.raises(hub.Unreachable, match="DNS lookup failed"):
    hub.find("someone/model")


@pytest.mark.parametrize("name", ["nonsense", "../x", "a/b/c", "", "a/..", "/nowhere"])
def test_invalid_model_name_is_refused_without_a_request(server, name):
  with pytest.raises(FileNotFoundError, match="is not a folder"):
    hub.find(name)
  assert not server.requests


def test_folder_without_a_config_is_refused_without_a_request(server, tmp_path, monkeypatch):
  (tmp_path / "weights" / "mine").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"weights/mine has no config\.json"):
    hub.find("weights/mine")
  assert not server.requests


def test_failed_download_leaves_no_empty_folder(server):
  server.status["config.json"] = 404
  with pytest.raises(FileNotFoundError):
    hub.find("someone/model")
  assert not (hub.WEIGHTS / "someone--model").exists()


def test_path_of_a_folder_is_a_valid_name(server):
  assert hub.find(str(FIXTURES / "gpt2-a")) == FIXTURES / "gpt2-a"
