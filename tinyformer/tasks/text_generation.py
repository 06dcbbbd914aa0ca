"""Continue texts with a decoder-only model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyformer.generation import generate
from tinyformer.generation.step_engine import StepEngine
from tinyformer.tokenization.byte_level_bpe import Stream


@dataclass(frozen=True)
class SamplingConfig:
  """How to choose the next tokens.

  temperature: 0 selects greedy decoding.  top_k: sample from the top_k most probable tokens; 0
  samples from all.  top_p: sample from the smallest set of most probable tokens with a total
  probability of top_p.  seed: the same seed generates the same text.
  """

  max_new_tokens: int = 100
  temperature: float = 0.8
  top_k: int = 40
  top_p: float = 1.0
  seed: int | None = None

  @property
  def num_candidates(self) -> int:
    """Return the number of tokens from which the next one is chosen, or 0 for all."""
    return self.top_k if self.temperature else 1


class TextGenerator:
  """The engine of a decoder-only model, its tokenizer, and how to choose the next tokens.

  history: the token ids of the first text.
  """

  def __init__(self, engine: StepEngine, tokenizer, config: SamplingConfig):
    self.tokenizer = tokenizer
    self.config = config
    self.engine = engine
    self.history: list[int] = []

  def generate(self, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield (index of the text, new characters of that text) after each generated token.

    ids: the tokens to process first. The new tokens of the first text are added to the history.
    """
    config = self.config
    decoders = [Stream(self.tokenizer) for _ in range(self.engine.batch)]
    for tokens in generate(
      self.engine,
      ids,
      config.max_new_tokens,
      config.temperature,
      config.top_k,
      config.top_p,
      config.seed,
      self.tokenizer.stop_ids,
    ):
      if tokens[0] is not None:
        self.history.append(tokens[0])
      for i, token in enumerate(tokens):
        if token is not None:
          yield i, decoders[i](token)
