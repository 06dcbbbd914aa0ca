"""How a checkpoint's authors have it write: what its generation_config.json says, and what that forbids or forces of each next token."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyformer.checkpoints.config import Config
from tinyformer.checkpoints.safetensors import read_json

LogitsProcessor = Callable[
  [Sequence[int], np.ndarray], np.ndarray
]  # ids so far, the start among them, and scores (V,) for the next -> its scores (V,)


def impossible(scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
  """Scores (V,), those of the tokens -inf."""
  scores = scores.copy()
  scores[list(tokens)] = -np.inf
  return scores


def no_repeats(n: int) -> LogitsProcessor:
  """No n tokens in a row stand there twice (Paulus et al. 2018, sec. 2.5)."""

  def constrain(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
    last = list(ids[len(ids) - n + 1 :])
    return impossible(
      scores, [ids[i + n - 1] for i in range(len(ids) - n + 1) if list(ids[i : i + n - 1]) == last]
    )

  return constrain


def never(words: Sequence[Sequence[int]]) -> LogitsProcessor:
  """None of these runs of tokens stands there."""

  def constrain(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
    return impossible(
      scores,
      [last for *first, last in words if list(ids[max(0, len(ids) - len(first)) :]) == first],
    )

  return constrain


def not_before(length: int, token: int) -> LogitsProcessor:
  """`length` tokens stand before this one."""
  return lambda ids, scores: impossible(scores, [token]) if len(ids) < length else scores


def forced(length: int, token: int) -> LogitsProcessor:
  """After `length` tokens stands this one."""
  return lambda ids, scores: (
    np.where(np.arange(len(scores)) == token, 0.0, -np.inf) if len(ids) == length else scores
  )


def normalised(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
  """Scores as log-probabilities, whatever of them has been made impossible."""
  top = scores.max()
  return scores - top - np.log(np.exp(scores - top).sum())


class GenerationConfig(NamedTuple):
  """The words of generation_config.json that an encoder-decoder's text depends on. Lengths count the start. max_length None: as long as the model can."""

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
    """Those of a folder's generation_config.json, or of its config.json, where older checkpoints have them. Raises ValueError for what is not built here."""
    path = next(
      p
      for p in (Path(folder) / name for name in ("generation_config.json", "config.json"))
      if p.exists() or p.name == "config.json"
    )
    config = Config(
      {name: value for name, value in read_json(path).items() if value is not None}, str(path)
    )
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
        raise ValueError(f"{path}: {name} should be a whole number, not {config[name]}")
    if (early := config.get("early_stopping", False)) not in (True, False, "never"):
      raise ValueError(f"{path}: early_stopping {early!r} is not true, false or never")
    return cls(**{name: config[name] for name in cls._fields if name in config})

  def logits_processors(self, length: int) -> list[LogitsProcessor]:
    """What a text of up to `length` tokens is subject to, in transformers' order."""
    words = [word for word in self.bad_words_ids if list(word) != [self.eos_token_id]]
    return [
      *([no_repeats(self.no_repeat_ngram_size)] if self.no_repeat_ngram_size else []),
      *([never(words)] if words else []),
      *(
        [not_before(self.min_length, self.eos_token_id)]
        if self.min_length and self.eos_token_id is not None
        else []
      ),
      *([forced(1, self.forced_bos_token_id)] if self.forced_bos_token_id is not None else []),
      *(
        [forced(length - 1, self.forced_eos_token_id)]
        if self.forced_eos_token_id is not None
        else []
      ),
      *([normalised] if self.renormalize_logits else []),
    ]
