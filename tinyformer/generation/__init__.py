"""Generation: engine and KV cache, sampling, beam search, logits processors, streaming."""

from tinyformer.generation.beam_search import beam_search
from tinyformer.generation.engine import Engine, generate_simple
from tinyformer.generation.generation_config import GenerationConfig
from tinyformer.generation.kv_cache import EncoderDecoderCache, KVCache
from tinyformer.generation.logits_processors import LogitsProcessor, process_logits
from tinyformer.generation.sampling import generate, probabilities
from tinyformer.generation.seq2seq import generate_seq2seq
from tinyformer.generation.streaming import stop_at

__all__ = [
  "EncoderDecoderCache",
  "Engine",
  "GenerationConfig",
  "KVCache",
  "LogitsProcessor",
  "beam_search",
  "generate",
  "generate_seq2seq",
  "generate_simple",
  "probabilities",
  "process_logits",
  "stop_at",
]
