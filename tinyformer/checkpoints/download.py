"""Download one file over HTTP, and keep it only if it is shown to be complete.

A file is complete if its checksum is the one that the hub announced. Without a checksum, its length
must be the announced one and its contents must have the expected format. Without a length either,
its contents must show where the file ends.
"""

import contextlib
import email.message
import email.utils
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import string
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tinyformer.checkpoints import file_formats
from tinyformer.checkpoints.watchdog import Watchdog, build_opener
from tinyformer.files import read_json, write_text

# Called with a file's name, the bytes received so far, and its total size in bytes.
Report = Callable[[str, int, int], None]
Headers = email.message.Message
REDIRECTS = (301, 302, 303, 307, 308)
BLOCK_BYTES = 1 << 20


class Unreachable(OSError):  # noqa: N818
  """The hub does not respond, or must not be contacted."""


class Incomplete(Exception):  # noqa: N818
  """An attempt failed, but another may succeed.

  wait: the seconds that the server asks to wait before.
  """

  def __init__(self, problem: str, wait: float = 0):
    super().__init__(problem)
    self.wait = wait


@dataclass(frozen=True)
class Limits:
  """How long a download may take, in seconds, and how large it may be, in bytes.

  idle: time without a byte, and for opening a connection.
  opening: time for all redirects and headers of one request.
  window, window_bytes: the server must send that many bytes in that time.
  attempts: number of requests per file.  pause: time before the second attempt; then it doubles.
  retry_after: longest time to wait if the server asks to wait.
  redirects: number of redirects of one request.
  small_file: size of a file other than the weights.
  """

  idle: float = 10
  opening: float = 60
  window: float = 60
  window_bytes: int = 1 << 16
  attempts: int = 5
  pause: float = 0.2
  retry_after: float = 60
  redirects: int = 10
  small_file: int = file_formats.MAX_SMALL_FILE_BYTES


LIMITS = Limits()


def setting(name: str) -> str:
  """Return an environment variable without surrounding blanks, or an empty string."""
  return os.environ.get(name, "").strip()


class PartialFile:
  """The bytes received so far, in `name.part`, and which file they belong to, in `name.part.json`.

  etag: the strong ETag of the response, or "".  checksum: see `announced_checksum`.
  total: the file's announced size, or None.
  """

  def __init__(self, path: Path):
    self.path = path.with_name(path.name + ".part")
    self.record = path.with_name(path.name + ".part.json")
    try:
      record = read_json(self.record)
    except (OSError, ValueError):
      record = {}
    self.etag = str(record.get("etag") or "")
    self.checksum = str(record.get("checksum") or "")
    self.total = record.get("total")

  def size(self) -> int:
    """Return the number of bytes to resume from.

    It is 0 if the bytes could not be shown to belong to the same file as the rest. Earlier versions
    left such bytes.
    """
    if not (self.etag or self.checksum) or not self.path.is_file():
      return 0
    return self.path.stat().st_size

  def begin(self, etag: str, checksum: str, total: int | None) -> None:
    """Delete the bytes, and store what the next bytes belong to."""
    self.path.unlink(missing_ok=True)
    self.etag, self.checksum, self.total = etag, checksum, total
    write_text(self.record, json.dumps({"etag": etag, "checksum": checksum, "total": total}) + "\n")

  def delete(self) -> None:
    self.path.unlink(missing_ok=True)
    self.record.unlink(missing_ok=True)
    self.etag = self.checksum = ""
    self.total = None


def fetch(url: str, path: Path, sha256: str | None = None, report: Report = lambda *_: None) -> str:
  """Download a file to path.part, and rename it to path when it is complete.

  Return the commit to which the file belongs, or "" if the server does not name it.
  A later call resumes an interrupted download if the hub states with an ETag that the file has not
  changed. `sha256`, or the checksum that the hub announces, is verified.
  Raises FileNotFoundError or PermissionError if the hub refuses the file, Unreachable if no attempt
  succeeds, and ValueError if the received file is not the expected one.
  """
  limits = LIMITS
  if not urllib.request.getproxies():
    resolve_host(urllib.parse.urlsplit(url).hostname or "")
  part = PartialFile(path)
  for attempt in range(limits.attempts):
    is_last = attempt == limits.attempts - 1
    try:
      current = Attempt(url, path, part, sha256 or "", limits)
      current.run(report, is_last)
      return current.commit
    except Incomplete as e:
      if is_last or e.wait > limits.retry_after:
        raise give_up(url, part, e) from e
      time.sleep(max(e.wait, limits.pause * 2**attempt))
    except Unreachable as e:
      raise give_up(url, part, e) from e
  raise AssertionError("the last attempt returns or raises")


