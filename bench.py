"""`python bench.py` measures GPT-2's 124M shape here and in every peer that is installed, in one run, each in its own process.

The weights are random and the same for all. Decoding is greedy, prefill computes the head at the last place only, in every peer that can. Ours is
asked for the likeliest token alone, as gpt.py -t 0 asks it (tinyformer/kernels/exact_top_k.py).
The peers take turns, so that a slow minute of the machine is one for all: while one works, the others are stopped. Each figure is the median of
its turns (in brackets: the least and the most), at the better of one thread and all, and beside it its share of what this machine can do.
`pip install -e '.[bench]'` brings the peers; all of them together hold 9 GB of memory.
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
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer import cli

CORES = os.cpu_count() or 1
PEERS = {  # name: (package that it needs, its packages, thread counts to try)
  "tinyformer float32": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "tinyformer bfloat16": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "tinyformer int8": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "torch float32": ("transformers", ["torch", "transformers"], [1, CORES]),
  "torch bfloat16": ("transformers", ["torch", "transformers"], [1, CORES]),
  "ctranslate2 float32": ("ctranslate2", ["ctranslate2"], [1, CORES]),
  "ctranslate2 int8": ("ctranslate2", ["ctranslate2"], [1, CORES]),
}
TASKS = [
  "decode after 8",
  "decode after 512",
  "decode, batch 8",
  "prefill 512",
  "prefill 1000",
]  # all in tokens a second
NEW = 64  # tokens to decode
PARAMETERS, BYTES = (
  124_439_808,
  {"float32": 4, "bfloat16": 2, "int8": 1},
)  # of the weights, and of one of them
NANOGPT: dict[str, Any] = dict(
  vocab_size=65, context=64, dim=128, heads=4, num_layers=4
)  # its CPU setting, batch 12


def make_weights(folder: Path) -> None:
  """GPT-2's smallest shape with random weights (124,439,808 parameters), and a vocabulary of as many made-up tokens."""
  from tinyformer.device import select_device

  select_device()
  from tinygrad import Tensor, nn

  from models import gpt2
  from tinyformer.tokenization.byte_level_bpe import (
    END,
    LETTERS,
    BytePairEncoding,
    bytes_to_unicode,
  )

  model, draw = gpt2.GPT2(), np.random.default_rng(0)
  for t in nn.state.get_parameters(model):
    t.replace(
      Tensor(
        draw.standard_normal(t.shape, dtype=np.float32) * np.float32(0.02) + np.float32(t.ndim == 1)
      )
    )
  gpt2.save(model, folder, eos_token_id=50256, bos_token_id=50256)
  merges = [(bytes([a]), bytes([b])) for a in LETTERS for b in LETTERS][:50_000]
  tokens = [bytes([b]) for b in LETTERS] + [a + b for a, b in merges]
  BytePairEncoding(
    merges, {bytes_to_unicode(t): i for i, t in enumerate(tokens)} | {END: 50256}
  ).save(folder)


def ids_of(batch: int, length: int) -> np.ndarray:
  return np.random.default_rng(1).integers(0, 50_000, (batch, length))


class Tinyformer:
  def __init__(self, folder: Path, kind: str, threads: int):
    from tinyformer.device import select_device

    select_device()
    from tinyformer import checkpoints
    from tinyformer.generation.engine import Engine

    model = checkpoints.load_module(folder, kind)
    self.reader = functools.cache(lambda batch: Engine(model, batch, top_k=1))

  def prefill(self, batch: int, length: int) -> np.ndarray:
    self.reader(batch).position = 0
    return self.reader(batch)(ids_of(batch, length))

  def decode(self, batch: int, logits: np.ndarray) -> None:
    for _ in range(NEW):
      logits = self.reader(batch)(logits.argmax(-1)[:, None])


class Torch:
  def __init__(self, folder: Path, kind: str, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    self.torch, self.model = (
      torch,
      transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, kind)).eval(),
    )

  def prefill(self, batch: int, length: int):
    return self.model(self.torch.tensor(ids_of(batch, length)), use_cache=True, logits_to_keep=1)

  def decode(self, batch: int, out) -> None:
    for _ in range(NEW):
      out = self.model(
        out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True
      )


