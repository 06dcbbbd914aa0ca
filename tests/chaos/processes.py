"""Start the commands as processes, and end them with signals at random moments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

SETTINGS = "--vocab 300 --dim 16 --heads 2 --layers 1 --context 16 --batch 4 --warmup 5 --lr 1e-2"
TRAIN = [*SETTINGS.split(), "--sample", "0", "--dropout", "0.2"]


class Outcome(NamedTuple):
  """How a process ended: its status (minus the signal that ended it), and what it printed."""

  status: int
  out: bytes
  err: bytes


def enable_signals() -> None:
  """Undo what a shell or `nohup` may have done: background processes ignore signals."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


def start(command: list[str], **env: str) -> subprocess.Popen:
  """Start a command of this project, such as ["gpt.py", "-m", "tiny"]."""
  return subprocess.Popen(
    [sys.executable, *command],
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    preexec_fn=enable_signals,
  )


# Runs a command, and reports on a pipe when the first module of the project has been imported.
REPORT_START = """
import os, runpy, sys
from tinyformer import cli
os.write(int(sys.argv[1]), b"started")
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_and_wait(
  command: list[str], stdin: Path = Path(os.devnull), **env: str
) -> subprocess.Popen:
  """Start a command, and return when Python has started and imported our first module.

  Before that, Python handles signals itself: Ctrl-C prints a traceback.
  stdin: the file that the command reads as its standard input.
  """
  reader, writer = os.pipe()
  with open(stdin, "rb") as file:
    process = subprocess.Popen(
      [sys.executable, "-c", REPORT_START, str(writer), *command],
      cwd=ROOT,
      stdin=file,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
      pass_fds=[writer],
      preexec_fn=enable_signals,
    )
  os.close(writer)
  os.read(reader, 7)
  os.close(reader)
  return process


def finish(process: subprocess.Popen, timeout: float = 3000) -> Outcome:
  """Wait for the end of a process."""
  out, err = process.communicate(timeout=timeout)
  return Outcome(process.returncode, out, err)


def end_after(process: subprocess.Popen, seconds: float, number: int) -> Outcome:
  """Send a signal to a process after some time, unless it has ended by then."""
  try:
    out, err = process.communicate(timeout=seconds)
    return Outcome(process.returncode, out, err)
  except subprocess.TimeoutExpired:
    process.send_signal(number)
    return finish(process)


def end_during_write(process: subprocess.Popen, folder: Path, which: int) -> Outcome:
  """Kill a process as soon as the temporary file of its write number `which` appears."""
  seen: set[tuple[str, int]] = set()
  while process.poll() is None and len(seen) <= which:
    for part in folder.rglob(".*.part"):
      try:
        seen.add((part.name, part.stat().st_ino))
      except FileNotFoundError:
        continue
    time.sleep(0.0005)
  process.kill()
  return finish(process)
