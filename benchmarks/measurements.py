"""What a child process of bench.py measures: one peer, one figure after another."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import NEW_TOKENS
from benchmarks.contexts import contexts
from benchmarks.embeddings import embeddings
from benchmarks.llama_cpp import LlamaCpp
from benchmarks.machine import peak_memory
from benchmarks.systems import SYSTEMS
from benchmarks.training import small_model_steps, steps_of_124m

Measure = Callable[[str], list[float]]


def batch_and_length(task: str) -> tuple[int, int]:
  """Return the number of texts of a task, and of the tokens of each prompt."""
  numbers = [int(number) for number in re.findall(r"\d+", task)]
  return (numbers[0], 8) if "batch" in task else (1, numbers[0])


def speeds(name: str, folder: Path, threads: int) -> Measure:
  """Load one peer and return a function that runs a task once.

  The function returns a list of one number: tokens per second, or the seconds of loading.
  """
  library, dtype = name.split()
  start = time.perf_counter()
  system = SYSTEMS[library](folder, dtype, threads)
  load_seconds = time.perf_counter() - start

  def measure(task: str) -> list[float]:
    if task == "load, s":
      return [] if isinstance(system, LlamaCpp) else [load_seconds]
    batch, length = batch_and_length(task)
    if isinstance(system, LlamaCpp):
      return [system.speed(task, batch, length)]
    start = time.perf_counter()
    state = system.prefill(batch, length)
    prefill_end = time.perf_counter()
    prefill_seconds = prefill_end - start
    if "prefill" in task:
      return [length / prefill_seconds]
    system.decode(batch, state)
    decode_seconds = time.perf_counter() - prefill_end
    if library == "ctranslate2":
      decode_seconds -= prefill_seconds
    return [NEW_TOKENS * batch / decode_seconds]

  return measure


def memory(name: str, folder: Path, threads: int) -> Measure:
  """Load one peer and return a function that measures the peak memory of this process in MB.

  The function runs a prefill of 512 tokens and decodes.
  """
  if name.startswith("llama.cpp"):
    system = LlamaCpp(folder, name.split()[1], threads)
    return lambda figure: [system.memory()]
  measure_speed = speeds(name, folder, threads)

  def measure(figure: str) -> list[float]:
    measure_speed("decode after 512 tokens")
    return [peak_memory()]

  return measure


KINDS: dict[str, Callable[[str, Path, int], Measure]] = {
  "speeds": speeds,
  "memory": memory,
  "training": small_model_steps,
  "training-124m": steps_of_124m,
  "embeddings": embeddings,
  "contexts": contexts,
}


def main(kind: str, name: str, folder: str, threads: str) -> int:
  """Measure one peer in this process, once for each figure named by a line of standard input.

  Each answer is a line of JSON on standard output.
  """
  measure = KINDS[kind](name, Path(folder), int(threads))
  for figure in sys.stdin:
    print(json.dumps(measure(figure.strip())), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
