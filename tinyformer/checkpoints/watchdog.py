"""HTTP connections that a thread shuts down if the server is too slow.

A socket's timeout does not suffice: a server that sends one byte every nine seconds never exceeds
a timeout of ten seconds.
"""

import contextlib
import functools
import http.client
import socket
import threading
import time
import urllib.request


class Watchdog:
  """Shuts down a connection when its time is up, so that a blocked read ends.

  expired: whether the time was up. Use it as a context manager.
  """

  def __init__(self, seconds: float):
    self.deadline = time.monotonic() + seconds
    self.expired = False
    self.sock: socket.socket | None = None
    self.stopped = threading.Event()
    self.changed = threading.Event()  # the deadline has changed, or the context has ended
    self.thread = threading.Thread(target=self.watch, daemon=True)

  def __enter__(self) -> "Watchdog":
    self.thread.start()
    return self

  def __exit__(self, *_) -> None:
    self.stopped.set()
    self.changed.set()
    self.thread.join()

  def restart(self, seconds: float) -> None:
    """Set the remaining time."""
    self.deadline = time.monotonic() + seconds
    self.changed.set()

  def watch(self) -> None:
    """Wait until the deadline, then shut down every socket until the context ends."""
    while (remaining := self.deadline - time.monotonic()) > 0:
      self.changed.wait(remaining)
      self.changed.clear()
      if self.stopped.is_set():
        return
    self.expired = True
    while not self.stopped.wait(0.02):
      # A redirect may open another connection after the deadline.
      with contextlib.suppress(OSError, AttributeError):
        self.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]


class WatchedConnection(http.client.HTTPConnection):
  """A connection whose socket a watchdog knows."""

  def __init__(self, watchdog: Watchdog, host: str, **settings):
    self.watchdog = watchdog
    super().__init__(host, **settings)

  def connect(self) -> None:
    super().connect()
    self.watchdog.sock = self.sock


class WatchedTLSConnection(WatchedConnection, http.client.HTTPSConnection):
  """A WatchedConnection with TLS."""


class HTTPHandler(urllib.request.HTTPHandler):
  """Opens http URLs with watched connections."""

  def __init__(self, watchdog: Watchdog):
    super().__init__()
    self.watchdog = watchdog

  def http_open(self, request):
    return self.do_open(functools.partial(WatchedConnection, self.watchdog), request)


class HTTPSHandler(urllib.request.HTTPSHandler):
  """Opens https URLs with watched connections."""

  def __init__(self, watchdog: Watchdog):
    super().__init__()
    self.watchdog = watchdog

  def https_open(self, request):
    return self.do_open(functools.partial(WatchedTLSConnection, self.watchdog), request)


class NoRedirects(urllib.request.HTTPRedirectHandler):
  """Makes a redirect an HTTPError, whose body is not read."""

  def redirect_request(self, *_):
    return None


def build_opener(watchdog: Watchdog) -> urllib.request.OpenerDirector:
  """Return an opener whose connections are watched and which follows no redirects."""
  return urllib.request.build_opener(HTTPHandler(watchdog), HTTPSHandler(watchdog), NoRedirects())
