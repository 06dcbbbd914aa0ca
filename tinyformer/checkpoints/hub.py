"""Finds a model's folder by name: in weights/, in the user's Hugging Face cache, or on the hub, from where it downloads it."""

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

from tinyformer.checkpoints.safetensors import read_json

WEIGHTS = Path(__file__).parent.parent.parent / "weights"
SHORT = {
  name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
PINS = {
  "openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e"
}  # revisions; of others, main
SHA256 = {
  (
    "openai-community/gpt2",
    "model.safetensors",
  ): "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
}
# What a model needs beside config.json and the weights: one of these sets, a text's tokenizer or what an image has to be like. And what may be there.
SETS = (
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
SMALL = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "preprocessor_config.json",
)
INDEX = "model.safetensors.index.json"
Report = Callable[[str, int, int], None]  # a file's name, its bytes so far, its bytes in all


class Unreachable(OSError):
  """The hub does not answer, or may not be asked."""


def setting(name: str) -> str:
  return os.environ.get(name, "").strip()


def endpoint() -> str:
  return (setting("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def find(
  name: str, offline: bool = False, report: Report = lambda *_: None, weights: bool = True
) -> Path:
  """The folder of `gpt2`, `owner/repo`, or a path to one; downloaded into weights/ where it is not on disk and not `offline`. weights: or its vocabulary alone.

  Raises ValueError for a name that cannot be one, FileNotFoundError where the hub has no such model, PermissionError where it wants a token,
  Unreachable (of these alone, the hub may work another time).
  """
  if (Path(name) / "config.json").exists():
    return Path(name)
  if name in local():
    return WEIGHTS / name
  if name and Path(name).is_dir():
    raise FileNotFoundError(
      f"{name} has no config.json: no folder of a model, or none was saved there yet"
    )
  repo = SHORT.get(name, name)
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or ".." in repo:
    raise FileNotFoundError(
      f"{name} is no folder with a config.json, no owner/repo, and none of {', '.join([*local(), *(s for s in SHORT if s not in local())])}"
    )
  folder = WEIGHTS / (name if name in SHORT else repo.replace("/", "--"))
  for candidate in (folder, *in_cache(repo)):
    if whole(candidate, weights):
      return candidate
  if offline or setting("HF_HUB_OFFLINE").upper() in ("1", "ON", "YES", "TRUE"):
    raise Unreachable(f"{name} is not on disk, and the hub may not be asked (offline)")
  WEIGHTS.mkdir(parents=True, exist_ok=True)
  with locked(
    WEIGHTS / f".{folder.name}.lock"
  ):  # beside the folder: another process may wait for it while the folder comes and goes
    try:
      folder.mkdir(exist_ok=True)
      if not whole(folder, weights):
        download(repo, folder, report, weights)
    except BaseException:
      with contextlib.suppress(OSError):
        folder.rmdir()  # if nothing came
      raise
  return folder


def local() -> list[str]:
  """The models in weights/, by name."""
  return sorted(p.parent.name for p in WEIGHTS.glob("*/config.json") if whole(p.parent))


def in_cache(repo: str) -> list[Path]:
  """Where the Hugging Face cache keeps a repository: its pinned revision, or what its main branch was."""
  home = Path(
    setting("HF_HOME") or Path(setting("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
  )
  root = Path(setting("HF_HUB_CACHE") or home / "hub") / f"models--{repo.replace('/', '--')}"
  revisions = [PINS[repo]] if repo in PINS else []
  with contextlib.suppress(OSError):
    revisions.append((root / "refs" / "main").read_text().strip())
  return [root / "snapshots" / revision for revision in revisions]


def whole(folder: Path, weights: bool = True) -> bool:
  """Whether a folder has all its files. Each took its name only once it was whole."""
  if not (folder / "config.json").is_file() or not any(
    all((folder / name).is_file() for name in names) for names in SETS
  ):
    return False
  if not weights or (folder / "model.safetensors").is_file():
    return True
  try:
    return all(
      (folder / shard).is_file() for shard in read_json(folder / INDEX)["weight_map"].values()
    )
  except (OSError, ValueError, KeyError, AttributeError):
    return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
  """One process at a time; the others wait."""
  with open(path, "w") as f:
    try:
      import fcntl

      fcntl.flock(f, fcntl.LOCK_EX)
    except ImportError:
      import msvcrt  # Windows

      msvcrt.locking(f.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
    yield


def download(repo: str, folder: Path, report: Report, weights: bool) -> None:
  """Fetches a model's files that are not there yet, the weights last."""
  revision = PINS.get(repo, "main")

  def get(file: str) -> None:
    if not (folder / file).exists():
      fetch(
        f"{endpoint()}/{repo}/resolve/{revision}/{file}",
        folder / file,
        SHA256.get((repo, file)),
        report,
      )

  get("config.json")
  plain = repo in SHORT.values()  # of OpenAI's, two files say it all
  for names in SETS[1:2] if plain else SETS:
    with contextlib.suppress(FileNotFoundError):
      for file in names:
        get(file)
      break
  else:
    raise FileNotFoundError(
      f"{endpoint()}/{repo} has no tokenizer that is known here, such as {SETS[0][0]}"
    )
  for file in () if plain else SMALL:
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
  """Follows redirects without taking the token to another host, and keeps the headers of the first answer: the hub's own."""

  def __init__(self):
    self.first: Any = None

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    self.first = self.first or headers
    new = super().redirect_request(req, fp, code, msg, headers, newurl)
    if new and urllib.parse.urlsplit(newurl)[:2] != urllib.parse.urlsplit(req.full_url)[:2]:
      new.remove_header("Authorization")
    return new


def known(host: str, seconds: float = 5) -> None:
  """Raises Unreachable where a host's name is not found, also where nothing answers the question: that can take a system minutes."""
  found: list[Any] = []

  def look() -> None:
    with contextlib.suppress(OSError):
      found.append(socket.getaddrinfo(host, None))

  (thread := threading.Thread(target=look, daemon=True)).start()
  thread.join(seconds)
  if not found:
    raise Unreachable(f"{host} is not found: is there a network?")


def fetch(
  url: str, path: Path, sha256: str | None = None, report: Report = lambda *_: None, tries: int = 5
) -> None:
  """Downloads a file to path.part and, once it is whole, to path; a later call goes on from where one broke off.

  Whole is what has the sha256 given, else the one in the hub's ETag, else the length announced.
  """
  part = path.with_name(path.name + ".part")
  if not urllib.request.getproxies():
    known(urllib.parse.urlsplit(url).hostname or "")
  for attempt in range(tries):
    try:
      return fetch_once(url, path, part, sha256, report)
    except Incomplete as e:
      if attempt == tries - 1:
        raise Unreachable(
          f"{url}: {e}; what came is kept in {part.name}, another run goes on from there"
        ) from e
      time.sleep(0.2 * 2**attempt)


class Incomplete(Exception):
  """The connection ended before the file did."""


def fetch_once(url: str, path: Path, part: Path, sha256: str | None, report: Report) -> None:
  have = part.stat().st_size if part.exists() else 0
  headers = (
    {"User-Agent": "tinyformer"}
    | ({"Range": f"bytes={have}-"} if have else {})
    | ({"Authorization": f"Bearer {token}"} if (token := setting("HF_TOKEN")) else {})
  )
  redirects = Redirects()
  try:
    response = urllib.request.build_opener(redirects).open(
      urllib.request.Request(url, headers=headers), timeout=10
    )
  except urllib.error.HTTPError as e:
    if e.code == 404:
      raise FileNotFoundError(f"{url} is not there (404)") from e
    if e.code in (401, 403):
      raise PermissionError(
        f"{url} is not open to you ({e.code}): set HF_TOKEN to a token that may read it, or check the name"
      ) from e
    if e.code == 416:
      part.unlink()
    raise Incomplete(f"the hub answered {e.code}") from e
  except (OSError, http.client.HTTPException) as e:
    raise Unreachable(f"{url} does not answer: {getattr(e, 'reason', e)}") from e
  with response:
    if (
      response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
      and response.status == 206
    ):
      with open(part, "rb") as f:
        digest = hashlib.file_digest(f, "sha256")
    else:
      have, digest = 0, hashlib.sha256()
    total = have + int(response.headers.get("Content-Length") or 0)
    if (free := shutil.disk_usage(path.parent).free) < total - have:
      raise OSError(
        f"{path.name} needs {(total - have) / 1e6:,.0f} MB more, {path.parent} has {free / 1e6:,.0f} MB left"
      )
    with open(part, "ab" if have else "wb") as f:
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
  tag = (
    (redirects.first or {}).get("X-Linked-Etag")
    or response.headers.get("X-Linked-Etag")
    or response.headers.get("ETag")
    or ""
  ).strip('W/"')
  want = sha256 or (tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None)
  if want and digest.hexdigest() != want:
    part.unlink()
    raise ValueError(
      f"{url} came with the sha256 {digest.hexdigest()}, not {want}: it was thrown away"
    )
  os.replace(part, path)
