"""Measure GPT-2's 124M shape in tinyformer and in every installed peer.

All systems use the same random weights. Each runs in its own process. Decoding is greedy. Prefill
computes the head at the last position only, in every peer that supports this. tinyformer selects
only the most likely token, as `gpt.py -t 0` does (tinyformer/kernels/exact_top_k.py).

Runs are interleaved, so background load affects all systems equally. While one process runs, all
other processes are stopped. Each figure is the median of its runs, with the minimum and maximum in
parentheses. Peers are measured with one thread and with all threads, and the better result counts.
A percentage compares the figure with the best that numpy reaches on the same machine.

`pip install -e '.[bench]'` installs the peers. All processes together need 9 GB of memory.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer import cli
from tinyformer.files import write_text

CORES = os.cpu_count() or 1
# For each peer: the module that it needs, the packages to count, the numbers of threads to try.
PEERS = {
  "tinyformer float32": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "tinyformer bfloat16": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "tinyformer int8": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "minigrad float32": ("numpy", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "torch float32": ("transformers", ["torch", "transformers"], [1, CORES]),
  "torch bfloat16": ("transformers", ["torch", "transformers"], [1, CORES]),
  "ctranslate2 float32": ("ctranslate2", ["ctranslate2"], [1, CORES]),
  "ctranslate2 int8": ("ctranslate2", ["ctranslate2"], [1, CORES]),
}
# The columns of this project: on tinygrad, and on minigrad (docs/minigrad.md).
OURS = ("tinyformer", "minigrad")
# Measured in tokens per second.
TASKS = [
  "decode after 8 tokens",
  "decode after 512 tokens",
  "decode, batch 8",
  "prefill 512",
  "prefill 1000",
]
NEW_TOKENS = 64
PARAMETERS = 124_439_808
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "int8": 1}
# nanoGPT's setting for training on a CPU; the batch size is 12.
NANOGPT: dict[str, Any] = dict(vocab_size=65, context=64, dim=128, heads=4, num_layers=4)
# The fields of transformers.GPT2Config, without their prefix "n_", and our names.
SIZES = {
  "positions": "context",
  "embd": "dim",
  "head": "heads",
  "layer": "num_layers",
}

Measure = Callable[[str], list[float]]
Results = dict[str, dict[str, Any]]


def make_weights(folder: Path) -> None:
  """Save GPT-2's smallest shape with random weights (124,439,808 parameters) in a folder.

  The vocabulary has GPT-2's size and consists of made-up tokens.
  """
  from tinyformer.device import select_device

  select_device()
  from tinygrad import Tensor, nn

  from models.gpt2 import GPT2, GPT2Config
  from tinyformer import checkpoints
  from tinyformer.tokenization.byte_level_bpe import (
    END,
    LETTERS,
    BytePairEncoding,
    bytes_to_unicode,
  )

  model = GPT2(GPT2Config())
  rng = np.random.default_rng(0)
  for parameter in nn.state.get_parameters(model):
    noise = rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(0.02)
    parameter.replace(Tensor(noise + np.float32(parameter.ndim == 1)))
  checkpoints.save(model, folder, eos_token_id=50256, bos_token_id=50256)
  merges = [(bytes([a]), bytes([b])) for a in LETTERS for b in LETTERS][:50_000]
  tokens = [bytes([b]) for b in LETTERS] + [a + b for a, b in merges]
  vocabulary = {bytes_to_unicode(token): i for i, token in enumerate(tokens)}
  BytePairEncoding(merges, vocabulary | {END: 50256}).save(folder)


# Peers. Each has prefill(batch, length), which returns a state, and decode(batch, state).


def random_ids(batch: int, length: int) -> np.ndarray:
  """Return random token ids (batch, length)."""
  return np.random.default_rng(1).integers(0, 50_000, (batch, length))


class Tinyformer:
  """This project's engine, which selects the most likely token only."""

  device: str | None = None

  def __init__(self, folder: Path, dtype: str, threads: int):
    from tinyformer.device import select_device

    select_device(self.device)
    from tinyformer import checkpoints
    from tinyformer.generation.engine import Engine

    model = checkpoints.load_module(folder, dtype)
    self.engine = functools.cache(lambda batch: Engine(model, batch, top_k=1))

  def prefill(self, batch: int, length: int) -> np.ndarray:
    self.engine(batch).position = 0
    return self.engine(batch)(random_ids(batch, length))

  def decode(self, batch: int, logits: np.ndarray) -> None:
    for _ in range(NEW_TOKENS):
      logits = self.engine(batch)(logits.argmax(-1)[:, None])


