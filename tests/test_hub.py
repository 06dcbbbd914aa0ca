"""The hub is a folder served on 127.0.0.1, which cuts, redirects and refuses as a test wants it to."""

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

from models import gpt2
from tinyformer.checkpoints import hub

FILES = {
  name: (FIXTURES / "gpt2-a" / name).read_bytes() for name in ("config.json", "model.safetensors")
} | {"vocab.json": b"{}", "merges.txt": b"#version: 0.2\n"}
SHA = hashlib.sha256(FILES["model.safetensors"]).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
  """files: what it serves of every repository. seen: (path, Range, Authorization) of each request. cut: bytes after which it hangs up, once each."""

  def __init__(self):
    self.files, self.seen, self.cut, self.status, self.etag, self.location = (
      dict(FILES),
      [],
      [],
      {},
      {},
      {},
    )
    super().__init__(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server_port}"
    threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *_):
    pass

  def do_GET(self):
    hub, file, range_ = self.server, self.path.rsplit("/", 1)[1], self.headers.get("Range")
    hub.seen.append((self.path, range_, self.headers.get("Authorization")))
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
    data, start = (
      hub.files[file],
      int(range_.removeprefix("bytes=").removesuffix("-")) if range_ else 0,
    )
    if start > len(data):
      return self.send_error(416)
    self.send_response(206 if range_ else 200)
    if range_:
      self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    if etag := hub.etag.get(file):
      self.send_header("ETag", f'"{etag}"')
    self.send_header("Content-Length", str(len(data) - start))
    self.end_headers()
    cut = hub.cut.pop() if hub.cut and file == "model.safetensors" else None
    with contextlib.suppress(ConnectionError):
      self.wfile.write(data[start:] if cut is None else data[start : start + cut])


@pytest.fixture
def served(monkeypatch, tmp_path):
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


def test_a_model_is_downloaded_once(served):
  seen = []
  folder = hub.find("someone/model", report=lambda *progress: seen.append(progress))
  assert folder == hub.WEIGHTS / "someone--model" and {f.name for f in folder.iterdir()} == {*FILES}
  for name, data in FILES.items():
    assert (folder / name).read_bytes() == data
  assert seen[-1] == (
    "model.safetensors",
    len(FILES["model.safetensors"]),
    len(FILES["model.safetensors"]),
  )
  requests = len(served.seen)
  assert hub.find("someone/model") == folder and len(served.seen) == requests
  assert gpt2.load(folder).vocab_size == 97


def test_short_names_are_openais_at_a_pinned_revision(served):
  with pytest.raises(ValueError, match="sha256"):
    hub.find("gpt2")  # these are not OpenAI's weights
  assert (
    served.seen[0][0]
    == "/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/config.json"
  )
  assert not (hub.WEIGHTS / "gpt2" / "model.safetensors").exists()
  assert hub.find("gpt2-medium") == hub.WEIGHTS / "gpt2-medium" and served.seen[-1][0].startswith(
    "/openai-community/gpt2-medium/resolve/main/"
  )


def test_a_vocabulary_comes_without_the_weights_and_they_later(served):
  folder = hub.find("someone/model", weights=False)
  assert {f.name for f in folder.iterdir()} == {
    "config.json",
    "vocab.json",
    "merges.txt",
  } and hub.local() == []
  assert hub.find("someone/model", offline=True, weights=False) == folder
  with pytest.raises(hub.Unreachable):
    hub.find("someone/model", offline=True)
  assert hub.find("someone/model") == folder and weights(folder) == FILES["model.safetensors"]


def test_openais_models_are_four_files(served):
  hub.find("gpt2-medium")
  assert [path.rsplit("/", 1)[1] for path, _, _ in served.seen] == [
    "config.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
  ]


@pytest.mark.parametrize(
  "names",
  [
    *hub.PROCESSOR_FILES,
    ("tokenizer.model", "tokenizer_config.json", "generation_config.json"),
    ("tokenizer.json", "vocab.txt"),
  ],
)
def test_one_set_of_a_tokenizers_files_is_enough(served, names):
  for name in ("vocab.json", "merges.txt"):
    served.files.pop(name)
  for name in names:
    served.files[name] = b"{}"
  folder = hub.find("someone/model")
  unneeded = {"vocab.txt"} if "tokenizer.json" in names else set()
  assert {f.name for f in folder.iterdir()} == {
    "config.json",
    "model.safetensors",
    *names,
  } - unneeded and hub.is_complete(folder)
  served.shutdown()
  assert hub.find("someone/model") == folder


