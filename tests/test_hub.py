"""Test downloads from the hub.

The hub is a folder served on 127.0.0.1. A test can make it truncate, redirect or refuse responses.
"""

import contextlib
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time

import pytest
from chaos.hostile_hub import PAGE, HostileHub, requested_file
from conftest import FIXTURES, ROOT

import tinyformer.model
from tinyformer.checkpoints import download, file_formats, hub, load_module

FILES = {
  name: (FIXTURES / "gpt2-a" / name).read_bytes() for name in ("config.json", "model.safetensors")
} | {
  "vocab.json": json.dumps({f"token{i}": i for i in range(99)}).encode(),
  "merges.txt": b"#version: 0.2\n" + b"a b\n" * 99,
}
SHA = hashlib.sha256(FILES["model.safetensors"]).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
  """A hub that serves the same files for every repository.

  files: the contents by name.
  requests: (path, Range header, Authorization header) of each request.
  truncate_after: numbers of bytes. Each response with weights takes the last one and ends there.
  status, etag, location: an HTTP error, ETag or redirect by the name of a file.
  retry_after: the Retry-After header of errors.
  """

  def __init__(self):
    self.files = dict(FILES)
    self.requests = []
    self.truncate_after = []
    self.status = {}
    self.etag = {}
    self.location = {}
    self.retry_after = None
    super().__init__(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server_port}"
    threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *_):
    pass

  def do_GET(self):
    hub = self.server
    file = requested_file(self.path)
    range_header = self.headers.get("Range")
    hub.requests.append((self.path, range_header, self.headers.get("Authorization")))
    if status := hub.status.get(file):
      self.send_response(status)
      if hub.retry_after:
        self.send_header("Retry-After", hub.retry_after)
      return self.end_headers()
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


def has_weights(folder, data=None):
  """Compare a downloaded file; pytest would spend minutes on the difference of two such files."""
  return (folder / "model.safetensors").read_bytes() == (data or FILES["model.safetensors"])


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


def test_python_shows_the_progress_of_a_download_in_a_terminal_only(server, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return name == "someone/terminal"

  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.delenv("NO_COLOR", raising=False)
  monkeypatch.setattr(tinyformer.model, "Model", lambda *_: None)
  outputs = []
  for name in ("someone/terminal", "someone/file"):
    monkeypatch.setattr(sys, "stderr", Terminal())
    tinyformer.load(name)
    outputs.append(sys.stderr.getvalue())
  assert "100% model.safetensors" in outputs[0]
  assert outputs[0].endswith("\r\x1b[K")
  assert outputs[1] == ""


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
  assert has_weights(folder)


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
    server.files[name] = b"\x0a\x00" if name.endswith((".model", ".spm")) else b"{}"
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


@pytest.mark.parametrize(
  "weight_map",
  [
    {"x": "../evil.safetensors"},
    {"x": "/tmp/evil.safetensors"},
    {"x": "a\\b.safetensors"},
    {"x": ".."},
    {"x": "x" * 300 + ".safetensors"},
    {"x": "config.json"},
    {"x": 3},
    {"x": {}},
    {},
    "model.safetensors",
  ],
)
def test_index_must_name_files_of_its_folder(server, weight_map):
  server.files.pop("model.safetensors")
  server.files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
  with pytest.raises(ValueError, match=r"index\.json (must name|has no weight_map)"):
    hub.find("someone/model")
  assert len(server.requests) < 20
  assert all(path.startswith("/someone/model/resolve/main/") for path, _, _ in server.requests)
  # The hub may have a valid index later.
  server.files["model.safetensors.index.json"] = b'{"weight_map": {"x": "a.safetensors"}}'
  server.files["a.safetensors"] = FILES["model.safetensors"]
  assert hub.is_complete(hub.find("someone/model"))


def test_interrupted_download_is_resumed(server):
  server.etag["model.safetensors"] = "version-1"
  # The server takes the last number first.
  server.truncate_after = [20_000, 10_000]
  assert has_weights(hub.find("someone/model"))
  ranges = [r for path, r, _ in server.requests if path.endswith("model.safetensors")]
  assert ranges == [None, "bytes=10000-", "bytes=30000-"]


def test_later_run_resumes_an_interrupted_download(server, monkeypatch):
  monkeypatch.setattr(download.time, "sleep", lambda _: None)
  server.etag["model.safetensors"] = "version-1"
  server.truncate_after = [1000] * 5
  with pytest.raises(hub.Unreachable, match=r"5,000 received bytes .* run the command again"):
    hub.find("someone/model")
  folder = hub.WEIGHTS / "someone--model"
  assert not (folder / "model.safetensors").exists()
  assert not hub.is_complete(folder)
  assert (folder / "model.safetensors.part").stat().st_size == 5000
  assert has_weights(hub.find("someone/model"))
  assert server.requests[-1][1] == "bytes=5000-"


def test_partial_download_of_unknown_origin_is_not_resumed(server):
  """Earlier versions left partial files without an ETag."""
  server.etag["model.safetensors"] = SHA
  folder = hub.WEIGHTS / "someone--model"
  folder.mkdir(parents=True)
  (folder / "model.safetensors.part").write_bytes(b"x" * 1000)
  assert has_weights(hub.find("someone/model"))
  assert {range_header for _, range_header, _ in server.requests} == {None}


def leave_partial_file(data: bytes, etag: str = "", checksum: str = ""):
  """Leave the start of the weights, as an interrupted download does."""
  folder = hub.WEIGHTS / "someone--model"
  folder.mkdir(parents=True)
  (folder / "model.safetensors.part").write_bytes(data)
  record = {"etag": etag, "checksum": checksum, "total": None}
  (folder / "model.safetensors.part.json").write_text(json.dumps(record))


def test_resumed_download_with_a_wrong_sha256_starts_again(server):
  server.etag["model.safetensors"] = SHA
  leave_partial_file(b"x" * 1000, f'"{SHA}"', SHA)
  assert has_weights(hub.find("someone/model"))
  assert [r for path, r, _ in server.requests if "model.saf" in path] == ["bytes=1000-", None]


def test_partial_download_longer_than_the_file_is_restarted(server):
  leave_partial_file(b"x" * 1_000_000, '"version-1"')
  assert has_weights(hub.find("someone/model"))


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
  monkeypatch.setattr(download.time, "sleep", lambda _: None)
  server.status["config.json"] = status
  with pytest.raises(error, match=message):
    hub.find("someone/model")


def test_token_is_sent_to_the_hub_and_to_no_other_host(server, monkeypatch):
  other = Hub()
  monkeypatch.setenv("HF_TOKEN", "secret")
  server.location["model.safetensors"] = f"{other.url}/cdn/model.safetensors"
  assert has_weights(hub.find("someone/model"))
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
  monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=5000))
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

  monkeypatch.setattr(download, "open", open_on_full_disk, raising=False)
  with pytest.raises(OSError, match="No space left"):
    hub.find("someone/model")
  assert not hub.is_complete(hub.WEIGHTS / "someone--model")
  monkeypatch.undo()


