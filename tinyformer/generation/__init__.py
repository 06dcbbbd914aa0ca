"""Generation: engine and KV cache, sampling, beam search, logits processors, streaming."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tinyformer.generation.engine import Engine, generate_simple
  from tinyformer.generation.generation_config import GenerationConfig
  from tinyformer.generation.kv_cache import EncoderDecoderCache, KVCache
  from tinyformer.generation.logits_processors import LogitsProcessor, process_logits
  from tinyformer.generation.sampling import generate, probabilities
  from tinyformer.generation.seq2seq import generate_seq2seq
  from tinyformer.generation.streaming import stop_at

# The public names, and the modules that are imported when a name is first used: some need tinygrad,
# whose import takes longer than generating a token.
MODULES = {
  "EncoderDecoderCache": "kv_cache",
  "Engine": "engine",
  "GenerationConfig": "generation_config",
  "KVCache": "kv_cache",
  "LogitsProcessor": "logits_processors",
  "generate": "sampling",
  "generate_seq2seq": "seq2seq",
  "generate_simple": "engine",
  "probabilities": "sampling",
  "process_logits": "logits_processors",
  "stop_at": "streaming",
}
__all__ = ["EncoderDecoderCache", "Engine", "GenerationConfig", "KVCache", "LogitsProcessor"]
__all__ += ["generate", "generate_seq2seq", "generate_simple", "probabilities"]
__all__ += ["process_logits", "stop_at"]


def __getattr__(name: str) -> Any:
  if name not in MODULES:
    raise AttributeError(f"module 'tinyformer.generation' has no attribute {name!r}")
  return getattr(importlib.import_module(f"tinyformer.generation.{MODULES[name]}"), name)
