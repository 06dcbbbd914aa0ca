"""Generation with an encoder-decoder."""

from collections.abc import Callable, Sequence

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.generation.beam_search import beam_search
from tinyformer.generation.engine import Engine
from tinyformer.generation.generation_config import GenerationConfig
from tinyformer.generation.kv_cache import EncoderDecoderCache, cross_keys_values
from tinyformer.generation.sampling import generate
from tinyformer.kernels.compiled_step import CompiledStep
from transformer import padding_mask

# Sources are padded to multiples of this length, so that different sources use the same kernels.
SOURCE_LENGTH_MULTIPLE = 64


def generate_seq2seq(
  model,
  source: Sequence[int],
  config: GenerationConfig,
  max_new_tokens: int | None = None,
  key: str | None = None,
) -> list[int]:
  """Return the token IDs that an encoder-decoder generates for the token IDs of a source.

  The result excludes the decoder start token and the end-of-sequence token. max_new_tokens includes
  the latter; None uses the config's max_length, or the model's context. key: see Engine.
  Raises ValueError if the source is empty or exceeds the model's positions.
  """
  if not len(source):
    raise ValueError("the source has no tokens: pass at least one")
  length = max_new_tokens + 1 if max_new_tokens else config.max_length or model.context
  length = min(length, model.context)
  cross_kv, attention_mask = encode_source(model, source, key)
  mask = padding_mask(Tensor(attention_mask))
  cache = EncoderDecoderCache(cross_kv, mask, config.num_beams, length)
  engine = Engine(model, config.num_beams, key, cache)
  start = [config.decoder_start_token_id]
  end = config.eos_token_id
  processors = config.logits_processors(length)
  if config.num_beams == 1:
    steps = generate(
      engine, start, length - 1, temperature=0, end=end, logits_processors=processors
    )
    return [token for [token] in steps if token is not None]
  results = beam_search(
    engine,
    start,
    length - 1,
    lambda n: n**config.length_penalty,
    end,
    processors,
    score_bound(config, length - 1),
  )
  best, _ = results[0]
  return best[:-1] if best[-1] == end else best


def encode_source(model, source: Sequence[int], key: str | None) -> tuple[Tensor, np.ndarray]:
  """Pad and encode a source: return cross_kv (L, 2, 1, H, S, K) and its attention mask (1, S)."""
  padded_length = -(-len(source) // SOURCE_LENGTH_MULTIPLE) * SOURCE_LENGTH_MULTIPLE
  padded_length = min(padded_length, max(len(source), model.context))
  padding = [0] * (padded_length - len(source))
  ids = np.array([[*source, *padding]], dtype=np.int32)
  attention_mask = np.arange(padded_length)[None] < len(source)
  parameters = nn.state.get_state_dict(model)
  Tensor.realize(*parameters.values())
  step = CompiledStep(
    lambda ids, attention_mask: cross_keys_values(model, ids, attention_mask).realize(),
    captured_buffers=parameters,
    key=key,
  )
  return Tensor(step(ids, attention_mask).copy()), attention_mask


def score_bound(config: GenerationConfig, max_new_tokens: int) -> Callable[[float, int], float]:
  """Return the `best_possible_score` of beam_search that matches transformers' early_stopping."""
  power = config.length_penalty
  if config.early_stopping == "never":
    return lambda total, n: total / (max_new_tokens if power > 0 else n) ** power
  if config.early_stopping:
    return lambda total, n: -np.inf
  return lambda total, n: total / n**power