def download_in_process(folder, url, cache, results):
  os.environ |= {"HF_ENDPOINT": url, "HF_HUB_CACHE": cache}
  hub.WEIGHTS = folder
  results.put(has_weights(hub.find("someone/model")))


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


# A hub that is broken or hostile. tests/chaos combines these at random.


@pytest.fixture
def hostile(server, monkeypatch):
  """Return a hub with two versions of the weights, and limits that suit tests."""
  data = FILES["model.safetensors"]
  # The second version has the same header and the same length, but all other bytes differ.
  header = 8 + int.from_bytes(data[:8], "little")
  data = data[:header] + bytes(byte ^ 1 for byte in data[header:])
  hostile = HostileHub([dict(FILES), FILES | {"model.safetensors": data}])
  hostile.mirror = HostileHub(hostile.versions)
  monkeypatch.setenv("HF_ENDPOINT", hostile.url)
  monkeypatch.setattr(download, "LIMITS", download.Limits(pause=0))
  yield hostile
  hostile.mirror.close()
  hostile.close()


def behave(hostile: HostileHub, file: str, *behaviors: str) -> None:
  """Make a hub behave in turn as listed when a file is requested, and honestly otherwise."""
  remaining = list(behaviors)
  hostile.choose = lambda f: remaining.pop(0) if f == file and remaining else "honest"


def requests_of_weights(hostile: HostileHub) -> list[dict[str, str]]:
  return [headers for _, file, headers in hostile.requests if file == "model.safetensors"]


def test_resumed_request_asks_whether_the_file_has_changed(hostile):
  behave(hostile, "model.safetensors", "cut")
  assert has_weights(hub.find("someone/model"))
  first, second = requests_of_weights(hostile)
  assert "If-Range" not in first
  assert second["If-Range"].strip('"') == hashlib.md5(FILES["model.safetensors"]).hexdigest()


@pytest.mark.parametrize("behavior", ["new_version", "if_range_ignored"])
def test_file_that_changes_during_the_download_is_downloaded_again(hostile, behavior):
  old, new = (version["model.safetensors"] for version in hostile.versions)
  assert len(old) == len(new) and old != new
  behave(hostile, "model.safetensors", "cut", behavior)
  assert has_weights(hub.find("someone/model"), new)


