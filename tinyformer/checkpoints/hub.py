"""Find a model's folder by name: in weights/, in the Hugging Face cache, or on the hub.

Models on the hub are downloaded into weights/.
"""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinyformer.files import read_json

WEIGHTS = Path(__file__).parent.parent.parent / "weights"
SHORT_NAMES = {
  name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
# Pinned revisions. All other models are downloaded from the branch main.
REVISIONS = {"openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e"}
GPT2_WEIGHTS = ("openai-community/gpt2", "model.safetensors")
SHA256 = {GPT2_WEIGHTS: "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"}
# Besides config.json and the weights, a model needs the files of one of these sets: those of a
# tokenizer or of an image processor.
PROCESSOR_FILES = (
  ("tokenizer.json",),
  ("vocab.json", "merges.txt"),
  ("source.spm", "target.spm", "vocab.json"),
  ("vocab.txt",),
  ("tokenizer.model",),
  ("spiece.model",),
  ("sentencepiece.bpe.model",),
  ("spm.model",),
  ("preprocessor_config.json",),
)
OPTIONAL_FILES = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "preprocessor_config.json",
)
INDEX = "model.safetensors.index.json"
# Called with a file's name, the bytes received so far, and its total size in bytes.
Report = Callable[[str, int, int], None]


class Unreachable(OSError):  # noqa: N818
  """The hub does not respond, or must not be contacted."""


class Incomplete(Exception):  # noqa: N818
  """The connection ended before the end of the file."""


def setting(name: str) -> str:
  """Return an environment variable without surrounding blanks, or an empty string."""
  return os.environ.get(name, "").strip()


