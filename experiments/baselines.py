"""Compare a model with a Kneser-Ney 5-gram model and xz, in bits per byte of validation text.

`python experiments/baselines.py DATA... -m MODEL` measures all three on the documents that train.py
uses for validation.
"""

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

# The largest window of the LZMA format, in bytes.
MAX_WINDOW = 3 << 29


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="experiments/baselines.py",
    description="Compare a model with a Kneser-Ney n-gram model of the same tokens and with xz, "
    "in bits per byte of the documents that train.py uses for validation.",
  )
  p.add_argument(
    "data",
    type=Path,
    nargs="+",
    help="files and folders that were passed to train.py, in the same order",
  )
  p.add_argument(
    "-m",
    "--model",
    default="tiny",
    help="model to compare, whose tokenizer the n-grams also use: gpt2, owner/repo, or a folder "
    "(default: %(default)s)",
  )
  p.add_argument(
    "--val-seed",
    type=cli.number(int, 0, cli.MAX_SEED),
    default=1337,
    metavar="SEED",
    help="--seed that was passed to train.py (default: %(default)s)",
  )
  p.add_argument(
    "--val-fraction",
    type=cli.number(float, 1e-9, 0.5),
    default=0.05,
    metavar="FRACTION",
    help="--val-fraction that was passed to train.py (default: %(default)s)",
  )
  p.add_argument(
    "--max-tokens-per-document",
    type=cli.number(int, 1, cli.MAX_COUNT),
    metavar="N",
    help="evaluate on the first N tokens of each document (default: all tokens)",
  )
  p.add_argument(
    "--order",
    type=cli.number(int, 1, 20),
    default=5,
    help="length of the n-grams in tokens (default: %(default)s)",
  )
  p.add_argument("-o", "--out", type=Path, help="write the results to this file, as JSON")
  p.add_argument("--device", help="tinygrad device to compute on, such as CPU, METAL or CUDA")
  p.add_argument("--offline", action="store_true", help="do not download from a hub")
  return p.parse_args(argv)


class KneserNey:
  """Interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999, sec. 3).

  The probability of token w after its history h, the order - 1 tokens before w:

    p(w | h) = (c(h w) - D(c(h w))) / c(h) + g(h) p(w | h')  if c(h) > 0, else p(w | h')

  h' is h without its first token. c(h) is the sum of c(h w) over w. g(h) is the sum of D(c(h w))
  over w, divided by c(h). Unigrams are interpolated with the uniform distribution.

  c counts the occurrences of n-grams of length `order`. For shorter n-grams, c is the number of
  distinct tokens that precede the n-gram: its continuation count. See `discounts` for D.

  The n-grams of each length are numbered by their order in a sorted array of keys. The key of an
  n-gram is (number of its first n - 1 tokens) * vocab_size + (its last token).

  ids (T,): the training text. Raises ValueError if the text is shorter than `order`.
  """

  def __init__(self, ids: np.ndarray, vocab_size: int, order: int = 5):
    if len(ids) < order:
      raise ValueError(f"a text of {len(ids):,} tokens contains no {order}-gram")
    self.vocab_size = vocab_size
    self.keys: list[np.ndarray] = []
    self.counts: list[np.ndarray] = []
    self.count_ngrams(ids, order)
    self.discounts = [discounts(c) for c in self.counts]
    # c(h) and g(h), by the number of h.
    self.totals: list[np.ndarray] = []
    self.backoff_weights: list[np.ndarray] = []
    num_histories = [1, *map(len, self.keys[:-1])]
    for keys, counts, d, n in zip(
      self.keys, self.counts, self.discounts, num_histories, strict=True
    ):
      histories = keys // vocab_size
      total = np.bincount(histories, counts, n)
      discounted = np.bincount(histories, d[counts.clip(max=3)], n)
      self.totals.append(total)
      self.backoff_weights.append(discounted / np.maximum(total, 1))

  def count_ngrams(self, ids: np.ndarray, order: int) -> None:
    """Fill `keys` and `counts` for n-grams of length 1 to `order`."""
    # The number of the n-gram that ends at each position, -1 if the text has fewer tokens so far.
    numbers = np.zeros(len(ids), np.int64)
    for n in range(1, order + 1):
      history = np.concatenate([[min(0, 1 - n)], numbers[:-1]]).clip(-1)
      complete = np.flatnonzero(history >= 0)
      keys, first, inverse, counts = np.unique(
        history[complete] * self.vocab_size + ids[complete],
        return_index=True,
        return_inverse=True,
        return_counts=True,
      )
      if n > 1:
        # Each distinct n-gram counts once for its last n - 1 tokens.
        suffixes = numbers[complete[first]]
        self.counts.append(np.bincount(suffixes, minlength=len(self.keys[-1])))
      self.keys.append(keys)
      numbers = np.full(len(ids), -1, np.int64)
      numbers[complete] = inverse
    self.counts.append(counts)

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    """Return the probability of each token of a text (T,), given the tokens before it."""
    p = np.full(len(ids), 1 / self.vocab_size)
    # The number of the n - 1 tokens before each position, -1 if they do not occur in training.
    history = np.zeros(len(ids), np.int64)
    for keys, counts, d, totals, backoff in zip(
      self.keys, self.counts, self.discounts, self.totals, self.backoff_weights, strict=True
    ):
      key = history * self.vocab_size + ids
      number = np.searchsorted(keys, key).clip(max=len(keys) - 1)
      occurs = (history >= 0) & (keys[number] == key)
      count = np.where(occurs, counts[number], 0)
      total = np.where(history >= 0, totals[history], 0)
      ratio = (count - d[count.clip(max=3)]) / np.maximum(total, 1)
      p = np.where(total > 0, ratio + backoff[history] * p, p)
      history = np.concatenate([[-1], np.where(occurs, number, -1)[:-1]])
    return p


