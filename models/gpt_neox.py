"""GPT-NeoX is GPT-2 with rotary positions and parallel sublayers: x + attention(x) + ff(x).

Source: Black et al. 2022, sec. 2.1. Only the first quarter of each head is rotated. The head is not
tied to the token embeddings. Pythia has the same architecture (Biderman et al. 2023, sec. 2.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinygrad import Tensor

from layers.attention import CachedAttention
from layers.blocks import ParallelBlock
from layers.norms import pre_norm
from layers.parts import PLAIN, Parts
from layers.positions import apply_rope_partial, rope_inv_freq
from models import llama
from models.hf_config import HFConfig
from models.key_map import KeyMap
from transformer import Block, FeedForward


@dataclass(frozen=True)
class GPTNeoXConfig(llama.LlamaConfig):
  """The sizes and settings of a GPT-NeoX or Pythia.

  rope_dim: number of components of each head that RoPE rotates.
  parallel: whether the sublayers of a block are parallel; otherwise they follow one another.
  """

  rope_dim: int = 16
  activation: str = "gelu"
  parallel: bool = True


class GPTNeoX(llama.Llama):
  """Compute the logits of the next token for each token of a sequence."""

  config: GPTNeoXConfig

  def __init__(self, config: GPTNeoXConfig, parts: Parts = PLAIN):
    super().__init__(config, parts)
    self.inv_freq = rope_inv_freq(config.rope_dim, config.rope_theta, config.rope_scaling)

  def new_norm(self) -> Callable:
    """Return a norm of vectors of width D."""
    return self.parts.layer_norm(self.config.dim, self.config.eps)

  def block(self, linear: Callable, layer: int) -> Block:
    """Return the block with this index."""
    kind = ParallelBlock if self.config.parallel else Block
    return kind(self.attention(linear, layer), self.feed_forward(linear), self.new_norm, pre_norm)

  def attention(self, linear: Callable, layer: int) -> CachedAttention:
    """Return the attention of the block with this index. Its projections have biases."""
    c = self.config
    return CachedAttention(c.dim, c.heads, self.parts.linear, self.parts.attention)

  def feed_forward(self, linear: Callable) -> Callable:
    """Return the feed-forward network of a block. It has biases."""
    c = self.config
    return FeedForward(c.dim, c.ff_dim, self.parts.activations[c.activation], self.parts.linear)

  def attention_inputs(
    self, ids: Tensor, cache=None, attention_mask: Tensor | None = None
  ) -> dict[str, Any]:
    """Return the arguments of each block's attention besides x: mask and rope, as in Llama."""
    inputs = super().attention_inputs(ids, cache, attention_mask)
    rope = partial(apply_rope_partial, rope=inputs["rope"], rope_dim=self.config.rope_dim)
    return inputs | {"rope": rope}


def from_hf(hf: HFConfig) -> GPTNeoXConfig:
  """Translate a config.json of GPT-NeoX or Pythia.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  hf.only(attention_bias=True)
  dim = hf.size("hidden_size")
  heads = hf.size("num_attention_heads", divides=dim)
  # transformers 5 writes rope_parameters, older versions write rotary_pct and rotary_emb_base.
  rope = hf.section("rope_parameters", "rope_scaling")
  theta = hf.number("rotary_emb_base", 10000.0, 1, llama.MAX_THETA)
  fraction = rope.number("partial_rotary_factor", hf.number("rotary_pct", 0.25, 0, 1), 0, 1)
  rope_dim = int(dim // heads * fraction)
  if rope_dim < 2 or rope_dim % 2:
    raise ValueError(
      f"{hf.source}: RoPE rotates pairs, but {fraction} of a head's width {dim // heads} is "
      f"{rope_dim}: correct rotary_pct or partial_rotary_factor"
    )
  return GPTNeoXConfig(
    vocab_size=hf.size("vocab_size"),
    context=hf.size("max_position_embeddings", 2048),
    dim=dim,
    heads=heads,
    kv_heads=heads,
    head_dim=dim // heads,
    num_layers=hf.size("num_hidden_layers"),
    ff_dim=hf.size("intermediate_size"),
    rope_theta=rope.number("rope_theta", theta, 1, llama.MAX_THETA),
    rope_scaling=llama.rope_scaling_from_hf(hf),
    eps=hf.epsilon("layer_norm_eps", 1e-5),
    tied=hf.flag("tie_word_embeddings", False),
    rope_dim=rope_dim,
    activation=hf.activation("hidden_act", "gelu"),
    parallel=hf.flag("use_parallel_residual", True),
  )


# One tensor holds q, k and v. Its rows are ordered by head: q, k and v of head 0, then of head 1.
LAYER = r"gpt_neox.layers.\1."
KEY_MAP = KeyMap(
  rules={
    r"tokens": "gpt_neox.embed_in",
    r"blocks\.(\d+)\.attn_norm": LAYER + "input_layernorm",
    r"blocks\.(\d+)\.attn\.[qkv]\.": LAYER + "attention.query_key_value.",
    r"blocks\.(\d+)\.attn\.out": LAYER + "attention.dense",
    r"blocks\.(\d+)\.ff_norm": LAYER + "post_attention_layernorm",
    r"blocks\.(\d+)\.ff\.up": LAYER + "mlp.dense_h_to_4h",
    r"blocks\.(\d+)\.ff\.down": LAYER + "mlp.dense_4h_to_h",
    r"norm": "gpt_neox.final_layer_norm",
    r"head": "embed_out",
  },
  by_head=r"query_key_value\.",
  legacy={r"^lm_head\.": "embed_out."},
  ignored={
    r".*\.attention\.(masked_)?bias$": "constants: causal_mask computes the mask",
    r".*\.rotary_emb\.inv_freq": "RoPE frequencies: layers/positions.py computes them",
  },
)