class Minigrad(Tinyformer):
  """The same engine on minigrad, whose matrix products numpy's BLAS computes."""

  device = "NUMPY"


class Torch:
  """Hugging Face transformers on PyTorch, with a KV cache."""

  def __init__(self, folder: Path, dtype: str, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    self.torch = torch
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    self.model = model.eval()

  def prefill(self, batch: int, length: int):
    ids = self.torch.tensor(random_ids(batch, length))
    return self.model(ids, use_cache=True, logits_to_keep=1)

  def decode(self, batch: int, output) -> None:
    for _ in range(NEW_TOKENS):
      ids = output.logits[:, -1:].argmax(-1)
      output = self.model(ids, past_key_values=output.past_key_values, use_cache=True)


class Ctranslate2:
  """CTranslate2, whose only entry point runs prefill and decoding together."""

  def __init__(self, folder: Path, dtype: str, threads: int):
    import ctranslate2

    converted = folder / f"ctranslate2-{dtype}"
    if not converted.exists():
      # A separate process keeps the conversion out of this process's peak memory.
      code = (
        "import ctranslate2; "
        f"ctranslate2.converters.TransformersConverter(r'{folder}')"
        f".convert(r'{converted}', quantization='{dtype}')"
      )
      subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    self.model = ctranslate2.Generator(str(converted), intra_threads=threads, compute_type=dtype)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    self.tokens = sorted(vocabulary, key=vocabulary.__getitem__)

  def generate(self, batch: int, length: int, new_tokens: int) -> None:
    prompts = [[self.tokens[i] for i in row] for row in random_ids(batch, length)]
    self.model.generate_batch(
      prompts,
      max_length=new_tokens,
      min_length=new_tokens,
      sampling_topk=1,
      include_prompt_in_result=False,
      end_token=[],
    )

  def prefill(self, batch: int, length: int) -> int:
    self.generate(batch, length, 1)
    return length

  def decode(self, batch: int, length: int) -> None:
    # This repeats the prefill; `speeds` subtracts its time.
    self.generate(batch, length, NEW_TOKENS + 1)


PEER_CLASSES: dict[str, Any] = {
  "tinyformer": Tinyformer,
  "minigrad": Minigrad,
  "torch": Torch,
  "ctranslate2": Ctranslate2,
}


# What a child process measures.


def speeds(name: str, folder: Path, threads: int) -> Measure:
  """Load one peer and return a function that runs a task once.

  The function returns a list of one number, in tokens per second.
  """
  library, dtype = name.split()
  peer = PEER_CLASSES[library](folder, dtype, threads)

  def measure(task: str) -> list[float]:
    batch = 8 if "batch" in task else 1
    length = 8 if "batch" in task else int(re.findall(r"\d+", task)[0])
    start = time.perf_counter()
    state = peer.prefill(batch, length)
    prefill_end = time.perf_counter()
    prefill_seconds = prefill_end - start
    if "prefill" in task:
      return [length / prefill_seconds]
    peer.decode(batch, state)
    decode_seconds = time.perf_counter() - prefill_end
    if library == "ctranslate2":
      decode_seconds -= prefill_seconds
    return [NEW_TOKENS * batch / decode_seconds]

  return measure


def memory(name: str, folder: Path, threads: int) -> Measure:
  """Load one peer and return a function that measures the peak memory of this process in MB.

  The function runs a prefill of 512 tokens and decodes.
  """
  measure_speed = speeds(name, folder, threads)

  def measure(figure: str) -> list[float]:
    measure_speed("decode after 512 tokens")
    return [peak_memory()]

  return measure


def peak_memory() -> float:
  """Return the peak memory of this process in MB."""
  try:
    status = Path("/proc/self/status").read_text()
  except OSError:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
  # On Linux, getrusage would include the peak of the parent process.
  match = re.search(r"VmHWM:\s*(\d+) kB", status)
  if match is None:
    raise RuntimeError("/proc/self/status has no line VmHWM, so peak memory is unknown")
  return int(match[1]) / 1e3


def training(name: str, folder: Path, threads: int) -> Measure:
  """Return a function that takes five training steps in nanoGPT's CPU setting.

  The function returns the milliseconds of each of the last four steps.
  """
  inputs, targets = (
    np.random.default_rng(seed).integers(0, 65, (12, 64)).astype(np.int32) for seed in range(2)
  )
  if name.startswith(OURS):
    step = tinyformer_step(inputs, targets, "NUMPY" if name.startswith("minigrad") else None)
  else:
    step = torch_step(inputs, targets, threads)

  def measure(figure: str) -> list[float]:
    milliseconds = []
    for _ in range(5):
      start = time.perf_counter()
      step()
      milliseconds.append((time.perf_counter() - start) * 1000)
    return milliseconds[1:]

  return measure


def tinyformer_step(
  inputs: np.ndarray, targets: np.ndarray, device: str | None
) -> Callable[[], None]:
  """Return a function that takes one training step in tinyformer."""
  from tinyformer.device import select_device

  select_device(device)
  from models.gpt2 import GPT2, GPT2Config
  from tinyformer.kernels import loss_function, training_parts
  from tinyformer.training.trainer import Trainer

  loss = loss_function()
  model = GPT2(GPT2Config(**NANOGPT), training_parts("float32"))
  trainer = Trainer(model, lambda x, y: loss(model(x), y, smoothing=0))

  def step() -> None:
    trainer.train_step(1e-3, inputs, targets)

  return step


def torch_step(inputs: np.ndarray, targets: np.ndarray, threads: int) -> Callable[[], None]:
  """Return a function that takes one training step in Hugging Face transformers."""
  import torch
  import transformers

  torch.set_num_threads(threads)
  config = transformers.GPT2Config(
    **{f"n_{field}": NANOGPT[size] for field, size in SIZES.items()},
    vocab_size=NANOGPT["vocab_size"],
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
    bos_token_id=0,
    eos_token_id=0,
  )
  model = transformers.GPT2LMHeadModel(config).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
  x = torch.tensor(inputs).long()
  y = torch.tensor(targets).long()

  def step() -> None:
    optimizer.zero_grad()
    logits = model(x).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, y.flatten()).backward()
    optimizer.step()

  return step


