"""`python bench.py` measures GPT-2's 124M shape here and in every peer that is installed, in one run, each in its own process.

The weights are random and the same for all. Decoding is greedy; prefill computes the head at the last place only, in every peer that can.
Each figure is the median of several repetitions (in brackets: the least and the most), at the better of one thread and all, and beside it its
share of what this machine can do. `pip install -e '.[bench]'` brings the peers.
"""
import argparse, importlib.metadata, importlib.util, json, os, platform, re, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
import numpy as np

CORES = os.cpu_count() or 1
PEERS = {   # name: (package that it needs, its packages, thread counts to try)
  "tinyformer float32": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "tinyformer bfloat16": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "tinyformer int8": ("tinygrad", ["tinygrad", "numpy", "tiktoken", "regex"], [CORES]),
  "torch float32": ("transformers", ["torch", "transformers"], [1, CORES]),
  "torch bfloat16": ("transformers", ["torch", "transformers"], [1, CORES]),
  "ctranslate2 float32": ("ctranslate2", ["ctranslate2"], [1, CORES]),
  "ctranslate2 int8": ("ctranslate2", ["ctranslate2"], [1, CORES]),
}
TASKS = ["decode after 8", "decode after 512", "decode, batch 8", "prefill 512", "prefill 1000"]   # all in tokens a second
NEW = 64   # tokens to decode
PARAMETERS, BYTES = 124_439_808, {"float32": 4, "bfloat16": 2, "int8": 1}   # of the weights, and of one of them
NANOGPT:dict[str, Any] = dict(vocab=65, context=64, dim=128, heads=4, layers=4)   # its CPU setting, batch 12

def make_weights(folder:Path) -> None:
  """GPT-2's smallest shape with random weights (124,439,808 parameters), and a vocabulary of as many made-up tokens."""
  import backend
  backend.prepare()
  from tinygrad import Tensor, nn
  from models import gpt2
  from text.tokenizer import LETTERS, BytePairEncoding, END, spell
  model, draw = gpt2.GPT2(), np.random.default_rng(0)
  for t in nn.state.get_parameters(model):
    t.replace(Tensor(draw.standard_normal(t.shape, dtype=np.float32) * np.float32(0.02) + np.float32(t.ndim == 1)))
  gpt2.save(model, folder, eos_token_id=50256, bos_token_id=50256)
  merges = [(bytes([a]), bytes([b])) for a in LETTERS for b in LETTERS][:50_000]
  tokens = [bytes([b]) for b in LETTERS] + [a + b for a, b in merges]
  BytePairEncoding(merges, {spell(t): i for i, t in enumerate(tokens)} | {END: 50256}).save(folder)

def ids_of(batch:int, length:int) -> np.ndarray: return np.random.default_rng(1).integers(0, 50_000, (batch, length))

class Tinyformer:
  def __init__(self, folder:Path, kind:str, threads:int):
    import backend
    backend.prepare()
    import models
    from text.generate import Reader
    model = models.load(folder, kind)
    self.readers = {batch: Reader(model, batch) for batch in (1, 8)}

  def prefill(self, batch:int, length:int) -> np.ndarray:
    reader = self.readers[batch]
    reader.place = 0
    return reader(ids_of(batch, length))

  def decode(self, batch:int, logits:np.ndarray) -> None:
    for _ in range(NEW): logits = self.readers[batch](logits.argmax(-1)[:, None])

class Torch:
  def __init__(self, folder:Path, kind:str, threads:int):
    import torch, transformers
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    self.torch, self.model = torch, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, kind)).eval()

  def prefill(self, batch:int, length:int):
    return self.model(self.torch.tensor(ids_of(batch, length)), use_cache=True, logits_to_keep=1)

  def decode(self, batch:int, out) -> None:
    for _ in range(NEW): out = self.model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)

