"""GPT-2 is the Transformer's decoder alone: norms before the sublayers, learned positions, GELU (Radford et al. 2019, sec. 2.3)."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

from tinygrad import Tensor, nn

from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import Config, loader, name_of
from tinyformer.generation.kv_cache import KVCache, continues, select_position, padded
from tinyformer.kernels.gelu import gelu
from tinyformer.kernels.linear import embed, to_float32
from transformer import (
  Block,
  FeedForward,
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
    r"tokens": "transformer.wte",
    r"positions": "transformer.wpe",
    r"norm": "transformer.ln_f",
    r"blocks\.(\d+)\.attn_norm": r"transformer.h.\1.ln_1",
    r"blocks\.(\d+)\.ff_norm": r"transformer.h.\1.ln_2",
    r"blocks\.(\d+)\.attn\.[qkv]\.": r"transformer.h.\1.attn.c_attn.",
    r"blocks\.(\d+)\.attn\.out": r"transformer.h.\1.attn.c_proj",
    r"blocks\.(\d+)\.ff\.up": r"transformer.h.\1.mlp.c_fc",
    r"blocks\.(\d+)\.ff\.down": r"transformer.h.\1.mlp.c_proj",
  },
  transposed=r"c_(attn|proj|fc)\.weight$",
  legacy={
    r"^(?!transformer\.|lm_head)": "transformer."
  },  # OpenAI's own files were saved without a head, and so without the prefix
  ignored={
    r"transformer\.h\.\d+\.attn\.(masked_)?bias": "the causal mask and its -1e4: causal_mask makes them",
    r"lm_head\.weight": "the token embeddings again: the head is tied to them",
  },
)


class GPT2:
  """Token ids to logits for the token that follows each of them. Sizes default to the smallest of OpenAI's four.

  Weights start as N(0, 0.02), those of the two projections into the residual stream as N(0, 0.02 / sqrt(2 layers)), biases at zero.
  """

  task = "text-generation"

  def __init__(
    self,
    vocab_size: int = 50257,
    context: int = 1024,
    dim: int = 768,
    heads: int = 12,
    num_layers: int = 12,
    ff_dim: int | None = None,
    activation: Callable = gelu,
    eps: float = 1e-5,
    dropout: float = 0.0,
    residual: Callable = pre_norm,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
    layer_norm: Callable = nn.LayerNorm,
  ):
    self.vocab_size, self.context, self.dim, self.heads, self.dropout, self.product = (
      vocab_size,
      context,
      dim,
      heads,
      dropout,
      linear.product,
    )
    self.activation, self.ff_dim = activation, ff_dim or 4 * dim
    self.tokens, self.positions = nn.Embedding(vocab_size, dim), nn.Embedding(context, dim)
    self.blocks = [
      Block(
        MultiHeadAttention(dim, heads, linear, attention_fn=attention_fn),
        FeedForward(dim, self.ff_dim, activation, linear),
        lambda: layer_norm(dim, eps),
        functools.partial(residual, dropout=dropout),
      )
      for _ in range(num_layers)
    ]
    self.norm = layer_norm(dim, eps)
    for name, t in nn.state.get_state_dict(self).items():
      if t.ndim == 2:
        t.replace(
          Tensor.normal(
            *t.shape,
            std=0.02 / math.sqrt(2 * num_layers)
            if name.endswith(("out.weight", "down.weight"))
            else 0.02,
          )
        )

  def cache(self, batch: int = 1) -> KVCache:
    """An empty cache for `batch` texts of up to `context` tokens."""
    return KVCache(len(self.blocks), batch, self.heads, self.context, self.dim // self.heads)

  def last_hidden_state(
    self,
    ids: Tensor,
    start: Size = 0,
    cache: KVCache | None = None,
    attention_mask: Tensor | None = None,
    at: Size | None = None,
  ) -> Tensor:
    """ids (B, T), the first of which stands at place `start` of its text -> (B, T, D), what the head reads.

    With a cache, which holds the `start` places before them, the result is what the whole text would give in its last T rows.
    keep (B, start + T): false where a shorter text is padded; its places count from its first token.
    at, with a cache: of the T rows the only one that is asked for -> (B, 1, D).
    Raises ValueError if the text is longer than the context, and for `start` or `at` without a cache.
    """
    T = continues(ids, start, cache, self.context)

    def seen(T: Size, start: Size) -> Tensor | None:  # the mask of T places from `start` on
      return padded(
        causal_mask(T, start + T) if T > 1 else None,
        None if attention_mask is None else attention_mask[:, : start + T],
      )

    positions = (
      to_float32(self.positions.weight[start : start + T])
      if attention_mask is None
      else embed(self.positions, (attention_mask.int().cumsum(1) - 1).maximum(0)[:, start:])
    )
    x = materialize((embed(self.tokens, ids) + positions).dropout(self.dropout))
    mask = seen(T, start)
    for i, block in enumerate(self.blocks):
      if at is not None and i == len(self.blocks) - 1:
        x, start = (
          select_position(block, x, at, cache.layer(i, start) if cache else None),
          start + at,
        )
        mask = seen(1, start)
      x = block(x, mask=mask, cache=cache and cache.layer(i, start))
      if cache:
        x.realize()  # nothing learns here: tinygrad plans one layer and knows the others, instead of planning them all at once
    return materialize(self.norm(x))

  def head(self, x: Tensor) -> Tensor:
    """(..., D) -> logits (..., V): how well each token's embedding fits."""
    return self.product(x, self.tokens.weight)

  @property
  def unembedding(self) -> Tensor:
    """(V, D): the logits are what `hidden` gives times its transpose."""
    return self.tokens.weight

  def __call__(
    self,
    ids: Tensor,
    start: Size = 0,
    cache: KVCache | None = None,
    attention_mask: Tensor | None = None,
  ) -> Tensor:
    """ids (B, T) -> logits (B, T, V); start, cache and keep as in `hidden`."""
    return self.head(self.last_hidden_state(ids, start, cache, attention_mask))


def from_config(config: Config, **parts) -> GPT2:
  """An untrained model of the sizes that a config.json states. parts: linear, attend and layer_norm. Raises ValueError for what is not built here."""
  config.only(
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
    tie_word_embeddings=True,
  )
  dim = config.size("n_embd")
  return GPT2(
    config.size("vocab_size"),
    config.size("n_positions"),
    dim,
    config.size("n_head"),
    config.size("n_layer"),
    config.size("n_inner", 4 * dim),
    config.activation("activation_function", "gelu_new"),
    config.get("layer_norm_epsilon", 1e-5),
    **parts,
  )


load = loader(from_config, KEY_MAP)


def save(model: GPT2, folder: str | Path, dtype: str = "float32", **config) -> None:
  """Writes a folder that `load`, and transformers' GPT2LMHeadModel, read. config: more keys for config.json, such as eos_token_id."""
  safetensors.write(
    model,
    Path(folder),
    {
      "model_type": "gpt2",
      "architectures": ["GPT2LMHeadModel"],
      "vocab_size": model.vocab_size,
      "n_positions": model.context,
      "n_embd": model.dim,
      "n_head": model.heads,
      "n_layer": len(model.blocks),
      "n_inner": model.ff_dim,
      "activation_function": name_of(model.activation),
      "layer_norm_epsilon": model.norm.eps,
      "tie_word_embeddings": True,
      "bos_token_id": None,
      "eos_token_id": None,
    }
    | config,
    KEY_MAP,
    dtype,
  )
