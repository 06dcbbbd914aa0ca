"""The model that train.py trains: a new GPT-2 or a checkpoint, its tokenizer, and its folders."""

import argparse
import math
import os
import shutil
from pathlib import Path

from layers.parts import Parts
from models.gpt2 import GPT2, GPT2Config
from tinyformer import checkpoints, cli
from tinyformer.checkpoints import load_module
from tinyformer.cli.training_arguments import set_sizes
from tinyformer.files import atomic_write, read_json, write_json
from tinyformer.kernels import training_parts
from tinyformer.tokenization import load_tokenizer
from tinyformer.tokenization.base import Tokenizer
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

# The files of a tokenizer, and the tokens that end a generated text.
TOKENIZER_FILES = (
  "tokenizer.json",
  "vocab.json",
  "merges.txt",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
)


def make_model(args: argparse.Namespace, train_documents: list[str]):
  """Return the model, the tokenizer, and the folder that its vocabulary is from, or None.

  Raises UsageError for arguments that contradict each other or the checkpoint.
  """
  parts = training_parts(args.precision)
  if args.resume:
    model = load_module(args.out / "last", parts=parts, dropout=args.dropout)
    return model, load_tokenizer(args.out / "last"), None
  if args.init and "tokens" in args.given:
    raise cli.UsageError("--init has its own vocabulary: omit --tokens")
  source = None
  if args.init or args.tokens not in ("bpe", "characters"):
    source = cli.find_model(args, args.init or args.tokens, bool(args.init))
    tokenizer: Tokenizer = load_tokenizer(source)
  elif args.tokens == "bpe":
    tokenizer = BytePairEncoding.train(train_documents, args.vocab)
  else:
    tokenizer = BytePairEncoding.characters(train_documents)
  if args.init and source:
    return load_initial_model(args, source, tokenizer, parts), tokenizer, source
  if args.tokens != "bpe":
    set_sizes(args, f"--tokens {args.tokens}", vocab=len(tokenizer))
  config = GPT2Config(
    vocab_size=len(tokenizer),
    context=args.context,
    dim=args.dim,
    heads=args.heads,
    num_layers=args.layers,
    dropout=args.dropout,
  )
  check_memory(config, args.batch)
  return GPT2(config, parts), tokenizer, source


def check_memory(config: GPT2Config, batch: int) -> None:
  """Raise UsageError if training certainly needs more memory than this machine has.

  Adam stores four numbers of 4 bytes per parameter: the weight, the gradient and two moments. The
  logits of a batch and their gradient are the largest activations.
  """
  matrices = 12 * config.num_layers * config.dim**2
  embeddings = (config.vocab_size + config.context) * config.dim
  logits = batch * config.context * config.vocab_size
  needed = 16 * (matrices + embeddings) + 8 * logits
  available = memory_bytes()
  if needed > available:
    raise cli.UsageError(
      f"training needs at least {needed / 1e9:,.0f} GB of memory, but this machine has "
      f"{available / 1e9:,.0f} GB: reduce --dim, --layers, --vocab, --context or --batch"
    )


def memory_bytes() -> float:
  """Return the size of this machine's memory, infinite if the system does not tell."""
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, OSError, ValueError):
    return math.inf


def load_initial_model(args: argparse.Namespace, source: Path, tokenizer, parts: Parts):
  """Return the model of --init. Raises UsageError if it is not a GPT-2 or has other sizes."""
  kind = checkpoints.read_config(source).text("model_type")
  if kind != "gpt2":
    raise cli.UsageError(f"--init {args.init} is a {kind}; only gpt2 can be trained")
  model = load_module(source, parts=parts, dropout=args.dropout)
  if len(tokenizer) > model.vocab_size:
    raise ValueError(
      f"{source}: the tokenizer has {len(tokenizer):,} tokens, the model only {model.vocab_size:,}"
    )
  sizes = {"vocab": model.vocab_size, "layers": len(model.blocks)}
  sizes |= {"heads": model.config.heads, "dim": model.config.dim}
  set_sizes(args, f"--init {args.init}", **sizes)
  if "context" not in args.given:
    args.context = model.context
  if args.context > model.context:
    raise cli.UsageError(
      f"--init {args.init} has a context of {model.context} tokens, less than {args.context}"
    )
  return model


def copy_tokenizer(source: Path, folder: Path) -> None:
  """Copy the files of a tokenizer."""
  for name in TOKENIZER_FILES:
    if (source / name).exists():
      with atomic_write(folder / name) as part:
        shutil.copyfile(source / name, part)


class ModelFolder:
  """The output folder of train.py, with the best model; its subfolder last/ has the latest one.

  gpt.py and transformers can load both.

  source: the folder from which to copy the tokenizer of a new run, or None.
  """

  def __init__(self, args: argparse.Namespace, model, tokenizer, source: Path | None = None):
    self.model = model
    self.tokenizer = tokenizer
    self.source = source
    self.dtype = args.dtype
    self.best = args.out
    self.last = args.out / "last"

  def clear(self) -> None:
    """Delete what a run left that was killed at its start.

    Its tokenizer may have had files that the new one lacks.
    """
    for name in ("model.safetensors", "config.json", *TOKENIZER_FILES):
      (self.last / name).unlink(missing_ok=True)
    for name in TOKENIZER_FILES:
      (self.best / name).unlink(missing_ok=True)
    self.delete_partial_files()

  def create(self) -> None:
    """Write the tokenizer and the initial model, from which --resume constructs the model."""
    self.last.mkdir(parents=True, exist_ok=True)
    if self.source:
      copy_tokenizer(self.source, self.last)
    else:
      self.tokenizer.save(self.last)
    self.write_settings()
    self.save(self.last)

  def write_settings(self) -> None:
    """Write the JSON files that other programs need besides the vocabulary and the merges."""
    tokenizer = self.tokenizer
    path = self.last / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    # RoBERTa's tokenizer, for example, adds special tokens around a text.
    is_gpt2 = isinstance(tokenizer, BytePairEncoding) and not tokenizer.single([])
    if is_gpt2 and not (self.last / "tokenizer.json").exists():
      write_json(self.last / "tokenizer.json", tokenizer.to_json())
      names = ("bos_token", "eos_token", "unk_token")
      config = (
        {"tokenizer_class": "GPT2Tokenizer"} | dict.fromkeys(names, tokenizer.eos_token) | config
      )
    write_json(path, config | {"model_max_length": self.model.context})
    end_ids = sorted(tokenizer.stop_ids)
    generation_config = {
      "bos_token_id": tokenizer.end,
      "eos_token_id": end_ids[0] if len(end_ids) == 1 else end_ids or None,
    }
    write_json(self.last / "generation_config.json", generation_config)

  def copy_tokenizer(self) -> None:
    """Copy the tokenizer of the last model to the best model."""
    copy_tokenizer(self.last, self.best)

  def save(self, folder: Path) -> None:
    """Save the model in one of the two folders."""
    end = self.tokenizer.end
    checkpoints.save(self.model, folder, self.dtype, eos_token_id=end, bos_token_id=end)

  def load_last(self):
    """Return the model in last/, on one device."""
    return load_module(self.last)

  def delete_partial_files(self) -> None:
    """Delete the files that a killed run left half-written."""
    for part in [*self.best.glob(".*.part"), *self.last.glob(".*.part")]:
      part.unlink()
