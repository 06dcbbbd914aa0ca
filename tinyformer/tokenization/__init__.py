"""Text in, text out: tokens and what is generated from them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from tinyformer.tokenization.base import Tokenizer


def load(folder: str | Path, vocab: int | None = None) -> "Tokenizer":
  """The tokenizer of a checkpoint's folder, by its files. vocab: the most ids that its model knows.

  Raises FileNotFoundError where there are no such files, ValueError for damaged or unknown ones, and for one of more tokens.
  """
  tokenizer = of_files(folder)
  if vocab is not None and len(tokenizer) > vocab:
    raise ValueError(f"{folder}: the vocabulary has {len(tokenizer):,} tokens, the model {vocab:,}")
  return tokenizer


def of_files(folder: str | Path) -> "Tokenizer":
  from tinyformer.tokenization.base import Files
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
  from tinyformer.tokenization.gpt1_bpe import WordPairs
  from tinyformer.tokenization.sentencepiece import SentencePiece
  from tinyformer.tokenization.wordpiece import WordPiece

  files = Files(folder)
  has = {f.name for f in files.folder.glob("*")}
  if "source.spm" in has:
    return SentencePiece.marian(files)
  if files.full:
    model, decoder = files.full.get("model", {}), files.full.get("decoder") or {}
    if decoder.get("type") == "BPEDecoder":
      return WordPairs.load(folder)
    if "merges" in model and decoder.get("type") == "ByteLevel":
      return BytePairEncoding.from_full(files)
    return (
      SentencePiece if "merges" in model or isinstance(model.get("vocab"), list) else WordPiece
    ).from_full(files)
  if "vocab.json" in has:
    return (
      WordPairs if files.read("config.json").get("model_type") == "openai-gpt" else BytePairEncoding
    ).load(folder)
  if "vocab.txt" in has:
    return WordPiece.load(folder)
  return SentencePiece.load(folder)
