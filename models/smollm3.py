"""SmolLM3 is LLaMA without RoPE in every fourth layer.

Only the causal mask tells such a layer (NoPE) the order of the tokens. Source: Yang et al. 2025.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from layers.attention import CachedAttention, NoPEAttention
from models import llama
from models.hf_config import HFConfig


@dataclass(frozen=True)
class SmolLM3Config(llama.LlamaConfig):
  """The sizes and settings of a SmolLM3. nope_layers: the indices of the layers without RoPE."""

  nope_layers: Collection[int] = ()


class SmolLM3(llama.Llama):
  """Compute the logits of the next token for each token of a sequence."""

  config: SmolLM3Config

  def attention(self, linear: Callable, layer: int) -> CachedAttention:
    """Return the attention of the block with this index."""
    c = self.config
    attention = NoPEAttention if layer in c.nope_layers else CachedAttention
    return attention(c.dim, c.heads, linear, self.parts.attention, c.kv_heads, c.head_dim)


def from_hf(hf: HFConfig) -> SmolLM3Config:
  """Translate a config.json.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  hf.only(use_sliding_window=False)
  defaults = {"max_position_embeddings": 32768, "rope_theta": 2e6, "tie_word_embeddings": True}
  config = llama.from_hf(HFConfig(defaults | hf.values | {"sliding_window": None}, hf.source))
  interval = hf.size("no_rope_layer_interval", 4)
  # Despite its name, the list has 1 for a layer with RoPE and 0 for one without.
  has_rope = hf.integers("no_rope_layers", maximum=1)
  nope_layers: Collection[int]
  if has_rope is None:
    nope_layers = range(interval - 1, config.num_layers, interval)
  elif len(has_rope) < config.num_layers:
    raise hf.error("no_rope_layers", f"have {config.num_layers} values, one per layer")
  else:
    nope_layers = tuple(i for i in range(config.num_layers) if not has_rope[i])
  return SmolLM3Config(**vars(config), nope_layers=nope_layers)


KEY_MAP = llama.KEY_MAP
