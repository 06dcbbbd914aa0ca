"""Qwen3 is LLaMA with an RMS norm on each head of q and k.

Source: Qwen Team 2025, sec. 2. The width of a head is independent of the model's: dim 1024 with 16
heads of width 128 in Qwen3-0.6B.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

from layers.attention import CachedAttention, QKNormAttention
from models import llama, qwen2
from models.hf_config import HFConfig


class Qwen3(llama.Llama):
  """Compute the logits of the next token for each token of a sequence."""

  def attention(self, linear: Callable, layer: int) -> CachedAttention:
    """Return the attention of a block. All heads of q share a norm, as do all heads of k."""
    c = self.config
    norm = partial(self.parts.rms_norm, eps=c.eps)
    attention_fn = self.parts.attention
    return QKNormAttention(norm, c.dim, c.heads, linear, attention_fn, c.kv_heads, c.head_dim)


def from_hf(hf: HFConfig) -> llama.LlamaConfig:
  """Translate a config.json.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  return qwen2.from_hf(HFConfig({"head_dim": 128} | hf.values, hf.source))


KEY_MAP = dataclasses.replace(
  llama.KEY_MAP,
  rules={r"blocks\.(\d+)\.attn\.([qk])_norm": r"model.layers.\1.self_attn.\2_norm"}
  | llama.KEY_MAP.rules,
)
