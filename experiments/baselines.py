"""`python experiments/baselines.py DATA... -m MODEL` holds a model against a Kneser-Ney 5-gram model and against xz, in bits a byte of the text that train.py held out."""

import argparse
import json
import lzma
import math
import sys
import time
from pathlib import Path

import numpy as np

from tinyformer import cli
from tinyformer.device import select_device


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="experiments/baselines.py",
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    description="Hold a model against a Kneser-Ney 5-gram model of the same tokens and against xz, on the documents that train.py held out.",
  )
  p.add_argument(
    "data",
    type=Path,
    nargs="+",
    help="the files and folders that train.py was given, in the same order",
  )
  p.add_argument(
    "-m",
    "--model",
    default="tiny",
    help="gpt2, owner/repo, or a folder: the model, whose tokens the 5-grams are made of",
  )
  p.add_argument(
    "--val-seed", type=cli.number(int, 0), default=1337, metavar="SEED", help="train.py's --seed"
  )
  p.add_argument(
    "--val-fraction",
    type=cli.number(float, 1e-9, 0.5),
    default=0.05,
    metavar="SHARE",
    help="of the text, as train.py was told",
  )
  p.add_argument(
    "--max-tokens-per-document",
    type=cli.number(int, 1),
    help="look at no more than the first so many tokens of each document",
  )
  p.add_argument("--order", type=cli.number(int, 1), default=5, help="the length of the n-grams")
  p.add_argument("-o", "--out", type=Path, help="a file to write the numbers to, as JSON")
  p.add_argument("--device", help="tinygrad's device, such as CPU, METAL or CUDA")
  p.add_argument("--offline", action="store_true", help="ask no hub")
  return p.parse_args(argv)


class KneserNey:
  """Interpolated modified Kneser-Ney (Chen & Goodman 1999, sec. 3): how likely a token w is after h, the order - 1 tokens before it.

  p(w | h) = (c(h w) - D(c(h w))) / c(h) + g(h) p(w | h'), where c(h) is the sum of c(h w) over w, g(h) the sum of D(c(h w)) over w, divided by c(h),
  and h' is h without its first token. Where c(h) is 0, p(w | h) = p(w | h'). Below the single tokens stands 1 / vocab.
  c counts the n-grams of the text that are `order` long; of a shorter one, how many different tokens stand before it (its continuation count).
  D(0) = 0, D(1) = 1 - 2 Y n2 / n1, D(2) = 2 - 3 Y n3 / n2, D(3 and more) = 3 - 4 Y n4 / n3, with Y = n1 / (n1 + 2 n2) (eq. 26), for each length:
  n1 of its c are 1, and so on. Where one of these is 0 or a D(k) is not from 0 to k, as with few single tokens, they are 0.5, 1, 1.5, as in KenLM.

  ids (T,): one text.  An n-gram's number is its place in a sorted array of (the number of its first n - 1 tokens) * vocab + its last token.
  """

  def __init__(self, ids: np.ndarray, vocab: int, order: int = 5):
    if len(ids) < order:
      raise ValueError(f"a text of {len(ids):,} tokens has no {order}-gram")
    self.vocab, self.keys, self.counts = vocab, list[np.ndarray](), list[np.ndarray]()
    numbers = np.zeros(
      len(ids), np.int64
    )  # of the n-gram that ends at each place, -1 where the text has not yet so many tokens
    for n in range(1, order + 1):
      before = np.concatenate([[min(0, 1 - n)], numbers[:-1]]).clip(-1)
      whole = np.flatnonzero(before >= 0)
      keys, first, found, counts = np.unique(
        before[whole] * vocab + ids[whole],
        return_index=True,
        return_inverse=True,
        return_counts=True,
      )
      if n > 1:
        self.counts.append(
          np.bincount(numbers[whole[first]], minlength=len(self.keys[-1]))
        )  # each n-gram counts once for its last n - 1 tokens
      self.keys.append(keys)
      numbers = np.full(len(ids), -1, np.int64)
      numbers[whole] = found
    self.counts.append(counts)
    self.discounts = [discounts(c) for c in self.counts]
    self.totals, self.left = (
      list[np.ndarray](),
      list[np.ndarray](),
    )  # c(h) and g(h), by the number of h
    for keys, count, d, many in zip(
      self.keys, self.counts, self.discounts, [1, *map(len, self.keys)]
    ):
      total = np.bincount(keys // vocab, count, many)
      self.totals.append(total)
      self.left.append(
        np.bincount(keys // vocab, d[count.clip(max=3)], many) / np.maximum(total, 1)
      )

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    """(T,) -> (T,): the probability of each token of a text after those before it, of which there are few at first."""
    p, history = (
      np.full(len(ids), 1 / self.vocab),
      np.zeros(len(ids), np.int64),
    )  # history: the number of the n - 1 tokens before each, or -1
    for keys, counts, d, totals, left in zip(
      self.keys, self.counts, self.discounts, self.totals, self.left
    ):
      key = history * self.vocab + ids
      at = np.searchsorted(keys, key).clip(max=len(keys) - 1)
      seen = (history >= 0) & (keys[at] == key)
      count, total = np.where(seen, counts[at], 0), np.where(history >= 0, totals[history], 0)
      p = np.where(
        total > 0, (count - d[count.clip(max=3)]) / np.maximum(total, 1) + left[history] * p, p
      )
      history = np.concatenate([[-1], np.where(seen, at, -1)[:-1]])
    return p


def discounts(counts: np.ndarray) -> np.ndarray:
  """(4,): D of 0, 1, 2, and 3 and more."""
  n = np.bincount(counts.clip(max=5), minlength=6)
  if n[1:5].all():
    y = n[1] / (n[1] + 2 * n[2])
    d = np.array([0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))])
    if (d >= 0).all():
      return d
  return np.array([0, 0.5, 1, 1.5])