class Ctranslate2:
  def __init__(self, folder: Path, kind: str, threads: int):
    import ctranslate2

    converted = folder / f"ctranslate2-{kind}"
    if not converted.exists():  # in a process of its own, so that it does not count in the memory
      code = f"import ctranslate2; ctranslate2.converters.TransformersConverter(r'{folder}').convert(r'{converted}', quantization='{kind}')"
      subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    self.model = ctranslate2.Generator(str(converted), intra_threads=threads, compute_type=kind)
    self.tokens = [
      token
      for token, _ in sorted(
        json.loads((folder / "vocab.json").read_text()).items(), key=lambda item: item[1]
      )
    ]

  def run(self, batch: int, length: int, new: int):
    prompts = [[self.tokens[i] for i in row] for row in ids_of(batch, length)]
    return self.model.generate_batch(
      prompts,
      max_length=new,
      min_length=new,
      sampling_topk=1,
      include_prompt_in_result=False,
      end_token=[],
    )

  def prefill(self, batch: int, length: int):
    return self.run(batch, length, 1) and (batch, length)

  def decode(self, batch: int, prompt) -> None:
    self.run(batch, prompt[1], NEW + 1)  # its prefill is taken off again


KINDS: dict[str, Any] = {"tinyformer": Tinyformer, "torch": Torch, "ctranslate2": Ctranslate2}


def speeds(name: str, folder: Path, threads: int) -> Callable[[str], list[float]]:
  """What one peer does, in this process: a function that does a task once and gives its tokens a second."""
  library, kind = name.split()
  peer = KINDS[library](folder, kind, threads)

  def measure(task: str) -> list[float]:
    batch, length = (
      8 if "batch" in task else 1,
      int(re.findall(r"\d+", task)[0]) if "batch" not in task else 8,
    )
    begun = time.perf_counter()
    state = peer.prefill(batch, length)
    middle = time.perf_counter()
    if "prefill" in task:
      return [length / (middle - begun)]
    peer.decode(batch, state)
    end = time.perf_counter()
    return [NEW * batch / (end - middle - (middle - begun if library == "ctranslate2" else 0))]

  return measure


def memory(name: str, folder: Path, threads: int) -> Callable[[str], list[float]]:
  """The peak of memory in MB of this process, in which a peer reads 512 tokens and decodes."""
  measure = speeds(name, folder, threads)

  def peak(_: str) -> list[float]:
    measure("decode after 512")
    try:
      return [int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3]  # type: ignore[index] # getrusage counts the parent in
    except OSError:
      import resource

      return [
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1e6 if sys.platform == "darwin" else 1e3)
      ]

  return peak


SIZES = {
  "positions": "context",
  "embd": "dim",
  "head": "heads",
  "layer": "layers",
}  # GPT2Config's words to ours


def training(name: str, folder: Path, threads: int) -> Callable[[str], list[float]]:
  """A function that takes five steps of nanoGPT's CPU setting and gives the milliseconds of the last four."""
  x, y = (np.random.default_rng(i).integers(0, 65, (12, 64)).astype(np.int32) for i in range(2))
  if name.startswith("tinyformer"):
    from tinyformer.device import select_device

    select_device()
    from models.gpt2 import GPT2
    from tinyformer.kernels.cross_entropy import loss
    from tinyformer.kernels.parts import CPU_KERNELS
    from tinyformer.training.trainer import Trainer

    model = GPT2(**NANOGPT, **CPU_KERNELS)
    learner = Trainer(model, lambda x, y: loss(model(x), y, smoothing=0))

    def step():
      learner.train_step(1e-3, x, y)
  else:
    import torch
    import transformers

    torch.set_num_threads(threads)
    theirs = transformers.GPT2LMHeadModel(
      transformers.GPT2Config(
        **{f"n_{key}": NANOGPT[mine] for key, mine in SIZES.items()},
        vocab_size=NANOGPT["vocab_size"],
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
      )
    ).train()
    optimizer, inputs, targets = (
      torch.optim.AdamW(theirs.parameters(), lr=1e-3),
      torch.tensor(x).long(),
      torch.tensor(y).long(),
    )

    def step():
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(
        theirs(inputs).logits.flatten(0, 1), targets.flatten()
      ).backward()
      optimizer.step()

  def measure(figure: str) -> list[float]:
    spent = []
    for _ in range(5):
      begun = time.perf_counter()
      step()
      spent.append((time.perf_counter() - begun) * 1000)
    return spent[1:]

  return measure


