"""`python train.py DATA` teaches a GPT-2 a text, from nothing: its own vocabulary, checkpoints that gpt.py and transformers open."""
import argparse, hashlib, json, math, sys, time
from pathlib import Path
from typing import Any
import numpy as np
import backend, console

def parse(argv:list[str]|None) -> argparse.Namespace:
  p = argparse.ArgumentParser(prog="train.py", description="Teach a GPT-2 a text.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  p.add_argument("data", type=Path, nargs="+", help="text files (also .gz, .xz) or folders of them; <|endoftext|> stands between documents")
  p.add_argument("-o", "--out", type=Path, default=Path("weights/mine"), help="the folder to write")
  p.add_argument("--vocab", type=console.number(int, 257), default=2048, help="tokens of the vocabulary, learned from the text")
  p.add_argument("--layers", type=console.number(int, 1), default=4)
  p.add_argument("--heads", type=console.number(int, 1), default=4)
  p.add_argument("--dim", type=console.number(int, 1), default=128)
  p.add_argument("--context", type=console.number(int, 1), default=256, help="tokens that the model sees at once")
  p.add_argument("--batch", type=console.number(int, 1), default=8, help="texts of --context tokens in a step")
  p.add_argument("--steps", type=console.number(int, 1), default=2000)
  p.add_argument("--lr", type=console.number(float, 0), default=1e-3, help="the highest learning rate")
  p.add_argument("--warmup", type=console.number(int, 0), default=100, help="steps in which the learning rate rises; a cosine takes it to a tenth after")
  p.add_argument("--weight-decay", type=console.number(float, 0), default=0.1, help="of the matrices; norms and biases have none")
  p.add_argument("--clip", type=console.number(float, 1e-9), default=1.0, help="the longest gradient")
  p.add_argument("--dropout", type=console.number(float, 0, 1), default=0.0)
  p.add_argument("--seed", type=console.number(int, 0), default=1337)
  p.add_argument("--every", type=console.number(int, 1), default=250, help="steps between two looks at the held-out text, each of which saves")
  p.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the weights in the folder")
  p.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint, with the settings that it began with; --every and --dtype may change")
  p.add_argument("--device", help="tinygrad's device, such as CPU, METAL or CUDA")
  args = p.parse_args(argv)
  unset = argparse.Namespace(**dict.fromkeys(vars(args)))
  args.given = [name for name, value in vars(p.parse_args(argv, unset)).items() if value is not None]   # not left at its default
  return args

def schedule(step:int, steps:int, warmup:int, lr:float) -> float:
  """The learning rate of a step, the first of which is 0: up in a line, then down along a cosine to a tenth."""
  if step < warmup: return lr * (step + 1) / warmup
  return lr * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

def windows(ids:np.ndarray, context:int) -> np.ndarray:
  """(N, context + 1): the text cut into pieces that overlap by one token, each token but the first once a target; the rest is left."""
  n = (len(ids) - 1) // context
  return np.stack([ids[i*context:(i+1)*context + 1] for i in range(n)])

def rows(path:Path, step:int) -> list[str]:
  """The log's lines up to a step; of a new log, its head."""
  lines = path.read_text().splitlines() if path.exists() else ["step,tokens,learned,held_out,bits_per_byte,seconds"]
  return lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]