def test_files_are_from_one_commit_although_the_branch_moves(hostile):
  """The branch moves after the first file, and again between two runs."""
  old, new = hostile.versions
  old["config.json"] += b" "
  hostile.identity = "git"
  hostile.choose = lambda file: "new_version" if file in ("vocab.json", "merges.txt") else "honest"
  folder = hub.find("someone/model", weights=False)
  hostile.version = 1
  hostile.choose = lambda file: "honest"
  assert hub.find("someone/model") == folder
  other = hub.find("other/model")
  # pytest takes minutes to show how long bytes differ.
  assert [name for name, data in old.items() if (folder / name).read_bytes() != data] == []
  assert [name for name, data in new.items() if (other / name).read_bytes() != data] == []


@pytest.mark.parametrize(
  "behavior", ["range_of_other_bytes", "range_with_a_wrong_total", "invalid_range"]
)
def test_range_that_was_not_requested_is_not_appended(hostile, behavior):
  behave(hostile, "model.safetensors", "cut", behavior)
  assert has_weights(hub.find("someone/model"))
  # The third request starts again.
  assert "Range" not in requests_of_weights(hostile)[2]


def test_response_without_content_leaves_the_received_bytes(hostile):
  behave(hostile, "model.safetensors", "cut", "no_content")
  assert has_weights(hub.find("someone/model"))
  assert "Range" in requests_of_weights(hostile)[2]


@pytest.mark.parametrize("file", FILES)
def test_web_page_instead_of_a_file_is_refused(hostile, file):
  behave(hostile, file, "page_instead_of_file")
  with pytest.raises(hub.Unreachable, match=rf"/{file}: a web page came instead"):
    hub.find("someone/model")
  assert not list(hub.WEIGHTS.glob(f"*/{file}*"))