class Ctranslate2:
  def __init__(self, folder:Path, kind:str, threads:int):
    import ctranslate2
    converted = folder / f"ctranslate2-{kind}"
    if not converted.exists():   # in a process of its own, so that it does not count in the memory
      code = f"import ctranslate2; ctranslate2.converters.TransformersConverter(r'{folder}').convert(r'{converted}', quantization='{kind}')"
      subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    self.model = ctranslate2.Generator(str(converted), intra_threads=threads, compute_type=kind)
    self.tokens = [token for token, _ in sorted(json.loads((folder / "vocab.json").read_text()).items(), key=lambda item: item[1])]

  def run(self, batch:int, length:int, new:int):
    prompts = [[self.tokens[i] for i in row] for row in ids_of(batch, length)]
    return self.model.generate_batch(prompts, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, end_token=[])

  def prefill(self, batch:int, length:int): return self.run(batch, length, 1) and (batch, length)
  def decode(self, batch:int, prompt) -> None: self.run(batch, prompt[1], NEW + 1)   # its prefill is taken off again

KINDS:dict[str, Any] = {"tinyformer": Tinyformer, "torch": Torch, "ctranslate2": Ctranslate2}

def speeds(name:str, folder:Path, threads:int, repeat:int) -> dict[str, Any]:
  """What one peer does, in this process: tokens a second of each task."""
  library, kind = name.split()
  peer, results = KINDS[library](folder, kind, threads), {}
  for task in TASKS:
    batch, length = 8 if "batch" in task else 1, int(re.findall(r"\d+", task)[0]) if "batch" not in task else 8
    spent:list[float] = []
    for turn in range(repeat + 2):   # the first two trace, compile and warm up
      begun = time.perf_counter()
      state = peer.prefill(batch, length)
      middle = time.perf_counter()
      if "decode" in task: peer.decode(batch, state)
      end = time.perf_counter()
      took = middle - begun if "prefill" in task else end - middle - (middle - begun if library == "ctranslate2" else 0)
      if turn >= 2: spent.append((length if "prefill" in task else NEW * batch) / took)
    results[task] = spent
  return results

def memory(name:str, folder:Path, threads:int) -> float:
  """The peak of memory in MB of a process that loads the model, reads 512 tokens and decodes."""
  library, kind = name.split()
  peer = KINDS[library](folder, kind, threads)
  peer.decode(1, peer.prefill(1, 512))
  try: return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3   # type: ignore[index] # getrusage counts the parent in
  except OSError:
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

SIZES = {"positions": "context", "embd": "dim", "head": "heads", "layer": "layers"}   # GPT2Config's words to ours

def training(name:str, threads:int, repeat:int) -> list[float]:
  """Milliseconds of a step of nanoGPT's CPU setting."""
  x, y = (np.random.default_rng(i).integers(0, 65, (12, 64)).astype(np.int32) for i in range(2))
  if name.startswith("tinyformer"):
    import backend
    backend.prepare()
    from models import FAST
    from models.gpt2 import GPT2
    from parts.learner import Learner
    from parts.loss import loss
    model = GPT2(**NANOGPT, **FAST)
    learner = Learner(model, lambda x, y: loss(model(x), y, smoothing=0))
    def step(): learner.learn(1e-3, x, y)
  else:
    import torch, transformers
    torch.set_num_threads(threads)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{f"n_{key}": NANOGPT[mine] for key, mine in SIZES.items()}, vocab_size=NANOGPT["vocab"],
                                                                  resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)).train()
    optimizer, inputs, targets = torch.optim.AdamW(theirs.parameters(), lr=1e-3), torch.tensor(x).long(), torch.tensor(y).long()
    def step():
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten()).backward()
      optimizer.step()
  spent = []
  for turn in range(repeat * 4 + 3):
    begun = time.perf_counter()
    step()
    if turn >= 3: spent.append((time.perf_counter() - begun) * 1000)
  return spent