def split(pieces:np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(N, T + 1) -> inputs (N, T) and the tokens that follow each of them, (N, T)."""
  return pieces[:, :-1].copy(), pieces[:, 1:].copy()

def sample(pieces:np.ndarray, most:int, batch:int) -> np.ndarray:
  """So many of the pieces, evenly spread, in whole batches: (M, batch, T + 1). Some come twice where they do not fill a batch."""
  count = max(1, min(most, len(pieces)) // batch) * batch
  return pieces[np.linspace(0, len(pieces) - 1, count).astype(int)].reshape(-1, batch, pieces.shape[1])

def begin(args:argparse.Namespace, text:str) -> dict[str, Any]:
  """Where the run stands: at its first step, or, with --resume, where the folder's checkpoint was saved, with the settings of that run.

  text: a hash of the documents. Raises Usage for a folder or arguments that do not fit.
  """
  from models import checkpoint
  file = args.out / "training.safetensors"
  if not args.resume:
    if there := [n for n in ("training.safetensors", "model.safetensors", "config.json", "vocab.json") if (args.out / n).exists()]:
      raise console.Usage(f"{args.out} holds {there[0]}: " + ("go on with --resume, or " if file.exists() else "") + "name another folder with -o")
    return {"step": 0, "best": math.inf, "text": text}
  if not file.exists(): raise console.Usage(f"--resume: {file} is not there")
  saved = json.loads(checkpoint.read_metadata(file)["training"])
  if saved["text"] != text: raise console.Usage("--resume: this is not the text that the run began with")
  for name, value in saved["settings"].items():
    if name in ("every", "dtype") and name in args.given: continue
    if name in args.given and getattr(args, name) != value: raise console.Usage(f"--resume: the run began with --{name.replace('_', '-')} {value}")
    setattr(args, name, value)
  return saved

def main(argv:list[str]|None=None) -> int:
  args = parse(argv)
  backend.prepare(args.device)
  from tinygrad import Tensor
  from models import FAST, checkpoint, gpt2
  from parts.learner import Learner
  from text.documents import hold_out, read_documents
  from text.tokenizer import BytePairEncoding
  from transformer import loss

  out, checkpoint_file, log = args.out, args.out / "training.safetensors", args.out / "log.csv"
  documents = read_documents(args.data)
  state = begin(args, hashlib.sha256("\0".join(documents).encode()).hexdigest())
  settings = {name: value for name, value in vars(args).items() if name not in ("data", "out", "resume", "device", "given")}

  learn, held = hold_out(documents, args.seed)
  tokenizer = BytePairEncoding.load(out) if args.resume else BytePairEncoding.train(learn, args.vocab)
  ids, held_ids = tokenizer.encode_documents(learn), tokenizer.encode_documents(held)
  if min(len(ids), len(held_ids)) <= args.context: raise ValueError(f"the text is too short for a context of {args.context} tokens")
  bits_per_byte = len(held_ids) / sum(len(d.encode()) for d in held) / math.log(2)   # for each nat per token
  Tensor.manual_seed(args.seed)
  model = gpt2.GPT2(len(tokenizer), args.context, args.dim, args.heads, args.layers, dropout=args.dropout, **FAST)
  learner = Learner(model, lambda x, y: loss(model(x), y, smoothing=0), args.weight_decay, args.clip)
  console.note(f"{len(ids):,} tokens to learn from, {len(held_ids):,} held out, a vocabulary of {len(tokenizer):,}, "
               f"{sum(t.numel() for name, t in learner.state.items() if name.startswith('model.')):,} parameters")

  if not args.resume:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
  step, best, lines = state["step"], state["best"], rows(log, state["step"])
  if args.resume:
    entries = checkpoint.read_safetensors(checkpoint_file)
    for name, t in learner.state.items(): t.assign(Tensor(entries[name].numpy())).realize()
    learner.drawn = state["drawn"]
  def save() -> None:
    training = json.dumps({"step": step, "best": best, "text": state["text"], "settings": settings, "drawn": learner.drawn})
    checkpoint.write_safetensors(checkpoint_file, {name: t.numpy() for name, t in learner.state.items()}, {"training": training})

  bar, begun, recent = console.Bar("train"), time.monotonic(), list[float]()
  with console.deferred_interrupt() as interrupted:   # Ctrl-C waits for the step to end: half of one could not be gone on from
    while True:
      if step and (step % args.every == 0 or step == args.steps) and not lines[-1].startswith(f"{step},"):
        pieces = sample(windows(held_ids, args.context), 128, args.batch)
        now, learned = float(np.mean([learner.measure(*split(p)) for p in pieces])), float(np.mean(recent or [math.nan]))
        lines.append(f"{step},{step * args.batch * args.context},{learned:.4f},{now:.4f},{now * bits_per_byte:.4f},{time.monotonic() - begun:.0f}")
        bar.clear()
        console.note(f"step {step}: learned {learned:.3f}, held out {now:.3f} nats a token, {now * bits_per_byte:.3f} bits a byte")
        if now < best:
          best = now
          gpt2.save(model, out, args.dtype, eos_token_id=tokenizer.end, bos_token_id=tokenizer.end)
        checkpoint.write_text(log, "\n".join(lines) + "\n")
        save()
        begun, recent = time.monotonic(), []
      if step >= args.steps or interrupted(): break
      starts = np.random.default_rng([args.seed, step]).integers(0, len(ids) - args.context, args.batch)
      rate = schedule(step, args.steps, args.warmup, args.lr)
      recent.append(learner.learn(rate, *split(np.stack([ids[i:i+args.context+1] for i in starts]))))
      if not math.isfinite(recent[-1]):
        raise ValueError(f"the loss of step {step + 1} is {recent[-1]}: " + (f"{checkpoint_file} is the last good one" if checkpoint_file.exists() else "try a lower --lr"))
      step += 1
      bar(step, args.steps, f"loss {recent[-1]:.3f} {len(recent) * args.batch * args.context / (time.monotonic() - begun):,.0f} tokens/s")
  bar.clear()
  if step >= args.steps:
    if state["step"] >= args.steps: console.note(f"this run was over after step {step}")
    return 0
  save()
  console.note(f"stopped after step {step}: go on with --resume")
  return 130

if __name__ == "__main__": sys.exit(console.run(main))
