"""Measure how well a model predicts a text: `python evaluate.py DATA -m MODEL`.

Prints the loss in nats per token, the perplexity per token and per word, and bits per byte.
"""

import argparse
import math
import sys
from pathlib import Path

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
    help="smollm2, gpt2, gpt2-medium, gpt2-large, gpt2-xl, owner/repo, a folder, or a GGUF file",
  )
  p.add_argument(
    "--context",
    type=cli.number(int, 1, cli.MAX_COUNT),
    metavar="N",
    help="tokens in a window (default: the model's context)",
  )
  p.add_argument(
    "--stride",
    type=cli.number(int, 1, cli.MAX_COUNT),
    metavar="N",
    help="tokens that each window predicts; the earlier tokens in the window are only context "
    "(default: half of the window)",
  )
  p.add_argument(
    "--val-seed",
    type=cli.number(int, 0, cli.MAX_SEED),
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
    type=cli.number(int, 1, cli.MAX_COUNT),
    metavar="N",
    help="use at most the first N tokens of each document",
  )
  p.add_argument(
    "--dtype",
    choices=["float32", "float16", "bfloat16", "int8", "int4"],
    default="float32",
    help="data type of the weights in memory; computation is in float32",
  )
  p.add_argument(
    "--device", help="NUMPY for minigrad, or a tinygrad device such as CPU, METAL or CUDA"
  )
  p.add_argument("--offline", action="store_true", help="contact no server")
  return p.parse_args(argv)


def total_loss(model, ids: list[list[int]], context: int, stride: int) -> tuple[float, int]:
  """Return the sum of all losses in nats and the number of predicted tokens."""
  num_tokens = sum(max(0, len(document_ids) - 1) for document_ids in ids)
  if not num_tokens:
    raise ValueError("the text has no token to predict")
  from tinyformer.tasks.perplexity import token_losses

  total, count, bar = 0.0, 0, cli.Bar("evaluate")
  for _, losses in token_losses(model, ids, stride, context):
    total += losses.sum()
    count += len(losses)
    bar(count, num_tokens, f"{total / count:.3f} nats per token")
  bar.clear()
  return total, count


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  device = select_device(args.device)
  from tinyformer import checkpoints
  from tinyformer.tasks.perplexity import check_window, encode_documents
  from tinyformer.tokenization import load_tokenizer
  from tinyformer.training.documents import read_documents, train_val_split

  folder = cli.find_model(args, args.model)
  tokenizer = load_tokenizer(folder, contents=checkpoints.tokenizer_contents(folder))
  model = checkpoints.load_module(folder, args.dtype)
  try:
    context, stride = check_window(model, args.context, args.stride)
  except ValueError as e:
    raise cli.UsageError(str(e)) from e
  documents = read_documents(args.data)
  if args.val_seed is not None:
    documents = train_val_split(documents, args.val_seed, args.val_fraction)[1]
  ids, texts = encode_documents(tokenizer, documents, args.max_tokens_per_document)
  total, count = total_loss(model, ids, context, stride)
  words = sum(len(t.split()) for t in texts)
  num_bytes = sum(len(t.encode()) for t in texts)
  cli.note(
    f"{folder} in {args.dtype} on {device}: {len(ids):,} documents, {count:,} tokens, "
    f"{words:,} words separated by white space, {num_bytes:,} bytes of UTF-8 (not detokenized)"
  )
  eos_token = tokenizer.eos_token
  first_token = "not predicted" if eos_token is None else f"predicted from {eos_token}"
  cli.note(
    f"windows of {context} tokens with a stride of {stride}; "
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