def discounts(counts: np.ndarray) -> np.ndarray:
  """Return D(0), D(1), D(2) and D(3 or more) of n-grams with these counts -> (4,).

  D(0) = 0 and D(k) = k - (k + 1) Y n_{k+1} / n_k, with Y = n_1 / (n_1 + 2 n_2). Here n_k is the
  number of n-grams with count k. Source: Chen & Goodman 1999, eq. 26.

  For a small vocabulary of unigrams, one of n_1 to n_4 can be 0, or a discount can be negative. The
  discounts are then 0, 0.5, 1 and 1.5, as in KenLM.
  """
  n = np.bincount(counts.clip(max=5), minlength=6)
  if n[1:5].all():
    y = n[1] / (n[1] + 2 * n[2])
    d = np.array([0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))])
    if (d >= 0).all():
      return d
  return np.array([0, 0.5, 1, 1.5])


def xz_size(train: bytes, val: bytes, max_window: int = MAX_WINDOW) -> tuple[int, int]:
  """Return the bytes that xz needs for `val` after `train`, and the size of its window in bytes.

  The result is the size of both compressed together, minus that of `train` alone. If the window
  cannot hold both, the beginning of `train` is left out. Text in `val` can refer to earlier text in
  `val`, as whenever xz compresses a text.

  The preset is 9 extreme, with a window as large as the text, up to `max_window`. Compression needs
  about 11 bytes of memory per byte of the window.
  """
  window = max(4096, min(max_window, len(train) + len(val)))
  train = train[max(0, len(train) + len(val) - window) :]
  lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}

  def compressed_size(data: bytes) -> int:
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=[lzma2]))

  return compressed_size(train + val) - compressed_size(train), window


class Report:
  """Collects bits per byte of `size` bytes of validation text, and notes each result's time."""

  def __init__(self, size: int):
    self.size = size
    self.bits_per_byte: dict[str, float] = {}
    self.start = time.monotonic()

  def add(self, name: str, bits: float, details: str) -> None:
    """Add the total bits of a model; its time is that since the last result."""
    self.bits_per_byte[name] = bits / self.size
    cli.note(f"{name}: {details}; {cli.clock(time.monotonic() - self.start)} minutes")
    self.start = time.monotonic()

  def print_table(self, baseline: str) -> None:
    """Print bits per byte of each model, and the difference to the baseline."""
    print(f"{'':20} {'bits per byte':>13} {'above ' + baseline:>20}")
    for name, value in self.bits_per_byte.items():
      print(f"{name:20} {value:13.4f} {value - self.bits_per_byte[baseline]:20.4f}")


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  select_device(args.device)
  from tinyformer import checkpoints, files
  from tinyformer.tasks import perplexity
  from tinyformer.tokenization import load_tokenizer
  from tinyformer.training.documents import read_documents, train_val_split

  folder = cli.find_model(args, args.model)
  tokenizer = load_tokenizer(folder)
  model = checkpoints.load_module(folder)
  train, val = train_val_split(read_documents(args.data), args.val_seed, args.val_fraction)
  ids, texts = perplexity.encode_documents(tokenizer, val, args.max_tokens_per_document)
  size = sum(len(t.encode()) for t in texts)
  num_tokens = sum(len(x) - 1 for x in ids)
  stride = max(1, model.context // 2)
  if not size:
    raise ValueError("the validation documents contain no tokens: choose other data")
  cli.note(
    f"{len(val):,} of {len(train) + len(val):,} documents are for validation: "
    f"{num_tokens:,} tokens, {size:,} bytes; "
    f"windows of {model.context} tokens with a stride of {stride}"
  )
  report = Report(size)

  train_ids = tokenizer.encode_documents(train)
  ngrams = KneserNey(train_ids, len(tokenizer), args.order)
  report.add(
    f"{args.order}-gram Kneser-Ney",
    -sum(np.log2(ngrams(np.array(x))[1:]).sum() for x in ids),
    f"trained on {len(train_ids):,} tokens, {sum(map(len, ngrams.keys)):,} n-grams",
  )
  del ngrams  # frees memory for xz
  train_bytes, val_bytes = ("".join(documents).encode() for documents in (train, texts))
  compressed_size, window = xz_size(train_bytes, val_bytes)
  report.add(
    "xz",
    8 * compressed_size,
    f"a window of {window:,} bytes, after {len(train_bytes):,} bytes of training text",
  )
  nats = sum(losses.sum() for _, losses in perplexity.token_losses(model, ids, stride))
  report.add(folder.name, nats / math.log(2), f"a vocabulary of {len(tokenizer):,} tokens")
  report.print_table(folder.name)
  if args.out:
    results = {
      "bits_per_byte": report.bits_per_byte,
      "bytes": size,
      "tokens": num_tokens,
      "documents": len(val),
    }
    files.write_text(args.out, json.dumps(results, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
