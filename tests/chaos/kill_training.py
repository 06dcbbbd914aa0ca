"""Kill a training run at random moments, resume it each time, and compare it with an unkilled run.

`python tests/chaos/kill_training.py --kills 100` prints the table of outcomes. The exit status is 1
if a resumed run differs in a byte.
"""

import argparse
import csv
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chaos import processes

FILES = (
  "config.json",
  "model.safetensors",
  "training.safetensors",
  "vocab.json",
  "merges.txt",
  "last/config.json",
  "last/model.safetensors",
  "last/vocab.json",
  "last/merges.txt",
)


def write_text(file: Path) -> None:
  """Write a text of random words."""
  rng = random.Random(0)
  words = [
    "the",
    "king",
    "queen",
    "had",
    "saw",
    "a",
    "golden",
    "ball",
    "horse",
    "and",
    "in",
    "wood",
  ]
  documents = [" ".join(rng.choice(words) for _ in range(60)) for _ in range(60)]
  file.write_text("<|endoftext|>".join(documents))


def log_rows(folder: Path) -> list[dict[str, str]]:
  """Return the rows of log.csv, without the time that they took."""
  rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
  return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def different_bytes(folder: Path, expected: Path) -> int:
  """Return in how many bytes the files of two runs differ."""
  count = 0
  for name in FILES:
    a = (folder / name).read_bytes()
    b = (expected / name).read_bytes()
    count += abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
  return count + (log_rows(folder) != log_rows(expected))


def state_of(folder: Path, err: bytes) -> str:
  """Return in which state a kill left a run."""
  if list(folder.rglob(".*.part")):
    return "while a file was written"
  if not (folder / "training.safetensors").exists():
    return "before the first checkpoint"
  if b"step " not in err:
    return "before the first evaluation"
  return "between two writes"


def kill_training(kills: int, steps: int, seed: int = 0) -> Counter:
  """Kill runs until there were `kills` kills, and return how often each outcome occurred.

  Half of the kills come when the temporary file of a random write appears, the others after a
  random time. Each killed run is resumed, or started again if it has no checkpoint, until it
  finishes. Raises AssertionError if a command fails.
  """
  rng = random.Random(seed)
  outcomes: Counter = Counter()
  with tempfile.TemporaryDirectory() as temporary:
    text = Path(temporary) / "text.txt"
    write_text(text)
    settings = [*processes.TRAIN, "--steps", str(steps), "--eval-interval", "10"]
    expected = Path(temporary) / "expected"
    begin = time.monotonic()
    result = processes.finish(
      processes.start(["train.py", str(text), "-o", str(expected), *settings])
    )
    duration = time.monotonic() - begin
    assert result.status == 0, result.err.decode()
    while outcomes["kills"] < kills or outcomes["runs"] == 0:
      folder = Path(temporary) / "killed"
      status = None
      while status != 0:
        can_resume = (folder / "last" / "model.safetensors").exists()
        options = ["--resume"] if can_resume else settings
        process = processes.start(["train.py", str(text), "-o", str(folder), *options])
        if outcomes["kills"] >= kills:
          result = processes.finish(process)
        elif rng.random() < 0.5:
          result = processes.end_during_write(process, folder, rng.randrange(8))
        else:
          result = processes.end_after(process, rng.uniform(0, duration), 9)
        status = result.status
        assert status in (0, -9), result.err.decode()
        if status == -9:
          outcomes["kills"] += 1
          outcomes[f"killed {state_of(folder, result.err)}"] += 1
          outcomes["resumed" if can_resume else "started"] += 1
      outcomes["runs"] += 1
      outcomes["bytes that differ"] += different_bytes(folder, expected)
      shutil.rmtree(folder)
  return outcomes


def main() -> int:
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--kills", type=int, default=100, help="number of kills (default: %(default)s)")
  p.add_argument("--steps", type=int, default=200, help="length of a run (default: %(default)s)")
  p.add_argument("--seed", type=int, default=0, help="seed of the moments (default: %(default)s)")
  args = p.parse_args()
  outcomes = kill_training(args.kills, args.steps, args.seed)
  for name, count in sorted(outcomes.items()):
    print(f"{count:6,}  {name}")
  return int(outcomes["bytes that differ"] > 0)


if __name__ == "__main__":
  sys.exit(main())