def give_up(url: str, part: PartialFile, problem: Exception) -> Unreachable:
  """Return the exception for a download that has failed, and delete bytes that are of no use."""
  if not (kept := part.size()):
    part.delete()
    return Unreachable(f"{url}: {problem}")
  return Unreachable(
    f"{url}: {problem}. {kept:,} received bytes are kept in {part.path.name}: run the command "
    "again to resume"
  )


class Attempt:
  """One attempt to download or to resume a file."""

  def __init__(self, url: str, path: Path, part: PartialFile, sha256: str, limits: Limits):
    self.url, self.path, self.part, self.sha256, self.limits = url, path, part, sha256, limits
    self.is_weights = path.name.endswith(".safetensors")
    self.start = part.size()
    self.total: int | None = None  # the file's stated size
    self.has_stated_end = False  # whether the hub states the size, or marks the last byte
    self.problem = ""  # why the body ended early
    self.commit = ""  # to which the file belongs, if the hub names it
    self.digest = hashlib.sha256()

  def run(self, report: Report, is_last: bool) -> None:
    """Download the file. Raises Incomplete if another attempt may succeed."""
    with Watchdog(self.limits.opening) as watchdog:
      try:
        response, hops = open_url(self.url, self.headers(), watchdog, self.limits)
      except urllib.error.HTTPError as e:
        with e:
          return self.handle_error(e)
      with response:
        if watchdog.expired:
          # The HTTP library takes the end of the connection for the end of the headers.
          raise slow_headers(self.limits)
        self.examine(response, hops)
        self.receive(response, watchdog, report)
    self.finish(is_last)

  def headers(self) -> dict[str, str]:
    """Return the headers of the request."""
    headers = {"User-Agent": "tinyformer"}
    if self.start:
      headers["Range"] = f"bytes={self.start}-"
      if self.part.etag:
        headers["If-Range"] = self.part.etag
    if token := setting("HF_TOKEN"):
      if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("HF_TOKEN contains a blank or a character that is not ASCII")
      headers["Authorization"] = f"Bearer {token}"
    return headers

  def handle_error(self, e: urllib.error.HTTPError) -> None:
    """Raise the exception for an HTTP error, or finish if all bytes are already here."""
    if e.code == 404:
      raise FileNotFoundError(f"{self.url} does not exist (404)") from e
    if e.code in (401, 403):
      raise PermissionError(
        f"access to {self.url} is denied ({e.code}): set HF_TOKEN to a token that may read it, "
        "or check the name"
      ) from e
    if e.code == 416 and self.start:
      # The request began after the last byte. If the file ends there, all of it is here.
      ends_here = e.headers.get("Content-Range", "").strip() == f"bytes */{self.start}"
      is_same = bool(self.part.etag) and e.headers.get("ETag", "").strip() == self.part.etag
      if ends_here and (is_same or self.part.checksum):
        self.has_stated_end = True
        self.hash_partial_file()
        return self.finish(is_last=False)
      self.part.delete()
    wait = seconds_to_wait(e.headers.get("Retry-After", ""))
    again = f" and asks to wait {wait:,.0f} seconds" if wait else ""
    raise Incomplete(f"the hub responded with status {e.code}{again}", wait) from e

  def examine(self, response: Any, hops: list[Headers]) -> None:
    """Find the first byte in a response, and the file's size.

    A response that starts at byte 0 begins a new partial file.
    Raises Incomplete if the response is of no use or belongs to another file.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
      raise Incomplete(f"the hub sent the file compressed ({encoding}), which was not requested")
    etag = response.headers.get("ETag", "").strip()
    etag = etag if re.fullmatch(r'"[!#-~]+"', etag) else ""  # a weak one does not identify bytes
    checksum = self.sha256 or announced_checksum(hops)
    self.commit = announced_commit(hops)
    if response.status == 200:
      self.start, self.total = 0, response.length
      self.part.begin(etag, checksum, self.total)
    elif response.status == 206 and self.start:
      self.total = self.resumed_total(response, etag, checksum)
      self.hash_partial_file()
    else:
      raise Incomplete(f"the hub responded with status {response.status}, without the file")
    self.has_stated_end = self.total is not None
    self.check_size()

  def resumed_total(self, response: Any, etag: str, checksum: str) -> int:
    """Return the file's size from Content-Range.

    Raises Incomplete, and deletes the bytes, if the response is not the rest of the same file.
    """
    content_range = response.headers.get("Content-Range", "").strip()
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range)
    first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
    is_rest = first == self.start and first <= last < total
    if response.length not in (None, last - first + 1):
      is_rest = False
    if checksum and self.part.checksum:
      is_same = checksum == self.part.checksum
    else:
      is_same = bool(etag) and etag == self.part.etag
    if is_rest and is_same and self.part.total in (None, total):
      return total
    self.part.delete()
    if is_rest:
      raise Incomplete("the file has changed on the hub since the download began")
    raise Incomplete(f"the hub sent another range than requested ({content_range or 'none'})")

  def check_size(self) -> None:
    """Raise an exception if a file of the stated size is too large."""
    if self.total is None:
      return
    if not self.is_weights and self.total > self.limits.small_file:
      self.refuse_size()
    needed = self.total - self.start
    free = free_bytes(self.path.parent)
    if free < needed:
      raise OSError(
        f"{self.path.name} needs another {needed / 1e6:,.0f} MB, but {self.path.parent} has only "
        f"{free / 1e6:,.0f} MB left"
      )

  def refuse_size(self) -> NoReturn:
    self.part.delete()
    raise ValueError(
      f"{self.url} has more than {self.limits.small_file:,} bytes, the limit for a file other than "
      "the weights"
    )

  def hash_partial_file(self) -> None:
    with open(self.part.path, "rb") as f:
      self.digest = hashlib.file_digest(f, "sha256")  # type: ignore[assignment]

  def receive(self, response: Any, watchdog: Watchdog, report: Report) -> None:
    """Append the response's body to the partial file."""
    size = self.start
    try:
      with open(self.part.path, "ab" if size else "wb") as f:
        for block in self.blocks(response, watchdog):
          f.write(block)
          self.digest.update(block)
          size += len(block)
          report(self.path.name, size, max(size, self.total or 0))
        f.flush()
        os.fsync(f.fileno())
    except OSError as e:
      # The system does not say which file did not fit on the disk.
      raise OSError(e.errno, e.strerror or str(e), str(self.part.path)) from e
    if not self.problem and self.total is not None and size < self.total:
      self.problem = f"the connection ended after {size:,} of {self.total:,} bytes"

  def blocks(self, response: Any, watchdog: Watchdog) -> Iterator[bytes]:
    """Yield the response's body. If it ends early, set `problem`.

    A body of unknown length ends when it is too long for the file.
    """
    limits, size, start_of_file = self.limits, self.start, b""
    longest = None if self.is_weights else limits.small_file
    next_check = size
    while self.total is None or size < self.total:
      if size >= next_check:
        watchdog.restart(limits.window)
        next_check = size + limits.window_bytes
      try:
        block = response.read1(BLOCK_BYTES if self.total is None else self.total - size)
      except (OSError, http.client.HTTPException, ValueError) as e:
        block, self.problem = b"", f"the connection broke ({reason(e)})"
      if watchdog.expired:
        self.problem = f"fewer than {limits.window_bytes:,} bytes came in {limits.window:g} seconds"
      if not block:
        # The last chunk of a chunked body is marked.
        self.has_stated_end = self.has_stated_end or response.chunked
        return
      yield block
      size += len(block)
      if self.total is None and longest is None:
        start_of_file += block
        try:
          longest = file_formats.safetensors_size(start_of_file)
        except ValueError:
          return
      if self.total is None and longest is not None and size > longest:
        if not self.is_weights:
          self.refuse_size()
        return

  def finish(self, is_last: bool) -> None:
    """Rename the partial file if it is complete, and raise an exception otherwise."""
    if checksum := self.part.checksum:
      self.verify(checksum)
    else:
      self.check_format(is_last)
    os.replace(self.part.path, self.path)
    self.part.delete()

  def verify(self, checksum: str) -> None:
    """Raise an exception if the partial file has another checksum."""
    if len(checksum) == 40:
      name, actual = "SHA-1 as a git blob", git_blob_id(self.part.path)
    else:
      name, actual = "SHA-256", self.digest.hexdigest()
    if actual == checksum:
      return
    if self.problem:
      raise Incomplete(self.problem)
    self.refuse_web_page()
    if not self.has_stated_end:
      raise Incomplete("the connection ended before the file did")
    self.part.delete()
    if self.start:
      raise Incomplete(f"the resumed file has the {name} {actual}, not {checksum}")
    raise ValueError(f"{self.url} has the {name} {actual}, not {checksum}: the file was deleted")

  def check_format(self, is_last: bool) -> None:
    """Raise an exception if neither the announced length nor the contents prove completeness."""
    name = self.path.name
    self.refuse_web_page()
    try:
      file_formats.check(self.part.path, name)
    except ValueError as e:
      if self.has_stated_end and not self.problem:
        self.part.delete()
      raise Incomplete(self.problem or f"{name} is damaged: {e}") from e
    shows_its_end = file_formats.shows_its_end(name)
    if self.problem and not (self.is_weights or (is_last and shows_its_end)):
      raise Incomplete(self.problem)
    if not self.has_stated_end and not shows_its_end:
      raise Incomplete(f"the hub does not state the size of {name}, which may be incomplete")

  def refuse_web_page(self) -> None:
    """Raise Unreachable if the partial file is a web page."""
    if file_formats.is_web_page(self.part.path):
      self.part.delete()
      raise Unreachable("a web page came instead of the file: does the network require a login?")


