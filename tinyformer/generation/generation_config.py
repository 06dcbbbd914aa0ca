"""Generation settings of a checkpoint, as its generation_config.json contains them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.hf_config import HFConfig
from tinyformer.files import read_json
from tinyformer.generation.logits_processors import (
  LogitsProcessor,
  forced_token,
  log_softmax,
  min_length,
  no_bad_words,
  no_repeat_ngram,
)


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
  def read(cls, folder: str | Path) -> "GenerationConfig":
    """Read a folder's generation_config.json, or its config.json if the former is missing.

    Older checkpoints have the settings in config.json. Raises ValueError for an invalid value, and
    for a setting that is not implemented.
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
    for name in ("max", "min"):
      if f"{name}_new_tokens" in config:
        config[f"{name}_length"] = config[f"{name}_new_tokens"] + 1
    config.setdefault("decoder_start_token_id", config.get("bos_token_id"))
    for name in ("decoder_start_token_id", "eos_token_id", "forced_eos_token_id"):
      if type(config.get(name, 0)) is not int:
        raise ValueError(f"{path}: {name} must be an integer, not {config[name]}")
    early_stopping = config.get("early_stopping", False)
    if early_stopping not in (True, False, "never"):
      raise ValueError(
        f'{path}: early_stopping must be true, false or "never", not {early_stopping!r}'
      )
    return cls(**{name: config[name] for name in cls._fields if name in config})

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