def start(name:str, folder:Path, repeat:int) -> dict[str, list[float]]:
  """Seconds from the command to the first token, the whole process: with an empty kernel cache (tinyformer's), and warm."""
  library, kind = name.split()
  code = {"tinyformer": f"import console, gpt, sys; sys.exit(console.run(lambda: gpt.main(['-m', r'{folder}', '-p', 'Once', '-n', '1', '--dtype', '{kind}'])))",
          "torch": f"import torch, transformers as t; m = t.AutoModelForCausalLM.from_pretrained(r'{folder}', dtype=torch.{kind}); "
                   f"k = t.GPT2Tokenizer.from_pretrained(r'{folder}'); print(k.decode(m.generate(**k('Once', return_tensors='pt'), max_new_tokens=1)[0]))",
          "ctranslate2": f"import ctranslate2 as c; m = c.Generator(r'{folder / f'ctranslate2-{kind}'}', compute_type='{kind}'); "
                         "print(m.generate_batch([['O', 'n', 'c', 'e']], max_length=1))"}[library]
  with tempfile.TemporaryDirectory() as cache:
    seconds = []
    for _ in range(repeat + 1):
      begun = time.perf_counter()
      subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ | {"XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"})
      seconds.append(time.perf_counter() - begun)
  return {"first token, warm, s": seconds[1:]} | ({"first token, nothing compiled yet, s": seconds[:1]} if library == "tinyformer" else {})

def installed(packages:list[str]) -> float:
  """MB on disk of packages and all that they need."""
  sizes:dict[str, int] = {}
  while packages:
    name = re.match(r"[\w.-]+", packages.pop())[0].lower().replace("_", "-")   # type: ignore[index]
    try: distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError: continue
    if name in sizes: continue
    files = [Path(str(f.locate())) for f in distribution.files or []]
    sizes[name] = sum(f.stat().st_size for f in files if f.exists())
    packages = packages + [r for r in distribution.requires or [] if "extra ==" not in r]
  return sum(sizes.values()) / 1e6

def limits() -> dict[str, float]:
  """What this machine can do with all its cores, as far as numpy shows it: read memory, and multiply matrices."""
  a, b = np.random.default_rng(0).random((CORES, 2**26), np.float32), np.ones((2048, 2048), np.float32)   # a host may keep like pages once
  def best(work) -> float:
    spent = []
    for _ in range(9):
      begun = time.perf_counter()
      work()
      spent.append(time.perf_counter() - begun)
    return min(spent)
  with ThreadPoolExecutor(CORES) as pool: reads = a.nbytes / best(lambda: list(pool.map(np.max, a)))
  return {"one core reads, GB/s": a[0].nbytes / best(a[0].max) / 1e9, "all cores read, GB/s": reads / 1e9, "matrix product, GFLOP/s": 2 * 2048**3 / best(lambda: b @ b) / 1e9}

def work(figure:str, kind:str) -> tuple[str, float]|None:
  """The limit that a figure comes up against, and how much of it (in its own unit) each unit of the figure takes. Training is counted as 6 times its weights."""
  if figure.startswith("decode"): return "all cores read, GB/s", PARAMETERS * BYTES[kind] / 1e9 / (8 if "batch" in figure else 1)
  if figure.startswith("prefill"): return "matrix product, GFLOP/s", 2 * (PARAMETERS - 50257 * 768) / 1e9
  return None

def child(*argv:str) -> Any:
  """The result of this program's `--child` in a process of its own."""
  done = subprocess.run([sys.executable, __file__, "--child", *argv], capture_output=True, text=True)
  if done.returncode: raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
  return json.loads(done.stdout.splitlines()[-1])

def better(runs:list[dict[str, Any]]) -> dict[str, Any]:
  """Of runs with different numbers of threads, the better of each figure."""
  return {task: max((r[task] for r in runs), key=statistics.median) if isinstance(runs[0][task], list) else min(r[task] for r in runs) for task in runs[0]}

def middle(values) -> float|None:
  return statistics.median(values) if isinstance(values, list) else values

def ratio(figure:str, results:dict[str, dict[str, Any]], ours:list[str], theirs:list[str]) -> str:
  """How many times as fast, or as small, our best is as their best; above 1 is ours."""
  fewer = figure.endswith((" s", "MB", "ms"))
  mine, other = ([m for n in names if n in results and (m := middle(results[n].get(figure))) is not None] for names in (ours, theirs))
  if not mine or not other: return "–"
  return f"{min(other) / min(mine) if fewer else max(mine) / max(other):.2f}"