def open_url(
  url: str, headers: dict[str, str], watchdog: Watchdog, limits: Limits
) -> tuple[Any, list[Headers]]:
  """Open a URL and return the response, and the headers of all responses on the way to it.

  The token is sent to the URL's own host only.
  Raises HTTPError, Unreachable, or Incomplete if another attempt may succeed.
  """
  opener = build_opener(watchdog)
  hops: list[Headers] = []
  for _ in range(limits.redirects + 1):
    try:
      response = opener.open(urllib.request.Request(url, headers=headers), timeout=limits.idle)
      return response, [*hops, response.headers]
    except urllib.error.HTTPError as e:
      if e.code not in REDIRECTS:
        raise
      with e:
        target = redirect_target(url, e.headers)
      hops.append(e.headers)
    except (OSError, http.client.HTTPException, ValueError) as e:
      raise opening_problem(e, watchdog, limits) from e
    if urllib.parse.urlsplit(target)[:2] != urllib.parse.urlsplit(url)[:2]:
      headers = {name: value for name, value in headers.items() if name != "Authorization"}
    url = target
  raise Unreachable(f"the hub redirected more than {limits.redirects} times")


def redirect_target(url: str, headers: Headers) -> str:
  """Return the URL to which a response redirects. Raises Unreachable if it is not allowed."""
  location = headers.get("Location", "")
  location = urllib.parse.quote(location, encoding="iso-8859-1", safe=string.punctuation)
  try:
    target = urllib.parse.urljoin(url, location)
    old, new = urllib.parse.urlsplit(url).scheme, urllib.parse.urlsplit(target).scheme
  except ValueError as e:
    raise Incomplete(f"the hub redirected to the invalid address {location}") from e
  if not location or new not in ("http", "https") or (old, new) == ("https", "http"):
    raise Unreachable(f"the hub redirected to {location or 'no address'}, which is not allowed")
  return target


