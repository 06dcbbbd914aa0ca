"""LLaMA is GPT-2 with RMS norms, rotary positions (RoPE), gated feed-forward layers and no biases.

Source: Touvron et al. 2023, sec. 2.2. Mistral and LLaMA 2 70B share keys and values among heads.
Mistral can also limit attention to a sliding window of keys (Jiang et al. 2023, sec. 2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinygrad import Tensor

from layers.attention import CachedAttention
from layers.feedforward import GatedFeedForward
from layers.norms import pre_norm
from layers.parts import PLAIN, Parts
from layers.positions import (
  check_context,
  rope_cos_sin,
  rope_inv_freq,
  rope_scale,
  window_mask,
)
from models.hf_config import HFConfig
from models.key_map import KeyMap
from transformer import Block, causal_mask, padding_mask

MAX_HEAD_DIM = 8_192
MAX_THETA = 1e12
MAX_FACTOR = 1e6


@dataclass(frozen=True)
class LlamaConfig:
  """The sizes and settings of a LLaMA or Mistral.

  kv_heads: number of heads of keys and values. Each serves heads / kv_heads adjacent query heads.
  rope_theta, rope_scaling: as in rope_inv_freq.
  window: number of keys that a query attends to, including its own; None means all.
  tied: whether the head shares the matrix of the token embeddings.
  """

  vocab_size: int
  context: int
  dim: int
  heads: int
  kv_heads: int
  head_dim: int
  num_layers: int
  ff_dim: int
  rope_theta: float = 10000.0
  rope_scaling: dict[str, Any] | None = None
  eps: float = 1e-6
  window: int | None = None
  tied: bool = False


class Llama:
  """Compute the logits of the next token for each token of a sequence."""

  task = "text-generation"

  def __init__(self, config: LlamaConfig, parts: Parts = PLAIN):
    c = config
    self.config, self.parts = config, parts
    self.vocab_size, self.context, self.window = c.vocab_size, c.context, c.window
    self.inv_freq = rope_inv_freq(c.head_dim, c.rope_theta, c.rope_scaling)
    self.rope_scale = rope_scale(c.rope_scaling)
    linear = partial(parts.linear, bias=False)
    self.tokens = parts.embedding(c.vocab_size, c.dim)
    self.blocks = [self.block(linear, layer) for layer in range(c.num_layers)]
    self.norm = self.new_norm()
    # (..., D) -> logits (..., V)
    self.head: Any = self.tokens.as_linear if c.tied else linear(c.dim, c.vocab_size)

  def new_norm(self) -> Callable:
    """Return a norm of vectors of width D."""
    return self.parts.rms_norm(self.config.dim, self.config.eps)

  def block(self, linear: Callable, layer: int) -> Block:
    """Return the block with this index."""
    return Block(self.attention(linear, layer), self.feed_forward(linear), self.new_norm, pre_norm)

  def attention(self, linear: Callable, layer: int) -> CachedAttention:
    """Return the attention of the block with this index."""
    c = self.config
    return CachedAttention(c.dim, c.heads, linear, self.parts.attention, c.kv_heads, c.head_dim)

  def feed_forward(self, linear: Callable) -> Callable:
    """Return the feed-forward network of a block."""
    silu = self.parts.activations["silu"]
    return GatedFeedForward(self.config.dim, self.config.ff_dim, silu, linear)

  def __call__(self, ids: Tensor, cache=None, attention_mask: Tensor | None = None) -> Tensor:
    """Return the logits of the next tokens: ids (B, T) -> (B, T, V).

    The other arguments are those of `last_hidden_state`.
    """
    return self.head(self.last_hidden_state(ids, cache, attention_mask))

  def last_hidden_state(self, ids: Tensor, cache=None, attention_mask=None) -> Tensor:
    """Return the input of the head: ids (B, T) -> (B, T, D).

    cache: a KVCache of P earlier positions, to which the T new ones are added; None means P = 0.
    attention_mask (B, P + T): 1 for tokens, 0 for padding.
    Raises ValueError if the sequence exceeds the context.
    """
    x = self.embed(ids, cache, attention_mask)
    inputs = self.attention_inputs(ids, cache, attention_mask)
    for i, block in enumerate(self.blocks):
      x = block(x, **inputs, cache=None if cache is None else cache.layer(i))
    return self.norm(x)

  def embed(self, ids: Tensor, cache=None, attention_mask: Tensor | None = None) -> Tensor:
    """Return the token embeddings: ids (B, T) -> (B, T, D). They do not depend on positions."""
    if cache is None:
      check_context(ids.shape[1], self.context)
    return self.tokens(ids)

  def attention_inputs(
    self, ids: Tensor, cache=None, attention_mask: Tensor | None = None
  ) -> dict[str, Any]:
    """Return the arguments of each block's attention besides x: mask and rope.

    The mask broadcasts to (B, H, T, P + T); rope rotates queries or keys (B, H, T, K).
    """
    T = ids.shape[1]
    S = T if cache is None else cache.length + T
    mask = window_mask(T, S, self.window) if self.window else causal_mask(T, S)
    if attention_mask is not None:
      mask = mask + padding_mask(attention_mask)
    positions = Tensor.arange(T) + (0 if cache is None else cache.position)
    cos, sin = rope_cos_sin(positions, self.inv_freq, self.rope_scale)
    return {"mask": mask, "rope": partial(self.parts.rope, cos=cos, sin=sin)}

  @property
  def unembedding(self) -> Tensor:
    """Return the matrix (V, D) that maps the last hidden state to logits."""
    return self.tokens.weight if self.config.tied else self.head.weight


def rope_scaling_from_hf(hf: HFConfig) -> dict[str, Any]:
  """Return the scaling of RoPE's frequencies, as in rope_inv_freq."""
  # transformers 5 writes rope_parameters and older versions rope_scaling. The oldest write type.
  rope = hf.section("rope_parameters", "rope_scaling")
  kind = rope.text("rope_type", rope.text("type", "default"))
  if kind == "default":
    return {"rope_type": kind}
  scaling = {"rope_type": kind, "factor": rope.number("factor", None, 1, MAX_FACTOR)}
  if kind == "llama3":
    low = rope.number("low_freq_factor", None, 1 / MAX_FACTOR, MAX_FACTOR)
    high = rope.number("high_freq_factor", None, 1 / MAX_FACTOR, MAX_FACTOR)
    if high <= low:
      raise rope.error("high_freq_factor", f"exceed low_freq_factor {low}")
    original_context = rope.size("original_max_position_embeddings")
    scaling |= {
      "low_freq_factor": low,
      "high_freq_factor": high,
      "original_max_position_embeddings": original_context,
    }
  if kind == "yarn":
    scaling |= yarn_from_hf(rope, hf.size("max_position_embeddings", 2048))
  return scaling


