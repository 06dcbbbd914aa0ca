"""Interleaved rounds of measurements in child processes that are stopped in between."""

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import last_line
from benchmarks.report import lower_is_better
from benchmarks.systems import PEERS

Results = dict[str, dict[str, Any]]
COMMAND = Path(__file__).resolve().with_name("measurements.py")


class Process:
  """A child process that measures one peer with one number of threads.

  It starts at the first measurement and is stopped between measurements.
  """

  def __init__(self, kind: str, name: str, folder: str, threads: int):
    self.name = name
    self.command = [sys.executable, str(COMMAND), kind, name, folder, str(threads)]
    # `end` closes this file.
    self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
    self.process: subprocess.Popen[str] | None = None
    self.figures: dict[str, list[float]] = {}

  def measure(self, figure: str) -> list[float]:
    """Return the process's measurements of a figure.

    Raises RuntimeError, with the last line of the error output, if the process has ended.
    """
    if self.process is None:
      self.process = subprocess.Popen(
        self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
      )
    elif hasattr(signal, "SIGCONT"):
      self.process.send_signal(signal.SIGCONT)
    with contextlib.suppress(BrokenPipeError):
      print(figure, file=self.process.stdin, flush=True)
    answer = self.process.stdout.readline()  # type: ignore[union-attr]
    if not answer:
      self.errors.seek(0)
      raise RuntimeError(last_line(self.errors.read()))
    if hasattr(signal, "SIGSTOP"):
      # The threads of an idle process may wait for work in a busy loop.
      self.process.send_signal(signal.SIGSTOP)
    return json.loads(answer)

  def end(self) -> None:
    if self.process is not None:
      self.process.kill()
      # A helper that the process started may still hold its pipes, so do not wait for their end.
      self.process.wait()
      with contextlib.suppress(BrokenPipeError):
        self.process.stdin.close()  # type: ignore[union-attr]
      self.process.stdout.close()  # type: ignore[union-attr]
    self.errors.close()


@dataclass
class Schedule:
  """The number of counted rounds and of uncounted warm-up rounds, and what precedes each round.

  threads: the only number of threads to try, or None for those of each peer.
  """

  repeat: int
  warmup: int = 0
  before_round: Callable[[], None] = lambda: None
  threads: int | None = None


def measure_in_rounds(
  kind: str, names: list[str], folder: Path, figures: list[str], schedule: Schedule
) -> Results:
  """Measure each peer's figures in interleaved rounds.

  If a peer is measured with several numbers of threads, the better median counts. A peer that
  fails is reported on standard error and skipped from then on.
  """
  processes = [
    Process(kind, name, str(folder), threads)
    for name in names
    for threads in ([schedule.threads] if schedule.threads else PEERS[name][2])
  ]
  try:
    run_rounds(kind, processes, figures, schedule)
  finally:
    for process in processes:
      process.end()
  results: Results = {name: {} for name in names}
  for process in processes:
    for figure, values in process.figures.items():
      better = min if lower_is_better(figure) else max
      other_values = results[process.name].get(figure, values)
      results[process.name][figure] = better(values, other_values, key=statistics.median)
  return results


def run_rounds(kind: str, processes: list[Process], figures: list[str], schedule: Schedule) -> None:
  """Add the measurements of the counted rounds to each process's `figures`."""
  running = list(processes)
  num_rounds = schedule.warmup + schedule.repeat
  for round_index in range(num_rounds):
    print(f"{kind}: round {round_index + 1} of {num_rounds}", file=sys.stderr, flush=True)
    schedule.before_round()
    for figure in figures:
      for process in list(running):
        try:
          values = process.measure(figure)
        except RuntimeError as error:
          print(f"{process.name}: {error}", file=sys.stderr)
          running.remove(process)
        else:
          if round_index >= schedule.warmup and values:
            process.figures[figure] = process.figures.get(figure, []) + values
