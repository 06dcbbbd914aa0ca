"""Tokenizers: text to token IDs, and token IDs to text."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tinyformer.tokenization.base import Tokenizer, TokenizerFiles


def load_tokenizer(
  folder: str | Path,
  vocab_size: int | None = None,
  contents: Mapping[str, dict[str, Any]] | None = None,
) -> "Tokenizer":
  """Load the tokenizer of a checkpoint folder.

  vocab_size: the number of tokens in the model's embedding, if the tokenizer must fit a model.
  contents: the content of each JSON file by name, if the checkpoint is not a folder.
  Raises FileNotFoundError if the folder contains no tokenizer. Raises ValueError if the files are
  damaged or not supported, or if the tokenizer has more than `vocab_size` tokens.
  """
  from tinyformer.tokenization.base import TokenizerFiles
  from tinyformer.tokenization.chat_template import load_chat_template

  if contents is None:
    files = TokenizerFiles(folder)
    generation_config = files.read("generation_config.json")
  else:
    files = TokenizerFiles(folder, contents["tokenizer.json"], contents["tokenizer_config.json"])
    generation_config = contents["generation_config.json"]
  tokenizer = load_by_files(files)
  tokenizer.load_stops(files, generation_config)
  tokenizer.chat_template = load_chat_template(files)
  if vocab_size is not None and len(tokenizer) > vocab_size:
    raise ValueError(
      f"{folder}: the tokenizer has {len(tokenizer):,} tokens, but the model only {vocab_size:,};"
      " use the tokenizer files that belong to the model"
    )
  return tokenizer


def load_by_files(files: "TokenizerFiles") -> "Tokenizer":
  """Load a tokenizer of the kind that the files in the folder indicate."""
  from tinyformer.tokenization import tokenizer_json
  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
  from tinyformer.tokenization.gpt1_bpe import GPT1Tokenizer
  from tinyformer.tokenization.sentencepiece import SentencePiece
  from tinyformer.tokenization.wordpiece import WordPiece

  folder = files.folder
  if (folder / "source.spm").exists():
    return SentencePiece.from_marian(files)
  if files.tokenizer_json:
    return tokenizer_json.from_files(files)
  if (folder / "vocab.json").exists():
    is_gpt1 = files.read("config.json").get("model_type") == "openai-gpt"
    return GPT1Tokenizer.load(folder) if is_gpt1 else BytePairEncoding.load(folder)
  if (folder / "vocab.txt").exists():
    return WordPiece.load(folder)
  return SentencePiece.load(folder)


def from_json(content: dict[str, Any], config: dict[str, Any] | None = None) -> "Tokenizer":
  """Return the tokenizer that a parsed tokenizer.json describes.

  content: the JSON object in tokenizer.json.
  config: the JSON object in tokenizer_config.json, which names the special tokens, or None.
  Raises ValueError if a step is not supported, or if a setting is missing or invalid.
  """
  from tinyformer.tokenization import tokenizer_json

  return tokenizer_json.from_json(content, config)
