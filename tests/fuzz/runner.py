"""Run fuzz cases in worker processes with limits of time and memory, and classify the outcomes."""

import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from .targets import TARGETS, Target

CPU_SECONDS = 5
WALL_SECONDS = 60  # a blocked case takes no CPU time
MEMORY_BYTES = 500_000_000
MAX_MESSAGE = 600
# Outcomes that are allowed. Hugging Face also refuses values that we do not use.
REFUSED = "refused with one clear error"
EQUAL = "read, equally to Hugging Face"
READ = "read, without a reference"
STRICTER = "read, but refused by Hugging Face"
ALLOWED = (REFUSED, EQUAL, READ, STRICTER)


class Case(NamedTuple):
  """The number of a case, its target, its outcome, and details of a failure."""

  number: int
  target: str
  outcome: str
  details: str = ""


class TimeLimitReached(BaseException):
  """The case has used too much CPU time. No `except Exception` may catch it."""


def rng_of(seed: int, target: Target, number: int) -> random.Random:
  return random.Random(f"{seed} {target.name} {number}")


def target_of(number: int, targets: list[Target]) -> Target:
  """Return the target of a case. Targets take turns."""
  return targets[number % len(targets)]


def write_case(folder: Path, seed: int, target: Target, number: int) -> str:
  """Write the files of a case into a folder, and return the name of the damaged one."""
  rng = rng_of(seed, target, number)
  files = target.files()
  name = rng.choice(list(target.damaged))
  for file, data in files.items():
    if file == name:
      data = target.damaged[name](data, rng)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(data)
  return name


def clear(message: str) -> bool:
  """Return whether an error message is one short line without control characters."""
  return bool(message) and len(message) <= MAX_MESSAGE and message.isprintable()


def difference(value: object, expected: object) -> str:
  """Return the difference of two values as text; of dicts, only the entries that differ."""
  if isinstance(value, dict) and isinstance(expected, dict):
    keys = [key for key in value.keys() | expected if value.get(key) != expected.get(key)]
    value, expected = ({key: d.get(key) for key in keys} for d in (value, expected))
  return f"{value!r:.400} != {expected!r:.400}"


def run_case(number: int, seed: int, target: Target, compare: bool) -> Case:
  """Run a case in this process, without limits.

  compare: compare what was read with Hugging Face's reading.
  """
  with tempfile.TemporaryDirectory(prefix="fuzz") as temporary:
    folder = Path(temporary)
    name = write_case(folder, seed, target, number)

    def result(outcome: str, details: object = "") -> Case:
      return Case(number, target.name, outcome, f"{name}: {details}"[:1000] if details else "")

    try:
      value = target.read(folder)
    except (ValueError, OSError) as e:
      if isinstance(e, UnicodeError) or not clear(str(e)):
        return result("unclear message", repr(e))
      return result(REFUSED)
    except MemoryError as e:
      return result("too much memory", repr(e))
    except Exception as e:
      return result("other exception", repr(e))
    if not compare or target.reference is None:
      return result(READ)
    try:
      expected = target.reference(folder, value)
    except Exception as e:
      return result(STRICTER, repr(e))
    if expected != value:
      return result("differs from Hugging Face", difference(value, expected))
    return result(EQUAL)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
  """Limit the CPU time of a case. The parent process limits its memory."""

  def stop(*_) -> None:
    raise TimeLimitReached

  signal.signal(signal.SIGPROF, stop)
  signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)


def work(numbers: Connection, seed: int, targets: list[Target], compare: bool) -> None:
  """Run the cases whose numbers arrive, and send each outcome back."""
  while (number := numbers.recv()) is not None:
    target = target_of(number, targets)
    try:
      with time_limit():
        case = run_case(number, seed, target, compare)
    except TimeLimitReached:
      case = Case(number, target.name, "too much time")
    numbers.send(case)


class Worker:
  """A process that runs cases, replaced by a new one if a case ends or blocks it."""

  def __init__(self, seed: int, targets: list[Target], compare: bool):
    self.arguments = (seed, targets, compare)
    self.start()

  def start(self) -> None:
    context = multiprocessing.get_context("fork")
    self.connection, other = context.Pipe()
    self.process = context.Process(target=work, args=(other, *self.arguments), daemon=True)
    self.process.start()
    other.close()
    self.number: int | None = None

  def send(self, number: int) -> None:
    self.number, self.sent, self.memory = number, time.monotonic(), self.resident_bytes()
    self.connection.send(number)

  def resident_bytes(self) -> int:
    """Return the memory of the process that is in RAM."""
    pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

  def poll(self) -> Case | None:
    """Return the outcome of the current case, or None if the case is not finished."""
    assert self.number is not None
    target = target_of(self.number, self.arguments[1])
    outcome = "crash"
    with contextlib.suppress(EOFError, ConnectionError):
      if self.connection.poll(0.01):
        case = self.connection.recv()
        self.number = None
        return case
      too_large = self.resident_bytes() > self.memory + MEMORY_BYTES
      if not too_large and time.monotonic() < self.sent + WALL_SECONDS:
        return None
      outcome = "too much memory" if too_large else "hang"
    case = Case(self.number, target.name, outcome)
    self.stop()
    self.start()
    return case

  def stop(self) -> None:
    self.process.kill()
    self.process.join()
    self.connection.close()


def run(
  numbers: list[int], seed: int, names: list[str], workers: int = 2, compare: bool = True
) -> Iterator[Case]:
  """Yield the outcome of each case. names: the targets; the number of a case selects one."""
  targets = [TARGETS[name] for name in names]
  remaining = iter(numbers)
  pool = [Worker(seed, targets, compare) for _ in range(workers)]
  idle = list(pool)
  unfinished = 0
  try:
    while True:
      while idle and (number := next(remaining, None)) is not None:
        idle.pop().send(number)
        unfinished += 1
      if not unfinished:
        return
      for worker in pool:
        if worker.number is not None and (case := worker.poll()):
          idle.append(worker)
          unfinished -= 1
          yield case
  finally:
    for worker in pool:
      worker.stop()


def table(cases: list[Case]) -> list[str]:
  """Return lines with the number of each outcome by target."""
  counts = Counter((case.target, case.outcome) for case in cases)
  return [f"{target:24} {n:7,}  {outcome}" for (target, outcome), n in sorted(counts.items())]


def failures(cases: list[Case]) -> list[Case]:
  return [case for case in cases if case.outcome not in ALLOWED]