def yarn_from_hf(rope: HFConfig, context: int) -> dict[str, Any]:
  """Return the settings of YaRN that are in config.json, except for the factor."""
  original_context = rope.size("original_max_position_embeddings", context)
  settings: dict[str, Any] = {"original_max_position_embeddings": original_context}
  for name in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
    if name in rope:
      settings[name] = rope.number(name, None, 1 / MAX_FACTOR, MAX_FACTOR)
  return settings | {"truncate": rope.flag("truncate", True)}


# The values of keys that a config.json of Mistral may lack, where they differ from LLaMA's.
MISTRAL_DEFAULTS = {
  "max_position_embeddings": 131072,
  "num_key_value_heads": 8,
  "sliding_window": 4096,
}


def from_hf(hf: HFConfig) -> LlamaConfig:
  """Translate a config.json of LLaMA or Mistral.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  kind = hf.text("model_type", "llama")
  if kind == "mistral":
    hf = HFConfig(MISTRAL_DEFAULTS | hf.values, hf.source)
  hf.only(attention_bias=False, mlp_bias=False, hidden_act="silu", pretraining_tp=1)
  dim = hf.size("hidden_size")
  heads = hf.size("num_attention_heads", divides=None if "head_dim" in hf else dim)
  head_dim = hf.integer("head_dim", dim // heads, 1, MAX_HEAD_DIM)
  if head_dim % 2:
    raise ValueError(f"{hf.source}: head_dim {head_dim} is odd, but RoPE rotates pairs")
  rope_theta = hf.number("rope_theta", 10000.0, 1, MAX_THETA)
  rope = hf.section("rope_parameters", "rope_scaling")
  rope.only(partial_rotary_factor=1)
  return LlamaConfig(
    vocab_size=hf.size("vocab_size"),
    context=hf.size("max_position_embeddings", 2048),
    dim=dim,
    heads=heads,
    kv_heads=hf.size("num_key_value_heads", heads, divides=heads),
    head_dim=head_dim,
    num_layers=hf.size("num_hidden_layers"),
    ff_dim=hf.size("intermediate_size"),
    rope_theta=rope.number("rope_theta", rope_theta, 1, MAX_THETA),
    rope_scaling=rope_scaling_from_hf(hf),
    eps=hf.epsilon("rms_norm_eps", 1e-6),
    window=hf.optional_size("sliding_window") if kind != "llama" else None,
    tied=hf.flag("tie_word_embeddings", False),
  )


# Each parameter has its own tensor in the checkpoint, stored as (outputs, inputs) like ours.
KEY_MAP = KeyMap(
  rules={
    r"tokens": "model.embed_tokens",
    r"blocks\.(\d+)\.attn_norm": r"model.layers.\1.input_layernorm",
    r"blocks\.(\d+)\.attn\.([qkv])": r"model.layers.\1.self_attn.\2_proj",
    r"blocks\.(\d+)\.attn\.out": r"model.layers.\1.self_attn.o_proj",
    r"blocks\.(\d+)\.ff_norm": r"model.layers.\1.post_attention_layernorm",
    r"blocks\.(\d+)\.ff\.(gate|up|down)": r"model.layers.\1.mlp.\2_proj",
    r"norm": "model.norm",
    r"head": "lm_head",
  },
  ignored={
    r".*\.rotary_emb\.inv_freq": "RoPE frequencies: layers/positions.py computes them",
    r"lm_head\.weight": "a copy of the token embeddings if the head is tied to them",
  },
  tied={"lm_head.weight": ("model.embed_tokens.weight",)},
)
