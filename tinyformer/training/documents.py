"""Text files as documents, and which of them are held out."""

import gzip
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np


def read_documents(paths: list[Path]) -> list[str]:
  """The documents of files and folders, in a fixed order. Raises OSError, or ValueError where there is no text."""
  openers: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}
  files = [
    f
    for path in paths
    for f in (sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path])
  ]
  texts = []
  for f in files:
    try:
      with openers.get(f.suffix, open)(f, "rt", encoding="utf-8") as stream:
        texts.append(stream.read())
    except (UnicodeDecodeError, lzma.LZMAError, zlib.error, EOFError) as e:
      raise ValueError(f"{f} is not a whole UTF-8 text: {e}") from e
  documents = [d.strip() for text in texts for d in text.split("<|endoftext|>") if d.strip()]
  if not documents:
    raise ValueError(f"there is no text in {', '.join(map(str, paths))}")
  return documents


def train_val_split(
  documents: list[str], seed: int, share: float = 0.05
) -> tuple[list[str], list[str]]:
  """(to learn, held out): whole documents by lot, until they make `share` of the text; of a single document, its end."""
  total = sum(map(len, documents))
  if len(documents) == 1:
    end = math.ceil(total * share)
    return [documents[0][: total - end]], [documents[0][total - end :]]
  held, size = set(), 0
  for i in np.random.default_rng(seed).permutation(len(documents))[:-1]:
    if size >= total * share:
      break
    held.add(int(i))
    size += len(documents[i])
  return [d for i, d in enumerate(documents) if i not in held], [documents[i] for i in sorted(held)]