def xz(learn: bytes, held: bytes, most: int = 3 << 29) -> tuple[int, int]:
  """(bytes that xz needs for `held` after `learn`, bytes of the window): how much longer both together become than `learn` alone, whose end is left
  out where the window cannot hold it. What is held out serves what follows it too, as a text serves itself in any use of xz.

  Preset 9 extreme with a window as large as the text; most: what LZMA's format allows. It needs some 11 bytes of memory for each of the window's.
  """
  window = max(4096, min(most, len(learn) + len(held)))
  learn = learn[max(0, len(learn) + len(held) - window) :]

  def size(data: bytes) -> int:
    return len(
      lzma.compress(
        data,
        lzma.FORMAT_RAW,
        filters=[{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}],
      )
    )

  return size(learn + held) - size(learn), window


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  select_device(args.device)
  import evaluate
  from tinyformer import checkpoints
  from tinyformer.checkpoints import safetensors
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
  from tinyformer.training.documents import train_val_split, read_documents

  folder = cli.find_model(args, args.model)
  tokenizer, model = BytePairEncoding.load(folder), checkpoints.load_module(folder)
  learn, held = train_val_split(read_documents(args.data), args.val_seed, args.val_fraction)
  ids, texts = evaluate.begun(tokenizer, held, args.max_tokens_per_document)
  size, stride, bits = (
    sum(len(t.encode()) for t in texts),
    max(1, model.context // 2),
    dict[str, float](),
  )
  if not size:
    raise ValueError("there is no token to predict")
  cli.note(
    f"{len(held):,} documents held out of {len(learn) + len(held):,}: {sum(len(x) - 1 for x in ids):,} tokens, {size:,} bytes; windows of {model.context} tokens, {stride} new ones in each"
  )

  def tell(name: str, cost: float, more: str) -> None:
    bits[name] = cost / size
    cli.note(f"{name}: {more}, {cli.clock(time.monotonic() - begun)} minutes")

  begun = time.monotonic()
  stream = tokenizer.encode_documents(learn)
  grams = KneserNey(stream, len(tokenizer), args.order)
  tell(
    f"{args.order}-gram Kneser-Ney",
    -sum(np.log2(grams(np.array(x))[1:]).sum() for x in ids),
    f"learned from {len(stream):,} tokens, {sum(map(len, grams.keys)):,} n-grams",
  )
  del grams
  begun = time.monotonic()
  read, unread = ("".join(d).encode() for d in (learn, texts))  # end to end
  needed, window = xz(read, unread)
  tell("xz", 8 * needed, f"a window of {window:,} bytes after {len(read):,} to learn from")
  begun = time.monotonic()
  tell(
    folder.name,
    sum(losses.sum() for _, losses in evaluate.nats(model, ids, stride)) / math.log(2),
    f"a vocabulary of {len(tokenizer):,}",
  )
  print(f"{'':20} {'bits a byte':>12} {'above ' + folder.name:>20}")
  for name, value in bits.items():
    print(f"{name:20} {value:12.4f} {value - bits[folder.name]:20.4f}")
  if args.out:
    safetensors.write_text(
      args.out,
      json.dumps(
        {
          "bits_per_byte": bits,
          "bytes": size,
          "tokens": sum(len(x) - 1 for x in ids),
          "documents": len(held),
        },
        indent=2,
      )
      + "\n",
    )
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
