"""A hub on 127.0.0.1 whose responses are broken, slow, false or dangerous."""

import contextlib
import gzip
import hashlib
import http.server
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable

PAGE = b"<!DOCTYPE html><html><body>Log in to use this network</body></html>"
# What the hub states about a file: its SHA-256 after a redirect, git's SHA-1, an ETag that is not
# a checksum, a weak ETag, or nothing.
IDENTITIES = ("sha256", "git", "etag", "weak", "none")


def commit_of(version: int) -> str:
  """Return the commit of a version of the repository."""
  return f"{version:040x}"


def requested_file(path: str) -> str:
  """Return the file of a model that a URL's path names, such as 1_Pooling/config.json."""
  match = re.search(r"/resolve/[^/]+/(.+)", path)
  return match[1] if match else path.rsplit("/", 1)[1]


class HostileHub(http.server.ThreadingHTTPServer):
  """A hub that answers each request as `choose` decides.

  versions: the contents of the files by name, for each version of the repository.
  version: the number of the version that is served.  identity: one of IDENTITIES.
  choose: called with a file's name; returns the name of a behavior, a key of BEHAVIORS.
  requests: (behavior, file, headers) of each request.
  mirror: the hub to which this one redirects.
  """

  daemon_threads = True

  def __init__(self, versions: list[dict[str, bytes]], seed: int = 0):
    self.versions = versions
    self.version = 0
    self.identity = "etag"
    self.choose: Callable[[str], str] = lambda file: "honest"
    self.requests: list[tuple[str, str, dict[str, str]]] = []
    self.rng = random.Random(seed)
    self.mirror: HostileHub | None = None
    self.closing = threading.Event()
    super().__init__(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server_port}"
    threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

  def close(self) -> None:
    self.closing.set()
    self.shutdown()
    self.server_close()

  def handle_error(self, *_):
    pass  # a client may leave at any time


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def do_GET(self):
    hub = self.server
    self.close_connection = True
    self.file = requested_file(self.path)
    behavior = hub.choose(self.file)
    hub.requests.append((behavior, self.file, dict(self.headers.items())))
    self.version = self.requested_version()
    self.data = hub.versions[self.version].get(self.file)
    if self.data is None:
      return self.send("404 Not Found", {"Content-Length": 0})
    with contextlib.suppress(OSError):
      BEHAVIORS[behavior](self)

  def requested_version(self) -> int:
    """Return the version that a URL names by its commit, or the latest one."""
    versions = range(len(self.server.versions))
    commits = {commit_of(version): version for version in versions}
    revision = re.search(r"/resolve/([^/]+)/", self.path)
    return commits.get(revision[1] if revision else "", self.server.version)

  def send(self, status: str, headers: dict, body: bytes = b"") -> None:
    """Send a response without any check."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    self.wfile.write(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode() + body)

  def identity(self) -> dict[str, str]:
    """Return the headers that identify the file's contents."""
    digest = hashlib.md5(self.data, usedforsecurity=False).hexdigest()
    blob = b"blob %d\0" % len(self.data) + self.data
    return {
      "sha256": {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{sha256(self.data)}"'},
      "git": {
        "ETag": f'"{hashlib.sha1(blob, usedforsecurity=False).hexdigest()}"',
        "X-Repo-Commit": commit_of(self.version),
      },
      "etag": {"ETag": f'"{digest}"'},
      "weak": {"ETag": f'W/"{digest}"'},
      "none": {},
    }[self.server.identity]

  def range(self) -> tuple[str, dict, bytes]:
    """Return the status, headers and body of the correct response."""
    headers = self.identity()
    start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if self.headers.get("If-Range", headers.get("ETag")) != headers.get("ETag"):
      start = 0
    size = len(self.data)
    if start and start >= size:
      return "416 No", headers | {"Content-Range": f"bytes */{size}", "Content-Length": 0}, b""
    body = self.data[start:]
    headers["Content-Length"] = len(body)
    if not start:
      return "200 OK", headers, body
    return "206 OK", headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}, body

  def part_of(self, body: bytes) -> bytes:
    """Return the start of a body, which ends at a random byte."""
    return body[: self.server.rng.randrange(max(1, len(body)))]

  def trickle(self, data: bytes) -> None:
    """Send a byte every 20 ms until the client leaves."""
    for i in range(len(data)):
      if self.server.closing.wait(0.02):
        return
      self.wfile.write(data[i : i + 1])


def sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def honest(self):
  self.send(*self.range())


def page_instead_of_file(self):
  self.send("200 OK", {"Content-Type": "text/html", "Content-Length": len(PAGE)}, PAGE)


def no_content(self):
  self.send("204 No Content", {})


def cut(self):
  """Close the connection before the stated end."""
  status, headers, body = self.range()
  self.send(status, headers, self.part_of(body))


def reset(self):
  """Reset the connection at a random byte, perhaps before the headers."""
  status, headers, body = self.range()
  if self.server.rng.random() < 0.8:
    self.send(status, headers, self.part_of(body))
  linger = struct.pack("ii", 1, 0)
  self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
  self.connection.close()


def cut_without_length(self):
  self.send("200 OK", self.identity(), self.part_of(self.data))


def whole_without_length(self):
  self.send("200 OK", self.identity(), self.data)


def length_too_large(self):
  status, headers, body = self.range()
  self.send(status, headers | {"Content-Length": len(body) + 1000}, body)


def length_too_large_without_ranges(self):
  headers = self.identity() | {"Content-Length": len(self.data) + 1000}
  self.send("200 OK", headers, self.data)


def length_too_small(self):
  headers = self.identity() | {"Content-Length": len(self.data) // 2}
  self.send("200 OK", headers, self.data)


def invalid_length(self):
  length = self.server.rng.choice(["-5", "many", "", "9" * 15, "1e3"])
  self.send("200 OK", self.identity() | {"Content-Length": length}, self.data)


def chunks(data: bytes) -> bytes:
  pieces = [data[i : i + 1000] for i in range(0, len(data), 1000)]
  return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def chunked(self):
  headers = self.identity() | {"Transfer-Encoding": "chunked"}
  self.send("200 OK", headers, chunks(self.data) + b"0\r\n\r\n")


def chunked_cut(self):
  headers = self.identity() | {"Transfer-Encoding": "chunked"}
  self.send("200 OK", headers, self.part_of(chunks(self.data)))


def chunked_nonsense(self):
  headers = self.identity() | {"Transfer-Encoding": "chunked"}
  size = self.server.rng.choice([b"zz", b"-5", b"", b"f" * 40])
  self.send("200 OK", headers, size + b"\r\n" + self.data)


def range_not_satisfiable(self):
  total = self.server.rng.choice(["*", "bytes */7", ""])
  self.send("416 No", {"Content-Range": total, "Content-Length": 0})


def retry_after(self):
  after = self.server.rng.choice(["0", "-1", "soon", "999999999", "Wed, 21 Oct 2099 07:28:00 GMT"])
  status = self.server.rng.choice(["429 Too Many Requests", "503 Service Unavailable"])
  self.send(status, {"Retry-After": after, "Content-Length": 0})


def internal_error(self):
  self.send("500 Internal Server Error", {"Content-Length": len(PAGE)}, PAGE)


def not_found(self):
  self.send("404 Not Found", {"Content-Length": 0})


def redirect_to_another_host(self):
  location = f"{self.server.mirror.url}/cdn/{self.file}?signature=x"
  self.send("302 Found", self.identity() | {"Location": location, "Content-Length": 0})


def redirect_in_a_loop(self):
  status = self.server.rng.choice(["301 M", "302 F", "307 T", "308 P"])
  self.send(status, {"Location": self.path, "Content-Length": 0})


def redirect_to_another_protocol(self):
  location = self.server.rng.choice(
    ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "http://[", "http://127.0.0.1:x/", ""]
  )
  self.send("302 Found", {"Location": location, "Content-Length": 0})


