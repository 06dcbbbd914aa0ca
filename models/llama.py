"""LLaMA is GPT-2 with RMS norms, queries and keys turned by their places, gated feed-forwards and no biases (Touvron et al. 2023, sec. 2.2).

Mistral and LLaMA 2's largest share keys among heads; Mistral's queries may see a window of keys alone (Jiang et al. 2023, sec. 2).
"""

import functools
from collections.abc import Callable

from tinygrad import Tensor, nn

from layers.feedforward import GatedFeedForward
from layers.positions import rope_inv_freq, rope_cos_sin, apply_rope_half, window_mask
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import Config, loader
from tinyformer.generation.kv_cache import KVCache, continues, select_position, padded
from tinyformer.kernels.linear import embed
from transformer import (
  Block,
  Linear,
  MultiHeadAttention,
  Size,
  attention,
  causal_mask,
  pre_norm,
  materialize,
)

KEY_MAP = safetensors.KeyMap(
  rules={
    r"tokens": "model.embed_tokens",
    r"norm": "model.norm",
    r"head": "lm_head",
    r"blocks\.(\d+)\.attn_norm": r"model.layers.\1.input_layernorm",
    r"blocks\.(\d+)\.ff_norm": r"model.layers.\1.post_attention_layernorm",
    r"blocks\.(\d+)\.attn\.out": r"model.layers.\1.self_attn.o_proj",
    r"blocks\.(\d+)\.attn\.([qkv])": r"model.layers.\1.self_attn.\2_proj",
    r"blocks\.(\d+)\.ff\.(gate|up|down)": r"model.layers.\1.mlp.\2_proj",
  },
  ignored={
    r".*\.rotary_emb\.inv_freq": "the angles' frequencies: layers/positions.py computes them"
  },
)


class Llama:
  """Token ids to logits for the token that follows each of them.

  kv_heads: heads of keys and values, shared by heads / kv_heads in a row.  turning: radians a place of each plane, as parts.positions.frequencies
  gives them.  window: how many keys a query sees, its own the last; None: all.  tied: the head is the embeddings.
  feed_forward: (dim, hidden, linear=) -> a block's network.
  """

  task = "text-generation"

  def __init__(
    self,
    vocab_size: int,
    context: int,
    dim: int,
    heads: int,
    kv_heads: int,
    num_layers: int,
    ff_dim: int,
    head_dim: int,
    inv_freq: list[float],
    eps: float = 1e-6,
    window: int | None = None,
    tied: bool = False,
    feed_forward: Callable = GatedFeedForward,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
  ):
    self.vocab_size, self.context, self.kv_heads, self.head_dim, self.inv_freq, self.window = (
      vocab_size,
      context,
      kv_heads,
      head_dim,
      inv_freq,
      window,
    )
    plain = functools.partial(linear, bias=False)
    self.tokens = nn.Embedding(vocab_size, dim)
    self.blocks = [
      Block(
        MultiHeadAttention(
          dim, heads, plain, attention_fn=attention_fn, kv_heads=kv_heads, head_dim=head_dim
        ),
        feed_forward(dim, ff_dim, linear=plain),
        lambda: nn.RMSNorm(dim, eps),
        pre_norm,
      )
      for _ in range(num_layers)
    ]
    self.norm = nn.RMSNorm(dim, eps)
    self.head: Callable = (
      (lambda x: linear.product(x, self.tokens.weight)) if tied else plain(dim, vocab_size)
    )  # (..., D) -> logits (..., V)

  def cache(self, batch: int = 1) -> KVCache:
    """An empty cache for `batch` texts of up to `context` tokens; of a model with a window, what some windows need."""
    return KVCache(len(self.blocks), batch, self.kv_heads, self.context, self.head_dim, self.window)

  def last_hidden_state(
    self,
    ids: Tensor,
    start: Size = 0,
    cache: KVCache | None = None,
    attention_mask: Tensor | None = None,
    at: Size | None = None,
  ) -> Tensor:
    """ids (B, T), the first of which stands at place `start` of its text -> (B, T, D), what the head reads; cache, keep and at as in GPT2.hidden."""
    T = continues(ids, start, cache, self.context)

    def seen(
      T: Size, start: Size
    ) -> tuple[Tensor | None, Callable]:  # the mask and the turning of T places from `start` on
      mask = (
        window_mask(T, start + T, self.window)
        if self.window
        else causal_mask(T, start + T)
        if T > 1
        else None
      )
      angles = [
        t.contiguous()
        for t in rope_cos_sin(cache.position(start) if cache else start, T, self.inv_freq)
      ]
      return padded(
        mask, None if attention_mask is None else attention_mask[:, : start + T]
      ), lambda x: apply_rope_half(x, *angles)

    mask, rope = seen(T, start)
    x = materialize(embed(self.tokens, ids))
    for i, block in enumerate(self.blocks):
      if at is not None and i == len(self.blocks) - 1:
        x, start = (
          select_position(block, x, at, cache.layer(i, start) if cache else None, rope),
          start + at,
        )
        mask, rope = seen(1, start)
      x = block(x, mask=mask, cache=cache and cache.layer(i, start), rope=rope)
      if cache:
        x.realize()
    return materialize(self.norm(x))

  @property
  def unembedding(self) -> Tensor:
    """As GPT2's."""
    return getattr(self.head, "weight", self.tokens.weight)

  def __call__(
    self,
    ids: Tensor,
    start: Size = 0,
    cache: KVCache | None = None,
    attention_mask: Tensor | None = None,
  ) -> Tensor:
    """ids (B, T) -> logits (B, T, V); start, cache and keep as in `hidden`."""
    return self.head(self.last_hidden_state(ids, start, cache, attention_mask))


def from_config(
  config: Config,
  feed_forward: Callable = GatedFeedForward,
  linear: type[Linear] = Linear,
  attention_fn: Callable = attention,
  **_,
) -> Llama:
  """An untrained model of the sizes that a config.json of LLaMA or Mistral states. Raises ValueError for what is not built here."""
  config.only(attention_bias=False, mlp_bias=False, hidden_act="silu", pretraining_tp=1)
  dim, heads = config.size("hidden_size"), config.size("num_attention_heads")
  rope = (
    config.get("rope_parameters") or config.get("rope_scaling") or {}
  )  # transformers 5 writes the first, older ones rope_theta and the second
  theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
  head_dim = config.size("head_dim", dim // heads)
  return Llama(
    config.size("vocab_size"),
    config.size("max_position_embeddings", 2048),
    dim,
    heads,
    config.size("num_key_value_heads", heads),
    config.size("num_hidden_layers"),
    config.size("intermediate_size"),
    head_dim,
    rope_inv_freq(head_dim, theta, rope),
    config.get("rms_norm_eps", 1e-6),
    config.get("sliding_window"),
    config.get("tie_word_embeddings", False),
    feed_forward,
    linear,
    attention_fn,
  )


load = loader(from_config, KEY_MAP)
