"""`python evaluate.py DATA -m MODEL` tells how well a model predicts a text: perplexity, and bits per byte."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tinyformer import cli
from tinyformer.device import select_device


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="evaluate.py",
    description="Tell how well a model predicts a text.",
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  p.add_argument(
    "data",
    type=Path,
    nargs="+",
    help="text files (also .gz, .xz) or folders of them; <|endoftext|> stands between documents",
  )
  p.add_argument(
    "-m",
    "--model",
    default="tiny",
    help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, owner/repo, or a folder",
  )
  p.add_argument(
    "--stride",
    type=cli.number(int, 1),
    help="tokens that each window adds; those before them are context alone (default: half of the model's context)",
  )
  p.add_argument(
    "--val-seed",
    type=cli.number(int, 0),
    metavar="SEED",
    help="only the documents that train.py held out with this seed",
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
  p.add_argument(
    "--dtype",
    choices=["float32", "float16", "bfloat16", "int8"],
    default="float32",
    help="of the weights in memory; it computes in float32",
  )
  p.add_argument("--device", help="tinygrad's device, such as CPU, METAL or CUDA")
  p.add_argument("--offline", action="store_true", help="ask no hub")
  return p.parse_args(argv)


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """(begin, first, end) for each window of `context` inputs at most over so many tokens: tokens `first` to `end` count, those from `begin` on are seen.

  Every token but the first, which nothing comes before, counts once.
  """
  first = 1
  while first < length:
    end = min(length, first + (context if first == 1 else stride))
    yield max(0, end - 1 - context), first, end
    first = end


def begun(
  tokenizer, documents: Sequence[str], most: int | None = None
) -> tuple[list[list[int]], list[str]]:
  """For each document its first `most` tokens, after the one that ends a text if there is such a one, and the text of those that are predicted:
  all but the first id, which nothing comes before.
  """
  start = [] if tokenizer.end is None else [tokenizer.end]
  ids = [start + tokenizer.encode(d)[:most] for d in documents]
  return ids, list(documents) if start and most is None else [tokenizer.decode(x[1:]) for x in ids]


def nats(
  model, documents: Sequence[Sequence[int]], stride: int, batch: int = 4
) -> Iterator[tuple[int, np.ndarray]]:
  """For each document of token ids, in windows: (which document, the negative log-probabilities of the window's tokens that count)."""
  from tinygrad import Tensor, nn

  from tinyformer.kernels.compiled_step import CompiledStep

  C = model.context

  def look(x: Tensor, y: Tensor) -> Tensor:
    return -model(x).log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1).realize()

  step = CompiledStep(look, captured_buffers=nn.state.get_state_dict(model))
  pieces = [
    (i, *window) for i, ids in enumerate(documents) for window in windows(len(ids), C, stride)
  ]
  for at in range(0, len(pieces), batch):
    x, y = np.zeros((2, batch, C), np.int32)
    for row, (i, begin, _, end) in enumerate(
      pieces[at : at + batch]
    ):  # what stands behind a window's end is later than all of it
      x[row, : end - 1 - begin], y[row, : end - 1 - begin] = (
        documents[i][begin : end - 1],
        documents[i][begin + 1 : end],
      )
    losses = step(x, y)
    for row, (i, begin, first, end) in enumerate(pieces[at : at + batch]):
      yield i, losses[row, first - 1 - begin : end - 1 - begin].astype(np.float64)


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  device = select_device(args.device)
  from tinyformer import checkpoints
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
  from tinyformer.training.documents import read_documents, train_val_split

  folder = cli.find_model(args, args.model)
  tokenizer, model = BytePairEncoding.load(folder), checkpoints.load_module(folder, args.dtype)
  stride = args.stride or max(1, model.context // 2)
  if stride > model.context:
    raise cli.UsageError(f"a stride of {stride} leaves tokens out: the context is {model.context}")
  documents = read_documents(args.data)
  if args.val_seed is not None:
    documents = train_val_split(documents, args.val_seed, args.val_fraction)[1]
  ids, texts = begun(tokenizer, documents, args.max_tokens_per_document)
  total, counted, bar = 0.0, 0, cli.Bar("evaluate")
  whole = sum(max(0, len(x) - 1) for x in ids)
  if not whole:
    raise ValueError("there is no token to predict")
  for _, losses in nats(model, ids, stride):
    total, counted = total + losses.sum(), counted + len(losses)
    bar(counted, whole, f"{total / counted:.3f} nats a token")
  bar.clear()
  words, size = sum(len(t.split()) for t in texts), sum(len(t.encode()) for t in texts)
  cli.note(
    f"{folder} in {args.dtype} on {device}: {len(ids):,} documents, {counted:,} tokens, {words:,} words between blanks, {size:,} bytes of UTF-8, as they stand (nothing detokenised)"
  )
  cli.note(
    f"windows of {model.context} tokens, {stride} new ones in each; a document's first token is "
    + ("predicted from <|endoftext|>" if tokenizer.end is not None else "not predicted")
  )
  print(
    f"{total / counted:.4f} nats a token, perplexity {math.exp(total / counted):.3f} a token, {math.exp(min(700, total / words)):.2f} a word; {total / size / math.log(2):.4f} bits a byte"
  )
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