def first_tokens(names: list[str], folder: Path, repeat: int) -> dict[str, dict[str, list[float]]]:
  """Seconds from each peer's command to its first token, the whole process, in turns: with no kernel compiled yet (tinyformer), and warm."""

  def code(library: str, kind: str) -> str:
    if library == "tinyformer":
      return f"import gpt, sys; from tinyformer import cli; sys.exit(cli.run(lambda: gpt.main(['-m', r'{folder}', '-p', 'Once', '-n', '1', '--dtype', '{kind}'])))"
    if library == "torch":
      return (
        f"import torch, transformers as t; m = t.AutoModelForCausalLM.from_pretrained(r'{folder}', dtype=torch.{kind}); "
        f"k = t.GPT2Tokenizer.from_pretrained(r'{folder}'); print(k.decode(m.generate(**k('Once', return_tensors='pt'), max_new_tokens=1)[0]))"
      )
    return (
      f"import ctranslate2 as c; m = c.Generator(r'{folder / f'ctranslate2-{kind}'}', compute_type='{kind}'); "
      "print(m.generate_batch([['O', 'n', 'c', 'e']], max_length=1))"
    )

  found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
  for turn in range(repeat + 1):
    for name in names:
      figure, cache = (
        "first token, warm, s" if turn else "first token, nothing compiled yet, s",
        folder / f"cache of {name}",
      )
      begun = time.perf_counter()
      done = subprocess.run(
        [sys.executable, "-c", code(*name.split())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"},
      )
      seconds = time.perf_counter() - begun
      if done.returncode:
        print(f"{name}: {complaint(done.stderr)}", file=sys.stderr)
      elif turn or name.startswith("tinyformer"):
        found[name].setdefault(figure, []).append(seconds)
  return found


def complaint(text: str) -> str:
  """Its last line."""
  return text.strip().rpartition("\n")[2] or "it ended without a word"


def installed(packages: list[str]) -> float:
  """MB on disk of packages and all that they need."""
  sizes: dict[str, int] = {}
  while packages:
    name = re.match(r"[\w.-]+", packages.pop())[0].lower().replace("_", "-")  # type: ignore[index]
    try:
      distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      continue
    if name in sizes:
      continue
    files = [Path(str(f.locate())) for f in distribution.files or []]
    sizes[name] = sum(f.stat().st_size for f in files if f.exists())
    packages = packages + [r for r in distribution.requires or [] if "extra ==" not in r]
  return sum(sizes.values()) / 1e6


def limits() -> dict[str, float]:
  """What this machine can do, as far as numpy shows it: read memory, with one core and all, and multiply matrices. The best of three."""
  a, b = (
    np.random.default_rng(0).random((CORES, 2**26), np.float32),
    np.ones((2048, 2048), np.float32),
  )  # a host may keep like pages once

  def best(work) -> float:
    spent = []
    for _ in range(3):
      begun = time.perf_counter()
      work()
      spent.append(time.perf_counter() - begun)
    return min(spent)

  with ThreadPoolExecutor(CORES) as pool:
    reads = a.nbytes / best(lambda: list(pool.map(np.max, a)))
  return {
    "one core reads, GB/s": a[0].nbytes / best(a[0].max) / 1e9,
    "all cores read, GB/s": reads / 1e9,
    "matrix product, GFLOP/s": 2 * 2048**3 / best(lambda: b @ b) / 1e9,
  }


def work(figure: str, kind: str) -> tuple[str, float] | None:
  """The limit that a figure comes up against, and how much of it (in its own unit) each unit of the figure takes, if all weights are read and all of a layer is computed."""
  if figure.startswith("decode"):
    return "all cores read, GB/s", PARAMETERS * BYTES[kind] / 1e9 / (8 if "batch" in figure else 1)
  if figure.startswith("prefill"):
    return "matrix product, GFLOP/s", 2 * (PARAMETERS - 50257 * 768) / 1e9
  return None


class Process:
  """A peer that measures itself in a process of its own, begun at its first turn, which stands still between its turns."""

  def __init__(self, what: str, name: str, folder: str, threads: int):
    self.name, self.command, self.errors = (
      name,
      [sys.executable, __file__, "--child", what, name, folder, str(threads)],
      tempfile.TemporaryFile("w+"),
    )
    self.process: subprocess.Popen[str] | None = None
    self.figures: dict[str, list[float]] = {}

  def take_turn(self, figure: str) -> list[float]:
    """What it measured. Raises RuntimeError, with the last line of its complaint, where the process has ended."""
    if self.process is None:
      self.process = subprocess.Popen(
        self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
      )
    elif hasattr(signal, "SIGCONT"):
      self.process.send_signal(signal.SIGCONT)
    with contextlib.suppress(BrokenPipeError):
      print(figure, file=self.process.stdin, flush=True)
    if not (answer := self.process.stdout.readline()):  # type: ignore[union-attr]
      self.errors.seek(0)
      raise RuntimeError(complaint(self.errors.read()))
    if hasattr(signal, "SIGSTOP"):
      self.process.send_signal(signal.SIGSTOP)  # its threads may wait for work busily
    return json.loads(answer)

  def end(self) -> None:
    if self.process is not None:
      self.process.kill()
      self.process.communicate()
    self.errors.close()


def rounds(
  what: str,
  names: list[str],
  folder: Path,
  figures: list[str],
  repeat: int,
  warm: int = 0,
  between: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, list[float]]]:
  """Each peer's figures, measured in turns: `warm` rounds that do not count, then `repeat` that do; of different numbers of threads the better."""
  found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
  runs = [
    Process(what, name, str(folder), n) for name in names for n in dict.fromkeys(PEERS[name][2])
  ]
  going = list(runs)
  try:
    for turn in range(-warm, repeat):
      print(f"{what}: round {turn + warm + 1} of {warm + repeat}", file=sys.stderr, flush=True)
      between()
      for figure in figures:
        for run in list(going):
          try:
            values = run.take_turn(figure)
          except RuntimeError as e:
            print(f"{run.name}: {e}", file=sys.stderr)
            going.remove(run)
          else:
            if turn >= 0:
              run.figures[figure] = run.figures.get(figure, []) + values
  finally:
    for run in runs:
      run.end()
  better = lambda figure: min if fewer(figure) else max
  for run in runs:
    for figure, values in run.figures.items():
      found[run.name][figure] = better(figure)(
        values, found[run.name].get(figure, values), key=statistics.median
      )
  return found