def endless_redirect(self):
  self.send("302 Found", {"Location": self.path})
  send_without_end(self)


def gzip_encoding(self):
  body = gzip.compress(self.data)
  headers = self.identity() | {"Content-Encoding": "gzip", "Content-Length": len(body)}
  self.send("200 OK", headers, body)


def wrong_bytes(self):
  headers = self.identity() | {"Content-Length": len(self.data)}
  self.send("200 OK", headers, bytes(byte ^ 1 for byte in self.data))


def range_of_other_bytes(self):
  """Send a range that begins a byte too late."""
  _, headers, body = self.range()
  size = len(self.data)
  headers["Content-Range"] = f"bytes {size - len(body) + 1}-{size - 1}/{size}"
  headers["Content-Length"] = len(body) - 1
  self.send("206 Partial Content", headers, body[1:])


def invalid_range(self):
  _, headers, body = self.range()
  headers["Content-Range"] = self.server.rng.choice(["bytes", "items 1-2/3", "bytes 0-/9", ""])
  self.send("206 Partial Content", headers, body)


def range_with_a_wrong_total(self):
  _, headers, body = self.range()
  size = len(self.data)
  headers["Content-Range"] = f"bytes {size - len(body)}-{size - 1}/{size + 9}"
  self.send("206 Partial Content", headers, body)


def range_ignored(self):
  self.send("200 OK", self.identity() | {"Content-Length": len(self.data)}, self.data)


def if_range_ignored(self):
  """Send the rest of the branch's next version, under its own ETag, as if nothing had changed."""
  hub = self.server
  hub.version = (hub.version + 1) % len(hub.versions)
  self.version = self.requested_version()
  self.data = hub.versions[self.version][self.file]
  del self.headers["If-Range"]
  self.send(*self.range())


def new_version(self):
  """Change all files of the branch before the response."""
  hub = self.server
  hub.version = (hub.version + 1) % len(hub.versions)
  self.version = self.requested_version()
  self.data = hub.versions[self.version][self.file]
  self.send(*self.range())


def send_without_end(self):
  """Send bytes until the client leaves."""
  end = time.monotonic() + 20
  while not self.server.closing.is_set() and time.monotonic() < end:
    self.wfile.write(self.data or b"x" * 1000)


def endless_body(self):
  self.send("200 OK", self.identity())
  send_without_end(self)


def endless_chunk_header(self):
  self.send("200 OK", {"Transfer-Encoding": "chunked"}, b"5;")
  self.trickle(b"x" * 1000)


def slow_headers(self):
  self.wfile.write(b"HTTP/1.1 200 OK\r\n")
  self.trickle(b"X-Slow: " + b"x" * 1000)


def slow_body(self):
  status, headers, body = self.range()
  self.send(status, headers)
  self.trickle(body)


def silence(self):
  self.server.closing.wait(20)


BEHAVIORS: dict[str, Callable[[Handler], None]] = {
  behavior.__name__: behavior
  for behavior in (
    honest,
    page_instead_of_file,
    no_content,
    cut,
    reset,
    cut_without_length,
    whole_without_length,
    length_too_large,
    length_too_large_without_ranges,
    length_too_small,
    invalid_length,
    chunked,
    chunked_cut,
    chunked_nonsense,
    range_not_satisfiable,
    retry_after,
    internal_error,
    not_found,
    redirect_to_another_host,
    redirect_in_a_loop,
    redirect_to_another_protocol,
    endless_redirect,
    gzip_encoding,
    wrong_bytes,
    range_of_other_bytes,
    invalid_range,
    range_with_a_wrong_total,
    range_ignored,
    if_range_ignored,
    new_version,
    endless_body,
    endless_chunk_header,
    slow_headers,
    slow_body,
    silence,
  )
}
# These wait until a limit of the client is reached.
SLOW = {"endless_chunk_header", "slow_headers", "slow_body", "silence"}
