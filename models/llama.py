"""LLaMA is GPT-2 with RMS norms, rotary positions (RoPE), gated feed-forward layers and no biases.

Source: Touvron et al. 2023, sec. 2.2. Mistral and LLaMA 2 70B share keys and values among heads.
Mistral can also limit attention to a sliding window of keys (Jiang et al. 2023, sec. 2).
"""

import functools
from collections.abc import Callable

from tinygrad import Tensor, nn

from layers.feedforward import GatedFeedForward
from layers.positions import apply_rope_half, rope_cos_sin, rope_inv_freq, window_mask
from models.key_map import KeyMap
from tinyformer.checkpoints.config import Config, loader
from tinyformer.generation.kv_cache import KVCache, continues, padded, select_position
from tinyformer.kernels.linear import embed
from transformer import (
  Block,
  Linear,
  MultiHeadAttention,
  Size,
  attention,
  causal_mask,
  materialize,
  pre_norm,
)

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
  ignored={r".*\.rotary_emb\.inv_freq": "RoPE frequencies: layers/positions.py computes them"},
)


class Llama:
  """Compute the logits of the next token for each token of a sequence.

  kv_heads: number of heads of keys and values. Each serves heads / kv_heads adjacent query heads.
  inv_freq: RoPE frequencies in radians per position, as rope_inv_freq returns them.
  window: number of keys that a query sees, its own included; None means all.
  tied: whether the head shares the matrix of the token embeddings.
  feed_forward: called as feed_forward(dim, ff_dim, linear=...), returns the network of a block.
  """

  task = "text-generation"

  def __init__(  # noqa: PLR0913
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
    self.vocab_size = vocab_size
    self.context = context
    self.kv_heads = kv_heads
    self.head_dim = head_dim
    self.inv_freq = inv_freq
    self.window = window

    projection = functools.partial(linear, bias=False)
    self.tokens = nn.Embedding(vocab_size, dim)
    self.blocks = [
      Block(
        attn=MultiHeadAttention(
          dim,
          heads,
          linear=projection,
          attention_fn=attention_fn,
          kv_heads=kv_heads,
          head_dim=head_dim,
        ),
        ff=feed_forward(dim, ff_dim, linear=projection),
        norm=lambda: nn.RMSNorm(dim, eps),
        residual=pre_norm,
      )
      for _ in range(num_layers)
    ]
    self.norm = nn.RMSNorm(dim, eps)

    def tied_head(x: Tensor) -> Tensor:
      return linear.product(x, self.tokens.weight)

    # (..., D) -> logits (..., V)
    self.head: Callable = tied_head if tied else projection(dim, vocab_size)

  def __call__(
    self,
    ids: Tensor,
    start: Size = 0,
    cache: KVCache | None = None,
    attention_mask: Tensor | None = None,
  ) -> Tensor:
    """Return the logits of the next tokens: ids (B, T) -> (B, T, V).

    The other arguments are those of `last_hidden_state`.
    """
    return self.head(self.last_hidden_state(ids, start, cache, attention_mask))

  def last_hidden_state(
    self,
    ids: Tensor,
    start: Size = 0,
    cache: KVCache | None = None,
    attention_mask: Tensor | None = None,
    at: Size | None = None,
  ) -> Tensor:
    """Return the input of the head: ids (B, T) -> (B, T, D).

    With a cache, the result equals the last T rows of an uncached call on the whole sequence.

    start: position of the first id, or its row in the cache if the model has a window. The cache
      must contain all earlier positions that the window includes.
    attention_mask (B, start + T): 1 for tokens, 0 for padding.
    at: index of the only position to return, as (B, 1, D). Requires a cache.
    Raises ValueError if the sequence exceeds the context, or if there is no cache but `start` or
    `at` needs one.
    """
    T = continues(ids, start, cache, self.context)
    mask = self.additive_mask(T, start, attention_mask)
    rope = self.rope(T, start, cache)
    x = materialize(embed(self.tokens, ids))
    for i, block in enumerate(self.blocks):
      if at is not None and i == len(self.blocks) - 1:
        # The head needs one position, so the last block computes a single query.
        x = select_position(block, x, at, cache.layer(i, start) if cache else None, rope)
        start = start + at
        mask = self.additive_mask(1, start, attention_mask)
        rope = self.rope(1, start, cache)
      x = block(x, mask=mask, cache=cache and cache.layer(i, start), rope=rope)
      if cache:
        # Inference only: realizing after each block lets tinygrad reuse one block's schedule.
        x.realize()
    return materialize(self.norm(x))

  def additive_mask(
    self, T: Size, start: Size, attention_mask: Tensor | None = None
  ) -> Tensor | None:
    """Return the mask of T queries from position `start`, or None if all keys are visible.

    The shape broadcasts to (B, H, T, start + T).
    """
    S = start + T
    if attention_mask is not None:
      attention_mask = attention_mask[:, :S]
    if self.window:
      return padded(window_mask(T, S, self.window), attention_mask)
    # A single query is the last position, so it sees every key.
    return padded(causal_mask(T, S) if T > 1 else None, attention_mask)

  def rope(self, T: Size, start: Size, cache: KVCache | None = None) -> Callable[[Tensor], Tensor]:
    """Return a function that rotates queries or keys (B, H, T, K) at positions from `start`.

    A cache with a window evicts keys. It then maps `start`, a row of the cache, to a position.
    """
    position = cache.position(start) if cache else start
    cos, sin = rope_cos_sin(position, T, self.inv_freq)
    cos = cos.contiguous()
    sin = sin.contiguous()
    return lambda x: apply_rope_half(x, cos, sin)

  @property
  def unembedding(self) -> Tensor:
    """Return the matrix (V, D) that maps the last hidden state to logits."""
    return getattr(self.head, "weight", self.tokens.weight)

  def cache(self, batch: int = 1) -> KVCache:
    """Return an empty KV cache for `batch` sequences of up to `context` tokens.

    If the model has a window, the cache has rows for two windows and a chunk only.
    """
    return KVCache(len(self.blocks), batch, self.kv_heads, self.context, self.head_dim, self.window)


def from_config(
  config: Config,
  feed_forward: Callable = GatedFeedForward,
  linear: type[Linear] = Linear,
  attention_fn: Callable = attention,
  **_,
) -> Llama:
  """Return an untrained model with the sizes of a config.json of LLaMA or Mistral.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  config.only(attention_bias=False, mlp_bias=False, hidden_act="silu", pretraining_tp=1)
  dim = config.size("hidden_size")
  heads = config.size("num_attention_heads")
  head_dim = config.size("head_dim", dim // heads)
  # transformers 5 writes rope_parameters, older versions write rope_theta and rope_scaling.
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
  return Llama(
    vocab_size=config.size("vocab_size"),
    context=config.size("max_position_embeddings", 2048),
    dim=dim,
    heads=heads,
    kv_heads=config.size("num_key_value_heads", heads),
    num_layers=config.size("num_hidden_layers"),
    ff_dim=config.size("intermediate_size"),
    head_dim=head_dim,
    inv_freq=rope_inv_freq(head_dim, theta, rope),
    eps=config.get("rms_norm_eps", 1e-6),
    window=config.get("sliding_window"),
    tied=config.get("tie_word_embeddings", False),
    feed_forward=feed_forward,
    linear=linear,
    attention_fn=attention_fn,
  )


load = loader(from_config, KEY_MAP)