CHILDREN: dict[str, Callable[[str, Path, int], Callable[[str], list[float]]]] = {
  "speeds": speeds,
  "memory": memory,
  "training": training,
}


def middle(values) -> float | None:
  return statistics.median(values) if isinstance(values, list) else values


def fewer(figure: str) -> bool:
  """Whether less of it is better."""
  return figure.endswith((" s", "MB", "ms"))


def ratio(
  figure: str, results: dict[str, dict[str, Any]], ours: list[str], theirs: list[str]
) -> str:
  """How many times as fast, or as small, our best is as their best; above 1 is ours."""
  mine, other = (
    [m for n in names if n in results and (m := middle(results[n].get(figure))) is not None]
    for names in (ours, theirs)
  )
  if not mine or not other:
    return "–"
  return f"{min(other) / min(mine) if fewer(figure) else max(mine) / max(other):.2f}"


def table(results: dict[str, dict[str, Any]], machine: dict[str, Any]) -> str:
  """Markdown, one table for float32 and one for fewer bits: a row for each figure, a column for each peer; medians, how far the repetitions spread, shares of the limit, and ratios."""
  figures = list(dict.fromkeys(figure for r in results.values() for figure in r))

  def cell(name: str, figure: str) -> str:
    values = results[name].get(figure)
    if (m := middle(values)) is None:
      return "–"
    digits = 1 if m < 100 else 0
    limit = work(figure, name.split()[1])
    return (
      f"{m:,.{digits}f}"
      + (
        f" ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
        if isinstance(values, list) and len(values) > 1
        else ""
      )
      + (f" {m * limit[1] / machine[limit[0]]:.0%}" if limit else "")
    )

  def part(names: list[str], figures: list[str]) -> str:
    ours, theirs = (
      [n for n in names if n.startswith("tinyformer") == own] for own in (True, False)
    )
    rows = [["", *names, "times the best peer"], ["---"] + ["---:"] * (len(names) + 1)]
    rows += [[f, *(cell(n, f) for n in names), ratio(f, results, ours, theirs)] for f in figures]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

  kinds = ([n for n in results if n.endswith("float32") == kind] for kind in (True, False))
  return "\n\n".join(
    part(names, [f for f in figures if any(f in results[n] for n in names)])
    for names in kinds
    if names
  )