def endpoint() -> str:
  """Return the URL of the hub: HF_ENDPOINT, or https://huggingface.co."""
  return (setting("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def find(
  name: str, offline: bool = False, report: Report = lambda *_: None, weights: bool = True
) -> Path:
  """Return the folder of a model, and download the model if it is not on disk.

  name: a short name such as "gpt2", owner/repo, or the path of a folder.  offline: contact no
  server.  weights: if False, only the configuration and the tokenizer are required.
  Raises FileNotFoundError if there is no such model, PermissionError if the hub requires a token,
  and Unreachable if the model is not on disk and the hub cannot be reached.
  """
  if (Path(name) / "config.json").exists():
    return Path(name)
  if name in local():
    return WEIGHTS / name
  if name and Path(name).is_dir():
    raise FileNotFoundError(f"{name} has no config.json: it does not contain a saved model")
  repo = SHORT_NAMES.get(name, name)
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or ".." in repo:
    short_names = [*local(), *(s for s in SHORT_NAMES if s not in local())]
    raise FileNotFoundError(
      f"{name} is not a folder with a config.json, owner/repo, or one of {', '.join(short_names)}"
    )
  folder = WEIGHTS / (name if name in SHORT_NAMES else repo.replace("/", "--"))
  for candidate in (folder, *cached_snapshots(repo)):
    if is_complete(candidate, weights):
      return candidate
  if offline or setting("HF_HUB_OFFLINE").upper() in ("1", "ON", "YES", "TRUE"):
    raise Unreachable(f"{name} is not on disk, and the hub must not be contacted (offline)")
  download_into(folder, repo, report, weights)
  return folder


def download_into(folder: Path, repo: str, report: Report, weights: bool) -> None:
  """Download a model into a folder of weights/, one process at a time."""
  WEIGHTS.mkdir(parents=True, exist_ok=True)
  # The lock is outside the folder, because the folder may be removed while a process waits.
  with lock(WEIGHTS / f".{folder.name}.lock"):
    try:
      folder.mkdir(exist_ok=True)
      if not is_complete(folder, weights):
        download(repo, folder, report, weights)
    except BaseException:
      with contextlib.suppress(OSError):
        folder.rmdir()  # succeeds only if nothing was downloaded
      raise


def local() -> list[str]:
  """Return the names of the complete models in weights/."""
  folders = (path.parent for path in WEIGHTS.glob("*/config.json"))
  return sorted(folder.name for folder in folders if is_complete(folder))


def cached_snapshots(repo: str) -> list[Path]:
  """Return a repository's folders in the Hugging Face cache: the pinned revision, then main."""
  cache = Path(setting("XDG_CACHE_HOME") or Path.home() / ".cache")
  home = Path(setting("HF_HOME") or cache / "huggingface")
  root = Path(setting("HF_HUB_CACHE") or home / "hub") / f"models--{repo.replace('/', '--')}"
  revisions = [REVISIONS[repo]] if repo in REVISIONS else []
  with contextlib.suppress(OSError):
    revisions.append((root / "refs" / "main").read_text().strip())
  return [root / "snapshots" / revision for revision in revisions]


def is_complete(folder: Path, weights: bool = True) -> bool:
  """Return whether a folder has all files of a model. A file gets its final name when complete."""
  has_processor = any(all((folder / name).is_file() for name in s) for s in PROCESSOR_FILES)
  if not (folder / "config.json").is_file() or not has_processor:
    return False
  if not weights or (folder / "model.safetensors").is_file():
    return True
  try:
    shards = read_json(folder / INDEX)["weight_map"].values()
    return all((folder / shard).is_file() for shard in shards)
  except (OSError, ValueError, KeyError, AttributeError, TypeError):
    return False


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
  """Hold an exclusive lock on a file. Other processes wait."""
  with open(path, "w") as f:
    try:
      import fcntl

      fcntl.flock(f, fcntl.LOCK_EX)
    except ImportError:
      import msvcrt  # Windows

      msvcrt.locking(f.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
    yield


def download(repo: str, folder: Path, report: Report, weights: bool) -> None:
  """Download the files of a model that its folder lacks, the weights last."""
  revision = REVISIONS.get(repo, "main")

  def get(file: str) -> None:
    if not (folder / file).exists():
      url = f"{endpoint()}/{repo}/resolve/{revision}/{file}"
      fetch(url, folder / file, SHA256.get((repo, file)), report)

  get("config.json")
  is_openai_gpt2 = repo in SHORT_NAMES.values()
  # vocab.json and merges.txt are all that GPT-2's tokenizer needs.
  for names in PROCESSOR_FILES[1:2] if is_openai_gpt2 else PROCESSOR_FILES:
    with contextlib.suppress(FileNotFoundError):
      for file in names:
        get(file)
      break
  else:
    raise FileNotFoundError(
      f"{endpoint()}/{repo} has no supported tokenizer, such as {PROCESSOR_FILES[0][0]}"
    )
  for file in () if is_openai_gpt2 else OPTIONAL_FILES:
    with contextlib.suppress(FileNotFoundError):
      get(file)
  if not weights:
    return
  try:
    get("model.safetensors")
  except FileNotFoundError:
    get(INDEX)
    for shard in sorted(set(read_json(folder / INDEX)["weight_map"].values())):
      if Path(shard).name != shard:
        raise ValueError(f"{folder / INDEX} names a file outside its folder: {shard}") from None
      get(shard)


class Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects, but does not send the token to another host.

  first: the headers of the first redirect, which come from the hub itself.
  """

  def __init__(self):
    self.first: Any = None

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    self.first = self.first or headers
    request = super().redirect_request(req, fp, code, msg, headers, newurl)
    old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
    if request and new[:2] != old[:2]:
      request.remove_header("Authorization")
    return request


def resolve_host(host: str, seconds: float = 5) -> None:
  """Raise Unreachable if the DNS lookup of a host fails or takes longer than `seconds`.

  The system's own timeout can be minutes.
  """
  addresses: list[Any] = []

  def look_up() -> None:
    with contextlib.suppress(OSError):
      addresses.append(socket.getaddrinfo(host, None))

  thread = threading.Thread(target=look_up, daemon=True)
  thread.start()
  thread.join(seconds)
  if not addresses:
    raise Unreachable(
      f"cannot reach {host} (DNS lookup failed). Check the network, or pass a local folder with -m"
    )


def fetch(
  url: str, path: Path, sha256: str | None = None, report: Report = lambda *_: None, tries: int = 5
) -> None:
  """Download a file to path.part, and rename it to path when it is complete.

  A later call resumes an interrupted download. The length is checked against
  Content-Length. The SHA-256 is checked against `sha256` or, if that is None, the hub's ETag.
  """
  part = path.with_name(path.name + ".part")
  if not urllib.request.getproxies():
    resolve_host(urllib.parse.urlsplit(url).hostname or "")
  for attempt in range(tries):
    try:
      return fetch_once(url, path, part, sha256, report)
    except Incomplete as e:
      if attempt == tries - 1:
        raise Unreachable(
          f"{url}: {e}. The received bytes are kept in {part.name}: run the command again to resume"
        ) from e
      time.sleep(0.2 * 2**attempt)


def fetch_once(url: str, path: Path, part: Path, sha256: str | None, report: Report) -> None:
  """Make one attempt to download or resume a file. Raises Incomplete if another may succeed."""
  start = part.stat().st_size if part.exists() else 0
  redirects = Redirects()
  with request(url, start, part, redirects) as response:
    content_range = response.headers.get("Content-Range", "")
    if content_range.startswith(f"bytes {start}-") and response.status == 206:
      with open(part, "rb") as f:
        digest = hashlib.file_digest(f, "sha256")
    else:
      start, digest = 0, hashlib.sha256()
    total = start + int(response.headers.get("Content-Length") or 0)
    free = shutil.disk_usage(path.parent).free
    if free < total - start:
      raise OSError(
        f"{path.name} needs another {(total - start) / 1e6:,.0f} MB, but {path.parent} has only "
        f"{free / 1e6:,.0f} MB left"
      )
    with open(part, "ab" if start else "wb") as f:
      try:
        while block := response.read(1 << 20):
          f.write(block)
          digest.update(block)
          report(path.name, f.tell(), total)
      except (ConnectionError, TimeoutError, http.client.HTTPException) as e:
        raise Incomplete(f"the connection broke: {e}") from e
      f.flush()
      os.fsync(f.fileno())
      if f.tell() < total:
        raise Incomplete(f"the connection ended after {f.tell():,} of {total:,} bytes")
  expected = sha256 or announced_sha256(response, redirects)
  if expected and digest.hexdigest() != expected:
    part.unlink()
    raise ValueError(
      f"{url} has the SHA-256 {digest.hexdigest()}, not {expected}: the file was deleted"
    )
  os.replace(part, path)


def request(url: str, start: int, part: Path, redirects: Redirects):
  """Open a URL from byte `start` on and return the response, a context manager.

  Raises FileNotFoundError, PermissionError, Unreachable, or Incomplete for other HTTP errors.
  """
  headers = {"User-Agent": "tinyformer"}
  if start:
    headers["Range"] = f"bytes={start}-"
  if token := setting("HF_TOKEN"):
    headers["Authorization"] = f"Bearer {token}"
  opener = urllib.request.build_opener(redirects)
  try:
    return opener.open(urllib.request.Request(url, headers=headers), timeout=10)
  except urllib.error.HTTPError as e:
    if e.code == 404:
      raise FileNotFoundError(f"{url} does not exist (404)") from e
    if e.code in (401, 403):
      raise PermissionError(
        f"access to {url} is denied ({e.code}): set HF_TOKEN to a token that may read it, "
        "or check the name"
      ) from e
    if e.code == 416:
      part.unlink()
    raise Incomplete(f"the hub responded with status {e.code}") from e
  except (OSError, http.client.HTTPException) as e:
    raise Unreachable(f"{url} does not respond: {getattr(e, 'reason', e)}") from e


def announced_sha256(response, redirects: Redirects) -> str | None:
  """Return the SHA-256 in the hub's ETag headers, if there is one."""
  tag = (
    (redirects.first or {}).get("X-Linked-Etag")
    or response.headers.get("X-Linked-Etag")
    or response.headers.get("ETag")
    or ""
  ).strip('W/"')
  return tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None
