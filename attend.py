"""`python attend.py -p "sentence"` shows who attends to whom: every layer and head of a decoder or an encoder, in shades."""
import argparse, shutil, sys, unicodedata
from collections.abc import Iterator, Sequence
import numpy as np
import backend, console

MOST = 256   # tokens that are shown at once
SHADES = " ░▒▓█"

def parse(argv:list[str]|None) -> argparse.Namespace:
  p = argparse.ArgumentParser(prog="attend.py", description="Show who attends to whom in a sentence.")
  p.add_argument("-p", "--prompt", required=True, help="the sentence; - is standard input")
  console.model_arguments(p, "gpt2, owner/repo, or a folder (default: tiny, the model that comes with the project)")
  p.add_argument("--layer", type=console.number(int, 0), help="only this layer, the first is 0")
  p.add_argument("--head", type=console.number(int, 0), help="only this head, the first is 0")
  p.add_argument("--last", type=console.number(int, 1), metavar="N", help=f"read the last N tokens alone; more than {MOST} are too many to look at")
  return p.parse_args(argv)

def weights(model, recorder, ids:Sequence[int]) -> np.ndarray:
  """(layers, H, T, T): what each token, a row, attends to, a column. Each row sums to 1. recorder: what the model was given as `attend`."""
  from tinygrad import Tensor
  recorder.weights.clear()
  model.hidden(Tensor([list(ids)])).realize()
  return np.stack([w.numpy()[0] for w in recorder.weights])

def labels(tokenizer, ids:Sequence[int]) -> list[str]:
  """A token's text as one line that a terminal shows from the left: a dot for its blank and for what cannot be shown."""
  names = {i: s for s, i in tokenizer.specials.items()}
  texts = [names.get(i) or tokenizer.token(i).decode(errors="replace") for i in ids]
  return ["".join(c if c.isprintable() and c != " " and unicodedata.bidirectional(c) not in ("R", "AL", "AN") else "·" for c in text) for text in texts]

def wide(text:str) -> int:
  """How many columns of a terminal a text takes."""
  return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

def shaded(row:np.ndarray) -> str:
  """Weights as shades, the largest of the row full."""
  return "".join(SHADES[int(n)] for n in np.ceil(row / max(row.max(), 1e-9) * (len(SHADES) - 1) - 1e-3))

def drawn(layer:int, heads:Sequence[int], maps:np.ndarray, names:Sequence[str], width:int) -> Iterator[str]:
  """The heads of a layer, maps (H, T, T), beside each other as far as the width goes: a line a token."""
  margin, T = max(map(wide, names)), len(names)
  each = max(1, (width - margin) // (T + 2))
  for first in range(0, len(heads), each):
    some = heads[first:first + each]
    yield f"layer {layer}, head{'s' if len(some) > 1 else ''} {', '.join(map(str, some))}"
    for t, name in enumerate(names): yield " " * (margin - wide(name)) + name + "".join(f" ▏{shaded(maps[h, t])}" for h in some)
    yield ""

def main(argv:list[str]|None=None) -> int:
  args = parse(argv)
  if hasattr(sys.stdout, "reconfigure"): sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  text = console.read_prompt(args.prompt)
  backend.prepare(args.device)
  import models
  from parts.recorder import Recorder
  from text import load
  folder, recorder = console.find_model(args, args.model or "tiny"), Recorder()
  model = models.load(folder, args.dtype, attend=recorder)
  if model.task in ("respond", "picture"): raise console.Usage(f"{args.model} is neither a decoder nor an encoder of text: it cannot be shown yet")
  tokenizer = load(folder)
  ids = tokenizer.single(tokenizer.encode(text))
  ids = ids[-args.last:] if args.last else ids
  if len(ids) > MOST: raise console.Usage(f"the text has {len(ids):,} tokens, {MOST} can be shown: --last {MOST} shows its end")
  maps, width = weights(model, recorder, ids), shutil.get_terminal_size((160, 24)).columns
  layers, heads = maps.shape[:2]
  for name, value, most in (("layer", args.layer, layers), ("head", args.head, heads)):
    if value is not None and value >= most: raise console.Usage(f"--{name} {value}: this model has {name}s 0 to {most - 1}")
  for layer in range(layers) if args.layer is None else [args.layer]:
    for line in drawn(layer, range(heads) if args.head is None else [args.head], maps[layer], labels(tokenizer, ids), width): print(line)
  return 0

if __name__ == "__main__": sys.exit(console.run(main))