CHILDREN: dict[str, Callable[[str, Path, int], Measure]] = {
  "speeds": speeds,
  "memory": memory,
  "training": training,
}


def run_child(kind: str, name: str, folder: str, threads: str) -> int:
  """Measure one peer in this process, once for each figure named by a line of standard input.

  Each answer is a line of JSON on standard output.
  """
  measure = CHILDREN[kind](name, Path(folder), int(threads))
  for figure in sys.stdin:
    print(json.dumps(measure(figure.strip())), flush=True)
  return 0


# The parent process.


def first_token_code(library: str, dtype: str, folder: Path) -> str:
  """Return a Python program that loads a peer's model and generates one token."""
  if library in OURS:
    device = ", '--device', 'NUMPY'" if library == "minigrad" else ""
    arguments = f"['-m', r'{folder}', '-p', 'Once', '-n', '1', '--dtype', '{dtype}'{device}]"
    statements = [
      "import gpt, sys",
      "from tinyformer import cli",
      f"sys.exit(cli.run(lambda: gpt.main({arguments})))",
    ]
  elif library == "torch":
    statements = [
      "import torch",
      "from transformers import AutoModelForCausalLM, GPT2Tokenizer",
      f"model = AutoModelForCausalLM.from_pretrained(r'{folder}', dtype=torch.{dtype})",
      f"tokenizer = GPT2Tokenizer.from_pretrained(r'{folder}')",
      "inputs = tokenizer('Once', return_tensors='pt')",
      "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=1)[0]))",
    ]
  else:
    converted = folder / f"ctranslate2-{dtype}"
    statements = [
      "import ctranslate2",
      f"model = ctranslate2.Generator(r'{converted}', compute_type='{dtype}')",
      "print(model.generate_batch([['O', 'n', 'c', 'e']], max_length=1))",
    ]
  return "; ".join(statements)


def first_tokens(names: list[str], folder: Path, repeat: int) -> Results:
  """Measure the seconds from each peer's command to its first token, the whole process included.

  The first round starts with an empty cache of compiled kernels; only tinyformer's time counts.
  `repeat` rounds with a warm cache follow. Rounds are interleaved.
  """
  results: Results = {name: {} for name in names}
  for round_index in range(repeat + 1):
    figure = "first token, warm cache, s" if round_index else "first token, empty cache, s"
    for name in names:
      library, dtype = name.split()
      code = first_token_code(library, dtype, folder)
      environment = {"XDG_CACHE_HOME": str(folder / f"cache of {name}"), "HF_HUB_OFFLINE": "1"}
      start = time.perf_counter()
      process = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
      )
      seconds = time.perf_counter() - start
      if process.returncode:
        print(f"{name}: {last_line(process.stderr)}", file=sys.stderr)
      elif round_index or name.startswith("tinyformer"):
        results[name].setdefault(figure, []).append(seconds)
  return results