@pytest.mark.parametrize("identity", ["sha256", "git", "none"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("behavior", ["no_content", "cut_without_length", "chunked_cut"])
def test_response_without_the_whole_file_is_not_kept(hostile, file, identity, behavior):
  hostile.identity = identity
  behave(hostile, file, *[behavior] * 5)
  with pytest.raises((hub.Unreachable, ValueError)):
    hub.find("someone/model")
  assert not (hub.WEIGHTS / "someone--model" / file).exists()
  behave(hostile, file)
  assert hub.is_complete(hub.find("someone/model"))


@pytest.mark.parametrize("identity", ["sha256", "git", "etag", "none"])
@pytest.mark.parametrize("behavior", ["whole_without_length", "chunked"])
def test_file_without_a_stated_length_is_kept_if_it_is_complete(hostile, identity, behavior):
  hostile.identity = identity
  behave(hostile, "model.safetensors", behavior)
  assert has_weights(hub.find("someone/model"))
  assert len(requests_of_weights(hostile)) == 1


def test_text_without_a_stated_length_or_checksum_is_refused(hostile):
  behave(hostile, "merges.txt", *["whole_without_length"] * 5)
  hostile.identity = "none"
  with pytest.raises(hub.Unreachable, match=r"does not state the size of merges\.txt"):
    hub.find("someone/model")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("behavior", ["length_too_large", "length_too_large_without_ranges"])
def test_stated_length_that_is_too_large_does_not_prevent_the_download(hostile, file, behavior):
  hostile.identity = "git" if file == "merges.txt" and "without" in behavior else "etag"
  behave(hostile, file, *[behavior] * 5)
  folder = hub.find("someone/model")
  assert (folder / file).read_bytes() == FILES[file]


@pytest.mark.parametrize("identity", ["sha256", "git"])
@pytest.mark.parametrize("behavior", ["wrong_bytes", "length_too_small"])
def test_file_with_a_wrong_checksum_is_refused(hostile, identity, behavior):
  hostile.identity = identity
  behave(hostile, "merges.txt", behavior)
  name = {"sha256": "SHA-256", "git": "SHA-1 as a git blob"}[identity]
  with pytest.raises(
    ValueError, match=f"has the {name} [0-9a-f]*, not [0-9a-f]*: the file was del"
  ):
    hub.find("someone/model")
  assert hub.is_complete(hub.find("someone/model"))


@pytest.mark.parametrize("behavior", ["internal_error", "slow_headers", "gzip_encoding"])
def test_error_mentions_partial_files_only_if_bytes_were_received(hostile, monkeypatch, behavior):
  limits = download.Limits(pause=0, opening=0.1)
  monkeypatch.setattr(download, "LIMITS", limits)
  behave(hostile, "config.json", *[behavior] * 5)
  with pytest.raises(hub.Unreachable) as error:
    hub.find("someone/model")
  assert "received" not in str(error.value) and ".part" not in str(error.value)
  assert not list(hub.WEIGHTS.glob("*/*"))


@pytest.mark.parametrize(
  "behavior, message",
  [
    ("slow_headers", "did not send its headers within 0.2 seconds"),
    ("endless_redirect", "redirected more than 10 times"),
    ("redirect_in_a_loop", "redirected more than 10 times"),
    ("slow_body", "fewer than 65,536 bytes came in 0.2 seconds"),
    ("endless_chunk_header", "fewer than 65,536 bytes came in 0.2 seconds"),
    ("redirect_to_another_protocol", "which is not allowed|invalid address|connection broke"),
  ],
)
def test_slow_server_and_endless_redirects_are_given_up(hostile, monkeypatch, behavior, message):
  limits = download.Limits(attempts=1, opening=0.2 if "headers" in behavior else 60, window=0.2)
  monkeypatch.setattr(download, "LIMITS", limits)
  behave(hostile, "config.json", *[behavior] * 11)
  start = time.monotonic()
  with pytest.raises(hub.Unreachable, match=message):
    hub.find("someone/model")
  # The server would send its headers or its body for 20 seconds.
  assert time.monotonic() - start < 15


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_endless_body_is_not_stored(hostile, monkeypatch, file):
  size = len(FILES["model.safetensors"])
  monkeypatch.setattr(download, "LIMITS", download.Limits(attempts=1, small_file=size))
  behave(hostile, file, "endless_body")
  with pytest.raises((ValueError, hub.Unreachable), match=r"more than|ends after"):
    hub.find("someone/model")
  assert sum(path.stat().st_size for path in hub.WEIGHTS.glob("*/*")) < 3 * size + (1 << 21)


@pytest.fixture
def certificate(tmp_path):
  """Return a certificate and a key for 127.0.0.1 in one file."""
  if not shutil.which("openssl"):
    pytest.skip("there is no openssl to make a certificate")
  path = tmp_path / "certificate.pem"
  command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
  command += f" -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout {path} -out {path}2"
  subprocess.run(command.split(), check=True, capture_output=True)
  path.write_text(path.read_text() + path.with_name("certificate.pem2").read_text())
  return path


def test_slow_server_with_tls_is_given_up(hostile, monkeypatch, certificate):
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(certificate)
  hostile.socket = context.wrap_socket(hostile.socket, server_side=True)
  monkeypatch.setenv("HF_ENDPOINT", hostile.url.replace("http:", "https:"))
  with pytest.raises(hub.Unreachable, match=r"does not respond .*certificate verify failed"):
    hub.find("someone/model")
  monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
  for behavior, message in (("slow_headers", "did not send"), ("slow_body", "fewer than")):
    is_body = behavior == "slow_body"
    limits = download.Limits(attempts=1, opening=60 if is_body else 0.3, window=0.3)
    monkeypatch.setattr(download, "LIMITS", limits)
    behave(hostile, "config.json", behavior)
    with pytest.raises(hub.Unreachable, match=message):
      hub.find("someone/model")
  monkeypatch.setattr(download, "LIMITS", download.Limits())
  behave(hostile, "model.safetensors", "cut")
  assert has_weights(hub.find("someone/model"))


def test_slow_server_is_accepted_if_it_sends_enough(hostile, monkeypatch):
  # A byte every 20 ms exceeds the window in total, but each window has its byte.
  limits = download.Limits(attempts=1, window=10, window_bytes=1)
  monkeypatch.setattr(download, "LIMITS", limits)
  hostile.versions[0]["tokenizer_config.json"] = b'{"a": 1}'
  behave(hostile, "tokenizer_config.json", "slow_body")
  assert hub.is_complete(hub.find("someone/model"))


def test_downloads_wait_as_long_as_the_hub_asks(server, monkeypatch):
  waits = []
  monkeypatch.setattr(download.time, "sleep", waits.append)
  server.status["config.json"] = 503
  server.retry_after = "7"
  with pytest.raises(hub.Unreachable, match="status 503 and asks to wait 7 seconds"):
    hub.find("someone/model")
  assert waits == [7, 7, 7, 7]
  server.retry_after = "3600"
  with pytest.raises(hub.Unreachable, match="asks to wait 3,600 seconds"):
    hub.find("someone/model")
  assert len(waits) == 4


def test_complete_download_leaves_no_partial_file(hostile):
  hostile.versions[0]["tokenizer_config.json"] = b'{"a": 1}'
  behave(hostile, "tokenizer_config.json", *["cut"] * 5, "not_found")
  with pytest.raises(hub.Unreachable):
    hub.find("someone/model")
  folder = hub.find("someone/model")
  assert {path.name for path in folder.iterdir()} == {*FILES}


@pytest.mark.parametrize(
  "old, new, is_allowed",
  [
    ("https://hub/a", "https://cdn/b", True),
    ("http://hub/a", "/b", True),
    ("https://hub/a", "http://hub/b", False),
    ("https://hub/a", "ftp://hub/b", False),
    ("https://hub/a", "file:///etc/passwd", False),
    ("https://hub/a", "", False),
  ],
)
def test_redirects_stay_on_the_web_and_keep_encryption(old, new, is_allowed):
  context = contextlib.nullcontext() if is_allowed else pytest.raises(hub.Unreachable)
  with context:
    download.redirect_target(old, {"Location": new})


@pytest.mark.parametrize(
  "name, value", [("HF_TOKEN", "sec ret"), ("HF_TOKEN", "sécret"), ("HF_ENDPOINT", "hub.example")]
)
def test_invalid_setting_is_named_and_a_token_is_not_shown(server, monkeypatch, name, value):
  monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=name) as error:
    hub.find("someone/model")
  assert "TOKEN" not in name or value not in str(error.value)
  assert not server.requests


@pytest.mark.parametrize(
  "file, damaged",
  [
    ("config.json", PAGE),
    ("config.json", b""),
    ("config.json", FILES["config.json"][:100]),
    ("vocab.json", PAGE),
    ("merges.txt", PAGE),
    ("merges.txt", b""),
    ("model.safetensors", PAGE),
    ("model.safetensors", FILES["model.safetensors"][:-1]),
    ("model.safetensors", FILES["model.safetensors"][:100]),
    ("model.safetensors", b""),
  ],
)
def test_damaged_file_of_an_earlier_version_is_downloaded_again(server, file, damaged):
  folder = hub.find("someone/model")
  (folder / file).write_bytes(damaged)
  with pytest.raises(hub.Unreachable, match=rf"/{file} is damaged \(it .*offline"):
    hub.find("someone/model", offline=True)
  assert hub.find("someone/model") == folder
  assert (folder / file).read_bytes() == FILES[file]


def test_quick_check_accepts_every_file_of_the_fixtures():
  for path in FIXTURES.glob("*/*"):
    if path.name in hub.DOWNLOADED or hub.SHARD_NAME.fullmatch(path.name):
      file_formats.check_quickly(path)
      file_formats.check(path, path.name)


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "source.spm"])
def test_truncated_sentencepiece_model_is_damaged(name, tmp_path):
  piece = b"\x0a\x05token" + b"\x15" + bytes(4) + b"\x18\x01"  # text, score, type
  data = (b"\x0a" + bytes([len(piece)]) + piece) * 3 + b"\x12\x02\x18\x01"
  path = tmp_path / name
  path.write_bytes(data)
  file_formats.check(path, name)
  for length in {*range(len(data))} - {len(piece) + 2, 2 * len(piece) + 4, 3 * len(piece) + 6}:
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match=r"it is|it ends"):
      file_formats.check(path, name)


