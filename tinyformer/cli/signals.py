"""What Ctrl-C, a termination and a closed terminal do to a command."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tinyformer.files import delete_unfinished_files

# SIGTERM is what `kill` sends, SIGHUP is sent when the terminal is closed. Windows has no SIGHUP.
SIGNALS = [
  getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def hide_interrupts() -> None:
  """Let Ctrl-C end the process without a traceback while a command is still importing modules."""
  previous = sys.excepthook

  def hook(kind, value, traceback) -> None:
    if not issubclass(kind, KeyboardInterrupt):
      previous(kind, value, traceback)

  sys.excepthook = hook


hide_interrupts()


@contextlib.contextmanager
def handler(function: Callable[[int, Any], None]) -> Iterator[None]:
  """Handle the signals with a function, except those that the process ignores.

  Outside the main thread, which handles all signals, do nothing.
  """
  previous = {}
  if threading.current_thread() is threading.main_thread():
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, function) for number in handled}
  try:
    yield
  finally:
    for number, old in previous.items():
      signal.signal(number, old)


def end_process(number: int, _) -> None:
  """End the process with a signal, as if it had no handler, but leave no unfinished file.

  An exception would not always end it: Python ignores those in callbacks and destructors.
  """
  delete_unfinished_files()
  with contextlib.suppress(OSError, ValueError):
    if sys.stderr.isatty():
      os.write(sys.stderr.fileno(), b"\n")
  signal.signal(number, signal.SIG_DFL)
  signal.raise_signal(number)


def ending_process() -> contextlib.AbstractContextManager[None]:
  """Return a context in which each signal ends the process at once."""
  return handler(end_process)


@contextlib.contextmanager
def raising_interrupt() -> Iterator[None]:
  """Let Ctrl-C raise KeyboardInterrupt, as Python does unless a command changes it."""
  previous = signal.getsignal(signal.SIGINT)
  if previous == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
    yield
    return
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
  """Defer the first signal, and yield a function that returns its number, or 0 without a signal.

  A second signal has its usual effect.
  """
  received = 0

  def note_first(number: int, _) -> None:
    nonlocal received
    received = number
    for other, old in previous.items():
      signal.signal(other, old)

  previous = {number: signal.getsignal(number) for number in SIGNALS}
  with handler(note_first):
    yield lambda: received