def last_line(errors: str) -> str:
  """Return the last line of a process's error output."""
  return errors.strip().rpartition("\n")[2] or "the process ended without an error message"


def installed_size(packages: list[str]) -> float:
  """Return the size on disk of packages and all their dependencies, in MB."""
  sizes: dict[str, int] = {}
  while packages:
    requirement = re.match(r"[\w.-]+", packages.pop())
    name = requirement[0].lower().replace("_", "-")  # type: ignore[index]
    try:
      distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      continue
    if name in sizes:
      continue
    files = [Path(str(file.locate())) for file in distribution.files or []]
    sizes[name] = sum(file.stat().st_size for file in files if file.exists())
    packages = packages + [r for r in distribution.requires or [] if "extra ==" not in r]
  return sum(sizes.values()) / 1e6


def machine_limits() -> dict[str, float]:
  """Measure numpy's rates of memory reads (one core, all cores) and of a matrix product.

  Each rate is the best of three runs, in GB/s or GFLOP/s.
  """
  # Random values, because a hypervisor may store identical pages only once.
  rows = np.random.default_rng(0).random((CORES, 2**26), np.float32)
  matrix = np.ones((2048, 2048), np.float32)

  def shortest(function) -> float:
    seconds = []
    for _ in range(3):
      start = time.perf_counter()
      function()
      seconds.append(time.perf_counter() - start)
    return min(seconds)

  with ThreadPoolExecutor(CORES) as pool:
    all_cores_rate = rows.nbytes / shortest(lambda: list(pool.map(np.max, rows)))
  return {
    "one core reads, GB/s": rows[0].nbytes / shortest(rows[0].max) / 1e9,
    "all cores read, GB/s": all_cores_rate / 1e9,
    "matrix product, GFLOP/s": 2 * 2048**3 / shortest(lambda: matrix @ matrix) / 1e9,
  }


def limit_of(figure: str, dtype: str) -> tuple[str, float] | None:
  """Return the machine limit that bounds a figure, and how much of the limit each unit needs.

  Decoding reads all weights for each step. Prefill computes all layers at each position. Other
  figures have no limit.
  """
  if figure.startswith("decode"):
    batch = 8 if "batch" in figure else 1
    return "all cores read, GB/s", PARAMETERS * BYTES_PER_WEIGHT[dtype] / 1e9 / batch
  if figure.startswith("prefill"):
    embedding = 50257 * 768
    return "matrix product, GFLOP/s", 2 * (PARAMETERS - embedding) / 1e9
  return None


class Process:
  """A child process that measures one peer with one number of threads.

  It starts at the first measurement and is stopped between measurements.
  """

  def __init__(self, kind: str, name: str, folder: str, threads: int):
    self.name = name
    self.command = [sys.executable, __file__, "--child", kind, name, folder, str(threads)]
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
      self.process.communicate()
    self.errors.close()


@dataclass
class Schedule:
  """The number of counted rounds and of uncounted warm-up rounds, and what precedes each round."""

  repeat: int
  warmup: int = 0
  before_round: Callable[[], None] = lambda: None


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
    for threads in dict.fromkeys(PEERS[name][2])
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
          if round_index >= schedule.warmup:
            process.figures[figure] = process.figures.get(figure, []) + values


# The table.


def median(values) -> float | None:
  """Return the median of a list; return a number or None unchanged."""
  return statistics.median(values) if isinstance(values, list) else values


def lower_is_better(figure: str) -> bool:
  return figure.endswith((" s", "MB", "ms"))


def ratio(figure: str, results: Results, ours: list[str], peers: list[str]) -> str:
  """Return our best result relative to the best peer, as text; above 1 is better for us."""

  def medians(names: list[str]) -> list[float]:
    values = [median(results[name].get(figure)) for name in names if name in results]
    return [value for value in values if value is not None]

  our_medians = medians(ours)
  peer_medians = medians(peers)
  if not our_medians or not peer_medians:
    return "–"
  if lower_is_better(figure):
    return f"{min(peer_medians) / min(our_medians):.2f}"
  return f"{max(our_medians) / max(peer_medians):.2f}"


def format_cell(values, limit: tuple[str, float] | None, machine: dict[str, Any]) -> str:
  """Format the median, the minimum and maximum in parentheses, and the percentage of the limit."""
  middle = median(values)
  if middle is None:
    return "–"
  digits = 1 if middle < 100 else 0
  text = f"{middle:,.{digits}f}"
  if isinstance(values, list) and len(values) > 1:
    text += f" ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
  if limit:
    limit_name, used_per_unit = limit
    text += f" {middle * used_per_unit / machine[limit_name]:.0%}"
  return text


