"""Measure how well a model predicts a text: `python evaluate.py DATA -m MODEL`.

Prints the loss in nats per token, the perplexity per token and per word, and bits per byte.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tinyformer import cli
from tinyformer.device import select_device


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="evaluate.py",
    description="Measure how well a model predicts a text.",
    formatter_class=cli.HelpFormatter,
  )
  p.add_argument(
    "data",
    type=Path,
    nargs="+",
    help="text files (also .gz, .xz) or folders of them; <|endoftext|> separates documents",
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
    help="tokens that each window predicts; the earlier tokens in the window are only context "
    "(default: half of the model's context)",
  )
  p.add_argument(
    "--val-seed",
    type=cli.number(int, 0),
    metavar="SEED",
    help="use only the validation documents of a train.py run with this --seed",
  )
  p.add_argument(
    "--val-fraction",
    type=cli.number(float, 1e-9, 0.5),
    default=0.05,
    metavar="FRACTION",
    help="--val-fraction of that run",
  )
  p.add_argument(
    "--max-tokens-per-document",
    type=cli.number(int, 1),
    metavar="N",
    help="use at most the first N tokens of each document",
  )
  p.add_argument(
    "--dtype",
    choices=["float32", "float16", "bfloat16", "int8"],
    default="float32",
    help="data type of the weights in memory; computation is in float32",
  )
  p.add_argument("--device", help="tinygrad device, such as CPU, METAL or CUDA")
  p.add_argument("--offline", action="store_true", help="contact no server")
  return p.parse_args(argv)


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """Yield (begin, first, end) for each window over a document of `length` tokens.

  The window's inputs start at token `begin`, and it predicts tokens `first` to `end` (exclusive).
  It has at most `context` inputs. Every token but the first is predicted once.
  """
  first = 1
  while first < length:
    end = min(length, first + (context if first == 1 else stride))
    yield max(0, end - 1 - context), first, end
    first = end


def encode_documents(
  tokenizer, documents: Sequence[str], max_tokens: int | None = None
) -> tuple[list[list[int]], list[str]]:
  """Return each document's token ids and the text that is predicted, all but the first token.

  The ids start with the end-of-text token, if the tokenizer has one. max_tokens: use only the first
  tokens of each document.
  """
  prefix = [] if tokenizer.end is None else [tokenizer.end]
  ids = [prefix + tokenizer.encode(d)[:max_tokens] for d in documents]
  if prefix and max_tokens is None:
    return ids, list(documents)
  return ids, [tokenizer.decode(document_ids[1:]) for document_ids in ids]


def token_losses(
  model, documents: Sequence[Sequence[int]], stride: int, batch: int = 4
) -> Iterator[tuple[int, np.ndarray]]:
  """Yield (document index, losses in nats of the predicted tokens) for each window."""
  from tinygrad import Tensor, nn

  from tinyformer.kernels.compiled_step import CompiledStep

  C = model.context

  def losses_of(x: Tensor, y: Tensor) -> Tensor:
    return -model(x).log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1).realize()

  step = CompiledStep(losses_of, captured_buffers=nn.state.get_state_dict(model))
  all_windows = [
    (i, *window) for i, ids in enumerate(documents) for window in windows(len(ids), C, stride)
  ]
  for start in range(0, len(all_windows), batch):
    rows = all_windows[start : start + batch]
    # A window is padded on the right, where no token of the window attends.
    x, y = np.zeros((2, batch, C), np.int32)
    for row, (i, begin, _, end) in enumerate(rows):
      length = end - 1 - begin
      x[row, :length] = documents[i][begin : end - 1]
      y[row, :length] = documents[i][begin + 1 : end]
    losses = step(x, y)
    for row, (i, begin, first, end) in enumerate(rows):
      yield i, losses[row, first - 1 - begin : end - 1 - begin].astype(np.float64)


def total_loss(model, ids: list[list[int]], stride: int) -> tuple[float, int]:
  """Return the sum of all losses in nats and the number of predicted tokens."""
  num_tokens = sum(max(0, len(document_ids) - 1) for document_ids in ids)
  if not num_tokens:
    raise ValueError("the text has no token to predict")
  total, count, bar = 0.0, 0, cli.Bar("evaluate")
  for _, losses in token_losses(model, ids, stride):
    total += losses.sum()
    count += len(losses)
    bar(count, num_tokens, f"{total / count:.3f} nats per token")
  bar.clear()
  return total, count


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  device = select_device(args.device)
  from tinyformer import checkpoints
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
  from tinyformer.training.documents import read_documents, train_val_split

  folder = cli.find_model(args, args.model)
  tokenizer, model = BytePairEncoding.load(folder), checkpoints.load_module(folder, args.dtype)
  stride = args.stride or max(1, model.context // 2)
  if stride > model.context:
    raise cli.UsageError(
      f"a stride of {stride} would skip tokens: the model's context is {model.context}"
    )
  documents = read_documents(args.data)
  if args.val_seed is not None:
    documents = train_val_split(documents, args.val_seed, args.val_fraction)[1]
  ids, texts = encode_documents(tokenizer, documents, args.max_tokens_per_document)
  total, count = total_loss(model, ids, stride)
  words = sum(len(t.split()) for t in texts)
  num_bytes = sum(len(t.encode()) for t in texts)
  cli.note(
    f"{folder} in {args.dtype} on {device}: {len(ids):,} documents, {count:,} tokens, "
    f"{words:,} words separated by white space, {num_bytes:,} bytes of UTF-8 (not detokenized)"
  )
  first_token = "predicted from <|endoftext|>" if tokenizer.end is not None else "not predicted"
  cli.note(
    f"windows of {model.context} tokens with a stride of {stride}; "
    f"the first token of a document is {first_token}"
  )
  perplexity = math.exp(total / count)
  word_perplexity = math.exp(min(700, total / words))
  bits_per_byte = total / num_bytes / math.log(2)
  print(
    f"{total / count:.4f} nats per token, perplexity {perplexity:.3f} per token, "
    f"{word_perplexity:.2f} per word; {bits_per_byte:.4f} bits per byte"
  )
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