def test_a_model_without_a_tokenizer_is_told(served):
  served.files.pop("merges.txt")
  with pytest.raises(FileNotFoundError, match="someone/model has no tokenizer that is known here"):
    hub.find("someone/model")
  assert "model.safetensors" not in {path.rsplit("/", 1)[1] for path, _, _ in served.seen}


def test_shards_are_downloaded(served):
  data = served.files.pop("model.safetensors")
  served.files |= {
    "a.safetensors": data,
    "b.safetensors": data,
    "model.safetensors.index.json": json.dumps(
      {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    ).encode(),
  }
  folder = hub.find("someone/model")
  assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes() == data
  (folder / "b.safetensors").unlink()
  assert not hub.is_complete(folder) and hub.is_complete(hub.find("someone/model"))


def test_an_index_cannot_name_a_file_outside(served):
  served.files.pop("model.safetensors")
  served.files["model.safetensors.index.json"] = json.dumps(
    {"weight_map": {"x": "../../evil"}}
  ).encode()
  with pytest.raises(ValueError, match="outside"):
    hub.find("someone/model")


def test_a_cut_connection_is_resumed(served):
  served.cut = [20_000, 10_000]  # the last is the first
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]
  assert [r for path, r, _ in served.seen if path.endswith("model.safetensors")] == [
    None,
    "bytes=10000-",
    "bytes=30000-",
  ]


def test_a_later_run_goes_on_where_one_broke_off(served, monkeypatch):
  monkeypatch.setattr(hub.time, "sleep", lambda _: None)
  served.cut = [1000] * 5
  with pytest.raises(hub.Unreachable, match="another run goes on"):
    hub.find("someone/model")
  folder = hub.WEIGHTS / "someone--model"
  assert (
    not (folder / "model.safetensors").exists()
    and not hub.is_complete(folder)
    and (folder / "model.safetensors.part").stat().st_size == 5000
  )
  assert (
    weights(hub.find("someone/model")) == FILES["model.safetensors"]
    and served.seen[-1][1] == "bytes=5000-"
  )


def test_a_part_of_another_file_is_thrown_away(served):
  served.etag["model.safetensors"] = SHA
  folder = hub.WEIGHTS / "someone--model"
  folder.mkdir(parents=True)
  (folder / "model.safetensors.part").write_bytes(b"x" * 1000)
  with pytest.raises(ValueError, match="sha256"):
    hub.find("someone/model")
  assert not list(folder.glob("model.safetensors*"))
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]


def test_a_part_longer_than_the_file_is_begun_again(served):
  folder = hub.WEIGHTS / "someone--model"
  folder.mkdir(parents=True)
  (folder / "model.safetensors.part").write_bytes(b"x" * 1_000_000)
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]


@pytest.mark.parametrize(
  "status, error, words",
  [
    (404, FileNotFoundError, "404"),
    (401, PermissionError, "HF_TOKEN"),
    (403, PermissionError, "HF_TOKEN"),
    (503, hub.Unreachable, "503"),
  ],
)
def test_a_refusal_is_told_apart(served, monkeypatch, status, error, words):
  monkeypatch.setattr(hub.time, "sleep", lambda _: None)
  served.status["config.json"] = status
  with pytest.raises(error, match=words):
    hub.find("someone/model")


def test_the_token_goes_to_the_hub_and_to_no_other_host(served, monkeypatch):
  other = Hub()
  monkeypatch.setenv("HF_TOKEN", "secret")
  served.location["model.safetensors"] = f"{other.url}/cdn/model.safetensors"
  assert weights(hub.find("someone/model")) == FILES["model.safetensors"]
  assert {token for _, _, token in served.seen} == {"Bearer secret"}
  assert [token for _, _, token in other.seen] == [None]
  other.shutdown()


def test_a_redirect_within_the_hub_keeps_the_token(served, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "secret")
  served.location["model.safetensors"] = "/someone/model/cdn/weights"
  served.files["weights"] = FILES["model.safetensors"]
  hub.find("someone/model")
  assert served.seen[-1] == ("/someone/model/cdn/weights", None, "Bearer secret")