def main() -> int:
  p = argparse.ArgumentParser(prog="bench.py", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
  p.add_argument("--repeat", type=int, default=5, help="counted repetitions (default: %(default)s)")
  p.add_argument(
    "--json",
    type=Path,
    default=Path("bench.json"),
    help="where to write the figures (default: %(default)s)",
  )
  p.add_argument(
    "--peers",
    nargs="*",
    default=list(PEERS),
    choices=list(PEERS),
    metavar="PEER",
    help=f"of {', '.join(PEERS)}",
  )
  p.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
  args = p.parse_args()
  if args.child:
    what, name, folder, threads = args.child
    measure = CHILDREN[what](name, Path(folder), int(threads))
    for figure in sys.stdin:
      print(json.dumps(measure(figure.strip())), flush=True)
    return 0
  signal.signal(
    signal.SIGTERM, lambda *_: sys.exit(143)
  )  # so that no stopped process outlives this one
  names = [name for name in args.peers if importlib.util.find_spec(PEERS[name][0])]
  for name in args.peers:
    if name not in names:
      print(f"{name}: {PEERS[name][0]} is not installed", file=sys.stderr)
  machine: dict[str, Any] = {
    "date": time.strftime("%Y-%m-%d"),
    "machine": processor(),
    "cores": CORES,
    "python": platform.python_version(),
  }
  results: dict[str, dict[str, Any]] = {name: {} for name in names}

  def look() -> None:
    machine.update({key: max(value, machine.get(key, 0)) for key, value in limits().items()})

  def attention_mask(found: dict[str, dict[str, Any]]) -> None:
    for name, figures in found.items():
      results[name] |= figures
    args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")

  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    made = subprocess.run(
      [
        sys.executable,
        "-c",
        f"import bench, pathlib; bench.make_weights(pathlib.Path(r'{folder}'))",
      ],
      stderr=subprocess.PIPE,
      text=True,
    )  # memory that it took is given back
    if made.returncode:
      raise RuntimeError(f"the weights cannot be made: {complaint(made.stderr)}")
    attention_mask(rounds("speeds", names, folder, TASKS, args.repeat, 2, look))
    attention_mask(first_tokens(names, folder, args.repeat))
    attention_mask(rounds("memory", names, folder, ["peak memory, MB"], 1))
    attention_mask({name: {"installed, MB": installed(list(PEERS[name][1]))} for name in names})
    attention_mask(
      rounds(
        "training",
        [n for n in names if n in ("tinyformer float32", "torch float32")],
        folder,
        ["training step, ms"],
        args.repeat,
        1,
      )
    )
  print(
    table(results, machine),
    "",
    ", ".join(
      f"{k}: {v:,.0f}" if isinstance(v, float) else f"{k}: {v}" for k, v in machine.items()
    ),
    sep="\n",
  )
  return 0


def processor() -> str:
  """The processor's name, as far as the system tells it."""
  try:
    return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]  # type: ignore[index]
  except (OSError, TypeError):
    return platform.processor() or platform.machine()


if __name__ == "__main__":
  sys.exit(cli.run(main))
