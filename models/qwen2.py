"""Qwen2 is LLaMA with biases on the projections to q, k and v.

Source: Qwen Team 2024, sec. 2.2.1; Su 2023 for the biases. Qwen2.5 has the same architecture.
"""

from collections.abc import Callable

from layers.attention import CachedAttention
from models import llama
from models.hf_config import HFConfig


class Qwen2(llama.Llama):
  """Compute the logits of the next token for each token of a sequence."""

  def attention(self, linear: Callable, layer: int) -> CachedAttention:
    """Return the attention of a block. Only its output projection has no bias."""
    attn = super().attention(self.parts.linear, layer)
    attn.out.bias = None
    return attn


def from_hf(hf: HFConfig) -> llama.LlamaConfig:
  """Translate a config.json of Qwen2 or Qwen2.5.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  hf.only(use_sliding_window=False)
  # A config.json may give the size of a sliding window that the model does not use.
  values = {"max_position_embeddings": 32768} | hf.values | {"sliding_window": None}
  return llama.from_hf(HFConfig(values, hf.source))


# A bias has the name of its matrix, so LLaMA's rules suffice.
KEY_MAP = llama.KEY_MAP