def table(results: Results, machine: dict[str, Any]) -> str:
  """Return two Markdown tables: one for float32, and one for smaller types.

  Each has a row for each figure and a column for each peer. The last column is our best result
  relative to the best peer.
  """
  all_figures = list(dict.fromkeys(figure for r in results.values() for figure in r))

  def one_table(names: list[str]) -> str:
    ours = [name for name in names if name.startswith(OURS)]
    peers = [name for name in names if not name.startswith(OURS)]
    rows = [["", *names, "ratio to best peer"], ["---"] + ["---:"] * (len(names) + 1)]
    for figure in all_figures:
      if any(figure in results[name] for name in names):
        limits = [limit_of(figure, name.split()[1]) for name in names]
        cells = [
          format_cell(results[name].get(figure), limit, machine)
          for name, limit in zip(names, limits, strict=True)
        ]
        rows.append([figure, *cells, ratio(figure, results, ours, peers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

  float32 = [name for name in results if name.endswith("float32")]
  smaller = [name for name in results if not name.endswith("float32")]
  return "\n\n".join(one_table(names) for names in (float32, smaller) if names)


# The command.


def parse_arguments(argv: list[str]) -> argparse.Namespace:
  description = (__doc__ or "").split("\n")[0]
  p = argparse.ArgumentParser(prog="bench.py", description=description)
  p.add_argument(
    "--repeat",
    type=cli.number(int, 1, 1000),
    default=5,
    help="number of counted rounds (default: %(default)s)",
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
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  argv = sys.argv[1:] if argv is None else argv
  if argv[:1] == ["--child"]:
    return run_child(*argv[1:])
  args = parse_arguments(argv)
  # Without this, stopped child processes would outlive a terminated parent.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  names = [name for name in args.peers if importlib.util.find_spec(PEERS[name][0])]
  for name in args.peers:
    if name not in names:
      package = PEERS[name][0]
      message = f"{package} is not installed; run pip install -e '.[bench]' to measure this peer"
      print(f"{name}: {message}", file=sys.stderr)
  machine: dict[str, Any] = {
    "date": time.strftime("%Y-%m-%d"),
    "machine": processor(),
    "cores": CORES,
    "python": platform.python_version(),
  }
  with tempfile.TemporaryDirectory() as temporary:
    results = measure_everything(names, Path(temporary), machine, args)
  machine_texts = [
    f"{key}: {value:,.0f}" if isinstance(value, float) else f"{key}: {value}"
    for key, value in machine.items()
  ]
  print(table(results, machine), "", ", ".join(machine_texts), sep="\n")
  return 0


def measure_everything(
  names: list[str], folder: Path, machine: dict[str, Any], args: argparse.Namespace
) -> Results:
  """Return all figures of all peers, and write them to args.json after each group of figures.

  Adds the limits of the machine to `machine`.
  """
  results: Results = {name: {} for name in names}

  def update_limits() -> None:
    best = {key: max(value, machine.get(key, 0)) for key, value in machine_limits().items()}
    machine.update(best)

  def save(new_results: Results) -> None:
    for name, figures in new_results.items():
      results[name] |= figures
    text = json.dumps({"machine": machine, "results": results}, indent=1) + "\n"
    write_text(args.json, text)

  # A separate process returns its memory when it ends.
  code = f"import bench, pathlib; bench.make_weights(pathlib.Path(r'{folder}'))"
  process = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
  if process.returncode:
    raise RuntimeError(f"cannot create the random weights: {last_line(process.stderr)}")
  schedule = Schedule(args.repeat, warmup=2, before_round=update_limits)
  save(measure_in_rounds("speeds", names, folder, TASKS, schedule))
  save(first_tokens(names, folder, args.repeat))
  save(measure_in_rounds("memory", names, folder, ["peak memory, MB"], Schedule(1)))
  save({name: {"installed, MB": installed_size(list(PEERS[name][1]))} for name in names})
  trained = [name for name in names if name in ("tinyformer float32", "torch float32")]
  schedule = Schedule(args.repeat, warmup=1)
  save(measure_in_rounds("training", trained, folder, ["training step, ms"], schedule))
  return results


def processor() -> str:
  """Return the processor's name, or its architecture if the system does not report a name."""
  with contextlib.suppress(OSError):
    if match := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
      return match[1]
  return platform.processor() or platform.machine()


if __name__ == "__main__":
  sys.exit(cli.run(main))
