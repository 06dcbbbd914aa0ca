"""Generation settings of a checkpoint, as its generation_config.json contains them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.hf_config import MAX_SIZE, HFConfig
from tinyformer.files import read_json
from tinyformer.generation.logits_processors import (
  LogitsProcessor,
  forced_token,
  log_softmax,
  min_length,
  no_bad_words,
  no_repeat_ngram,
)

MAX_BEAMS = 100
MAX_PENALTY = 100.0


def length(config: HFConfig, bound: str) -> int:
  """Return the "min" or "max" length in tokens, or 0 if config does not limit it."""
  if f"{bound}_new_tokens" in config:
    return config.integer(f"{bound}_new_tokens") + 1  # the decoder start token counts
  return config.integer(f"{bound}_length", 0)


def id_lists(config: HFConfig, name: str, last_id: int) -> Sequence[Sequence[int]]:
  """Return a list of lists of token IDs from 0 to last_id; empty if the key has no value."""

  def is_valid(ids: Any) -> bool:
    are_ids = type(ids) is list and all(type(i) is int and 0 <= i <= last_id for i in ids)
    return are_ids and len(ids) > 0

  if name not in config:
    return ()
  lists = config.values[name]
  if type(lists) is not list or not all(map(is_valid, lists)):
    raise config.error(name, f"contain lists of token IDs from 0 to {last_id}")
  return lists


class GenerationConfig(NamedTuple):
  """The generation settings of an encoder-decoder, under the names of generation_config.json.

  Lengths are in tokens and include the decoder start token. If max_length is None, the model's
  context is the limit.
  """

  decoder_start_token_id: int
  eos_token_id: int | None = None
  forced_bos_token_id: int | None = None
  forced_eos_token_id: int | None = None
  max_length: int | None = None
  min_length: int = 0
  num_beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  no_repeat_ngram_size: int = 0
  bad_words_ids: Sequence[Sequence[int]] = ()
  renormalize_logits: bool = False

  @classmethod
  def read(cls, folder: str | Path, vocab_size: int | None = None) -> "GenerationConfig":
    """Read a folder's generation_config.json, or its config.json if the former is missing.

    Older checkpoints have the settings in config.json. vocab_size: the model's, if token IDs must
    be smaller. Raises ValueError for an invalid value, and for a setting that is not implemented.
    """
    path = Path(folder) / "generation_config.json"
    if not path.exists():
      path = Path(folder) / "config.json"
    values = {name: value for name, value in read_json(path).items() if value is not None}
    config = HFConfig(values, str(path))
    config.only(
      do_sample=False,
      repetition_penalty=1.0,
      encoder_repetition_penalty=1.0,
      encoder_no_repeat_ngram_size=0,
      num_beam_groups=1,
    )
    last_id = MAX_SIZE if vocab_size is None else vocab_size - 1

    def token_id(name: str) -> int | None:
      return config.integer(name, maximum=last_id) if name in config else None

    starts = ("decoder_start_token_id", "bos_token_id")
    start = next((name for name in starts if name in config), starts[0])
    is_never = config.values.get("early_stopping") == "never"
    return cls(
      config.integer(start, maximum=last_id),
      eos_token_id=token_id("eos_token_id"),
      forced_bos_token_id=token_id("forced_bos_token_id"),
      forced_eos_token_id=token_id("forced_eos_token_id"),
      max_length=length(config, "max") or None,
      min_length=length(config, "min"),
      num_beams=config.integer("num_beams", 1, 1, MAX_BEAMS),
      length_penalty=config.number("length_penalty", 1.0, -MAX_PENALTY, MAX_PENALTY),
      early_stopping="never" if is_never else config.flag("early_stopping", False),
      no_repeat_ngram_size=config.integer("no_repeat_ngram_size", 0),
      bad_words_ids=id_lists(config, "bad_words_ids", last_id),
      renormalize_logits=config.flag("renormalize_logits", False),
    )

  def logits_processors(self, length: int) -> list[LogitsProcessor]:
    """Return the processors for a text of at most `length` tokens, in transformers' order."""
    processors = []
    if self.no_repeat_ngram_size:
      processors.append(no_repeat_ngram(self.no_repeat_ngram_size))
    # transformers never forbids the end-of-sequence token.
    words = [word for word in self.bad_words_ids if list(word) != [self.eos_token_id]]
    if words:
      processors.append(no_bad_words(words))
    if self.min_length and self.eos_token_id is not None:
      processors.append(min_length(self.min_length, self.eos_token_id))
    if self.forced_bos_token_id is not None:
      processors.append(forced_token(1, self.forced_bos_token_id))
    if self.forced_eos_token_id is not None:
      processors.append(forced_token(length - 1, self.forced_eos_token_id))
    if self.renormalize_logits:
      processors.append(log_softmax)
    return processors