def table(results:dict[str, dict[str, Any]], machine:dict[str, Any]) -> str:
  """Markdown, one table for float32 and one for fewer bits: a row for each figure, a column for each peer; medians, how far the repetitions spread, shares of the limit, and ratios."""
  figures = list(dict.fromkeys(figure for r in results.values() for figure in r))
  def cell(name:str, figure:str) -> str:
    values = results[name].get(figure)
    if (m := middle(values)) is None: return "–"
    digits = 1 if m < 100 else 0
    limit = work(figure, name.split()[1])
    return (f"{m:,.{digits}f}" + (f" ({min(values):,.{digits}f}–{max(values):,.{digits}f})" if isinstance(values, list) and len(values) > 1 else "") +
            (f" {m * limit[1] / machine[limit[0]]:.0%}" if limit else ""))
  def part(names:list[str], figures:list[str]) -> str:
    ours, theirs = ([n for n in names if n.startswith("tinyformer") == own] for own in (True, False))
    rows = [["", *names, "times the best peer"], ["---"] + ["---:"] * (len(names) + 1)]
    rows += [[f, *(cell(n, f) for n in names), ratio(f, results, ours, theirs)] for f in figures]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
  kinds = ([n for n in results if n.endswith("float32") == kind] for kind in (True, False))
  return "\n\n".join(part(names, [f for f in figures if any(f in results[n] for n in names)]) for names in kinds if names)

def main() -> int:
  p = argparse.ArgumentParser(prog="bench.py", description=__doc__.split("\n")[0])   # type: ignore[union-attr]
  p.add_argument("--repeat", type=int, default=5, help="counted repetitions (default: %(default)s)")
  p.add_argument("--json", type=Path, default=Path("bench.json"), help="where to write the figures (default: %(default)s)")
  p.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)}")
  p.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
  args = p.parse_args()
  if args.child:
    what, name, folder, threads, repeat = args.child
    print(json.dumps({"weights": lambda: make_weights(Path(folder)), "speeds": lambda: speeds(name, Path(folder), int(threads), int(repeat)),
                      "memory": lambda: memory(name, Path(folder), int(threads)), "training": lambda: training(name, int(threads), int(repeat))}[what]()))
    return 0
  results:dict[str, dict[str, Any]] = {}
  machine:dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": processor(), "cores": CORES, "python": platform.python_version()} | limits()
  with tempfile.TemporaryDirectory() as temporary:
    child("weights", "", temporary, "0", "0")
    for name in args.peers:
      package, packages, threads = PEERS[name]
      if not importlib.util.find_spec(package):
        print(f"{name}: {package} is not installed", file=sys.stderr)
        continue
      print(f"{name} …", file=sys.stderr, flush=True)
      try:
        results[name] = better([child("speeds", name, temporary, str(n), str(args.repeat)) for n in dict.fromkeys(threads)])
        results[name] |= start(name, Path(temporary), args.repeat)
        results[name] |= {"peak memory, MB": child("memory", name, temporary, str(CORES), "1"), "installed, MB": installed(list(packages))}
        if name in ("tinyformer float32", "torch float32"):
          runs = [child("training", name, temporary, str(n), str(args.repeat)) for n in dict.fromkeys(threads)]
          results[name]["training step, ms"] = min(runs, key=statistics.median)
      except (RuntimeError, subprocess.CalledProcessError) as e: print(f"{name}: {e}", file=sys.stderr)
      args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
  print(table(results, machine), "", ", ".join(f"{k}: {v:,.0f}" if isinstance(v, float) else f"{k}: {v}" for k, v in machine.items()), sep="\n")
  return 0

def processor() -> str:
  """The processor's name, as far as the system tells it."""
  try: return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]   # type: ignore[index]
  except (OSError, TypeError): return platform.processor() or platform.machine()

if __name__ == "__main__": sys.exit(main())