def opening_problem(e: Exception, watchdog: Watchdog, limits: Limits) -> Exception:
  """Return the exception to raise if a connection failed before the headers were complete."""
  if watchdog.expired:
    return slow_headers(limits)
  cause = e.reason if isinstance(e, urllib.error.URLError) else e
  is_lasting = cause is not e and not isinstance(cause, ConnectionResetError | BrokenPipeError)
  if is_lasting or isinstance(cause, TimeoutError):
    return Unreachable(f"the hub does not respond ({reason(cause)})")
  return Incomplete(f"the connection broke ({reason(cause)})")


def slow_headers(limits: Limits) -> Unreachable:
  return Unreachable(f"the hub did not send its headers within {limits.opening:g} seconds")


def reason(e: object) -> str:
  """Return what an exception says, without its number."""
  return str(getattr(e, "strerror", None) or e) or type(e).__name__


def free_bytes(folder: Path) -> int:
  """Return the free space of a folder's disk in bytes."""
  return shutil.disk_usage(folder).free


def seconds_to_wait(retry_after: str) -> float:
  """Return the seconds in a Retry-After header, a number or a date, or 0 if it is invalid."""
  text = retry_after.strip()
  if re.fullmatch(r"\d{1,9}", text):
    return float(text)
  try:
    return max(0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
  except (ValueError, OverflowError, OSError):
    return 0


def announced_checksum(hops: list[Headers]) -> str:
  """Return the checksum in the hub's ETag headers, or "".

  It is the SHA-256 of a large file, with 64 digits. Other files have git's SHA-1 with 40 digits,
  but only the hub itself, which names the commit too, is known to use it.
  """
  linked = [headers["X-Linked-Etag"] for headers in hops if "X-Linked-Etag" in headers]
  tag = (linked[0] if linked else hops[-1].get("ETag", "")).strip().strip('W/"')
  is_git = re.fullmatch(r"[0-9a-f]{40}", tag) and any("X-Repo-Commit" in h for h in hops)
  return tag if is_git or re.fullmatch(r"[0-9a-f]{64}", tag) else ""


def announced_commit(hops: list[Headers]) -> str:
  """Return the commit that the hub's headers name, or ""."""
  commits = [headers.get("X-Repo-Commit", "").strip() for headers in hops]
  return next((commit for commit in commits if re.fullmatch(r"[0-9a-f]{40}", commit)), "")


def git_blob_id(path: Path) -> str:
  """Return the SHA-1 under which git stores a file.

  Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects.
  """
  data = path.read_bytes()
  return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


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