def test_a_wrong_sha256_is_refused(served):
  served.location["model.safetensors"] = f"{served.url}/cdn/weights"  # announces the right one
  served.files["weights"] = FILES["model.safetensors"][:-1] + b"?"
  with pytest.raises(ValueError, match="sha256"):
    hub.find("someone/model")
  assert not list((hub.WEIGHTS / "someone--model").glob("model.safetensors*"))


def test_a_full_disk_is_told_before_the_download(served, monkeypatch):
  usage = shutil.disk_usage("/")
  monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage._replace(free=5000))
  with pytest.raises(OSError, match="needs 0 MB more"):
    hub.find("someone/model")
  assert not (hub.WEIGHTS / "someone--model" / "model.safetensors").exists()


def test_a_disk_that_fills_up_leaves_nothing_that_counts_as_whole(served, monkeypatch):
  class Full:
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

  monkeypatch.setattr(
    hub,
    "open",
    lambda path, mode: (Full if mode in ("ab", "wb") else lambda f: f)(open(path, mode)),
    raising=False,
  )
  with pytest.raises(OSError, match="No space left"):
    hub.find("someone/model")
  assert not hub.is_complete(hub.WEIGHTS / "someone--model")
  monkeypatch.undo()


def one_of_two(folder, url, cache, results):
  os.environ |= {"HF_ENDPOINT": url, "HF_HUB_CACHE": cache}
  hub.WEIGHTS = folder
  results.put(weights(hub.find("someone/model")) == FILES["model.safetensors"])


def test_two_processes_at_once_download_once(served, tmp_path):
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  both = [
    context.Process(
      target=one_of_two, args=(tmp_path / "weights", served.url, str(tmp_path / "cache"), results)
    )
    for _ in range(2)
  ]
  for process in both:
    process.start()
  assert [results.get(timeout=600) for _ in both] == [True, True]
  assert len([path for path, _, _ in served.seen if path.endswith("model.safetensors")]) == 1


def in_cache(tmp_path, repo, revision, main=True):
  snapshot = tmp_path / "cache" / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
  snapshot.mkdir(parents=True)
  for name, data in FILES.items():
    (snapshot / name).write_bytes(data)
  if main:
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(revision)
  return snapshot


def test_the_users_hugging_face_cache_is_read(served, tmp_path, monkeypatch):
  snapshot = in_cache(tmp_path, "someone/model", "abc123")
  assert hub.find("someone/model") == snapshot and not served.seen
  pinned = in_cache(
    tmp_path, "openai-community/gpt2", hub.REVISIONS["openai-community/gpt2"], main=False
  )
  assert hub.find("gpt2") == pinned and not served.seen
  monkeypatch.delenv("HF_HUB_CACHE")
  monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
  (tmp_path / "home").mkdir()
  (tmp_path / "cache").rename(tmp_path / "home" / "hub")
  assert hub.find("gpt2").parts[-4] == "hub"


def test_offline_asks_nobody(served, monkeypatch):
  with pytest.raises(hub.Unreachable, match="offline"):
    hub.find("someone/model", offline=True)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  with pytest.raises(hub.Unreachable, match="offline"):
    hub.find("gpt2")
  assert not served.seen


def test_a_dead_hub_is_unreachable(served, monkeypatch):
  served.shutdown()
  served.server_close()
  with pytest.raises(hub.Unreachable, match="does not answer"):
    hub.find("someone/model")
  monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
  with pytest.raises(hub.Unreachable, match="is not found"):
    hub.find("someone/model")


@pytest.mark.parametrize("name", ["nonsense", "../x", "a/b/c", "", "a/..", "/nowhere"])
def test_what_is_no_name_is_refused(served, name):
  with pytest.raises(FileNotFoundError, match="no folder"):
    hub.find(name)
  assert not served.seen


def test_a_folder_without_a_model_is_told(served, tmp_path, monkeypatch):
  (tmp_path / "weights" / "mine").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match="weights/mine has no config.json"):
    hub.find("weights/mine")
  assert not served.seen


def test_a_download_of_which_nothing_came_leaves_no_folder(served):
  served.status["config.json"] = 404
  with pytest.raises(FileNotFoundError):
    hub.find("someone/model")
  assert not (hub.WEIGHTS / "someone--model").exists()


def test_a_folder_is_its_own_name(served):
  assert hub.find(str(FIXTURES / "gpt2-a")) == FIXTURES / "gpt2-a"
