"""Text files as documents: reading, the split for validation, and the tokens of both parts."""

import gzip
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinyformer.files import check_regular

OPENERS: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}


def read_documents(paths: list[Path]) -> list[str]:
  """Return the documents of files and folders, in a fixed order.

  Folders are read recursively, and files ending in .gz or .xz are decompressed. "<|endoftext|>"
  separates the documents of a file. Raises OSError if a file cannot be read. Raises ValueError if
  a file is damaged or not UTF-8, or if the files contain no text.
  """
  files: list[Path] = []
  for path in paths:
    files += sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
  texts = [read_text(file) for file in files]
  parts = [part.strip() for text in texts for part in text.split("<|endoftext|>")]
  documents = [part for part in parts if part]
  if not documents:
    names = ", ".join(map(str, paths))
    raise ValueError(f"no text found in {names}: pass files or folders that contain text")
  return documents


def read_text(file: Path) -> str:
  """Return the text of a file. Raises OSError, or ValueError if it is damaged or not UTF-8."""
  # A shell's <(command) is a pipe that already has a writer. Other pipes may never have one.
  if file.parent != Path("/dev/fd") and str(file) != "/dev/stdin":
    check_regular(file)
  try:
    with OPENERS.get(file.suffix, open)(file, "rt", encoding="utf-8") as stream:
      return stream.read()
  except (UnicodeDecodeError, lzma.LZMAError, zlib.error, EOFError) as e:
    raise ValueError(
      f"cannot read {file} as UTF-8 text: {e}; convert it to UTF-8, or replace it if it is damaged"
    ) from e


def train_val_split(
  documents: list[str], seed: int, val_fraction: float = 0.05
) -> tuple[list[str], list[str]]:
  """Return (training documents, validation documents).

  Random documents go to the validation set until they have `val_fraction` of all characters. At
  least one document remains for training. A single document is split instead: its end becomes the
  validation set.
  """
  total = sum(map(len, documents))
  if len(documents) == 1:
    split = total - math.ceil(total * val_fraction)
    return [documents[0][:split]], [documents[0][split:]]
  val_indices = set()
  val_size = 0
  for i in np.random.default_rng(seed).permutation(len(documents))[:-1]:
    if val_size >= total * val_fraction:
      break
    val_indices.add(int(i))
    val_size += len(documents[i])
  train = [d for i, d in enumerate(documents) if i not in val_indices]
  return train, [documents[i] for i in sorted(val_indices)]


class Corpus:
  """The tokens of the training and validation documents.

  bits_per_byte: bits per byte of the validation text for a loss of one nat per token.
  """

  def __init__(self, tokenizer, train_documents: list[str], val_documents: list[str]):
    self.num_documents = len(train_documents) + len(val_documents)
    self.train_ids = tokenizer.encode_documents(train_documents)
    self.val_ids = tokenizer.encode_documents(val_documents)
    val_bytes = sum(len(d.encode()) for d in val_documents)
    self.bits_per_byte = len(self.val_ids) / val_bytes / math.log(2)

  def check_length(self, context: int) -> None:
    """Raise ValueError if a part has no window of `context` tokens and its targets."""
    if min(len(self.train_ids), len(self.val_ids)) <= context:
      raise ValueError(f"the text is too short for a context of {context} tokens")