def test_the_page_on_security_states_the_limits():
  page = " ".join((ROOT / "docs" / "security.md").read_text().split())
  limits = download.Limits()
  assert f"must arrive within {limits.opening:g} seconds" in page
  assert limits.window == 60
  assert f"each minute must bring at least {limits.window_bytes >> 10} KiB" in page
  assert f"is limited to {limits.small_file >> 20} MiB" in page


def test_the_modules_of_a_sentence_transformers_model_are_downloaded(server):
  modules = ["", "1_Pooling", "2_Dense", "3_Normalize"]
  kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
  module_list = [{"path": p, "type": f"a.{k}"} for p, k in zip(modules, kinds, strict=True)]
  files = {
    "modules.json": json.dumps(module_list).encode(),
    "sentence_bert_config.json": b'{"max_seq_length": 9}',
    "1_Pooling/config.json": b'{"pooling_mode": "cls"}',
    "2_Dense/config.json": b'{"bias": true}',
    "2_Dense/model.safetensors": FILES["model.safetensors"],
  }
  server.files |= files
  folder = hub.find("someone/model")
  for name, content in files.items():
    assert (folder / name).read_bytes() == content
  del server.files["1_Pooling/config.json"]
  with pytest.raises(FileNotFoundError, match=r"1_Pooling/config\.json"):
    hub.find("someone/other")
