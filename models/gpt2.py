"""GPT-2 is the Transformer's decoder with pre-norm, learned positions, GELU and no cross-attention.

Source: Radford et al. 2019, sec. 2.3.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

from tinygrad import Tensor, nn

from models.key_map import KeyMap
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import Config, loader, name_of
from tinyformer.generation.kv_cache import KVCache, continues, padded, select_position
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
  materialize,
  pre_norm,
)

# Our parameter names on the left, the checkpoint's tensor names on the right. GPT-2 stores each
# matrix as (inputs, outputs), and the matrices of q, k and v side by side in one tensor, c_attn.
KEY_MAP = KeyMap(
  rules={
    r"tokens": "transformer.wte",
    r"positions": "transformer.wpe",
    r"blocks\.(\d+)\.attn_norm": r"transformer.h.\1.ln_1",
    r"blocks\.(\d+)\.attn\.[qkv]\.": r"transformer.h.\1.attn.c_attn.",
    r"blocks\.(\d+)\.attn\.out": r"transformer.h.\1.attn.c_proj",
    r"blocks\.(\d+)\.ff_norm": r"transformer.h.\1.ln_2",
    r"blocks\.(\d+)\.ff\.up": r"transformer.h.\1.mlp.c_fc",
    r"blocks\.(\d+)\.ff\.down": r"transformer.h.\1.mlp.c_proj",
    r"norm": "transformer.ln_f",
  },
  transposed=r"c_(attn|proj|fc)\.weight$",
  # OpenAI's own checkpoint was saved without the head, so its names lack this prefix.
  legacy={r"^(?!transformer\.|lm_head)": "transformer."},
  ignored={
    r"transformer\.h\.\d+\.attn\.(masked_)?bias": "constants: causal_mask computes the mask",
    r"lm_head\.weight": "a copy of the token embeddings, to which the head is tied",
  },
)


class GPT2:
  """Compute the logits of the next token for each token of a sequence.

  The default sizes are those of the smallest GPT-2, with 124 million parameters.
  Weights are normal with standard deviation 0.02, biases are zero (Radford et al. 2018, sec. 4.1).
  The last projection of each sublayer has standard deviation 0.02 / sqrt(2 * num_layers), so that
  the variance of the residual stream does not grow with depth (Radford et al. 2019, sec. 2.3).

  residual, linear, attention_fn, layer_norm: the parts of each Block; see transformer.py.
  """

  task = "text-generation"

  def __init__(  # noqa: PLR0913
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
    self.vocab_size = vocab_size
    self.context = context
    self.dim = dim
    self.heads = heads
    self.ff_dim = ff_dim or 4 * dim
    self.activation = activation
    self.dropout = dropout
    self.product = linear.product

    self.tokens = nn.Embedding(vocab_size, dim)
    self.positions = nn.Embedding(context, dim)
    self.blocks = [
      Block(
        attn=MultiHeadAttention(dim, heads, linear, attention_fn=attention_fn),
        ff=FeedForward(dim, self.ff_dim, activation, linear),
        norm=lambda: layer_norm(dim, eps),
        residual=functools.partial(residual, dropout=dropout),
      )
      for _ in range(num_layers)
    ]
    self.norm = layer_norm(dim, eps)

    for name, parameter in nn.state.get_state_dict(self).items():
      if parameter.ndim == 2:
        last_of_sublayer = name.endswith(("out.weight", "down.weight"))
        std = 0.02 / math.sqrt(2 * num_layers) if last_of_sublayer else 0.02
        parameter.replace(Tensor.normal(*parameter.shape, std=std))

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

    start: position of the first id. The cache must contain all positions before `start`.
    attention_mask (B, start + T): 1 for tokens, 0 for padding. Positions do not count padding.
    at: index of the only position to return, as (B, 1, D). Requires a cache.
    Raises ValueError if the sequence exceeds the context, or if there is no cache but `start` or
    `at` needs one.
    """
    T = continues(ids, start, cache, self.context)
    x = self.embed(ids, start, attention_mask)
    mask = self.additive_mask(T, start, attention_mask)
    for i, block in enumerate(self.blocks):
      if at is not None and i == len(self.blocks) - 1:
        # The head needs one position, so the last block computes a single query.
        x = select_position(block, x, at, cache.layer(i, start) if cache else None)
        start = start + at
        mask = self.additive_mask(1, start, attention_mask)
      x = block(x, mask=mask, cache=cache and cache.layer(i, start))
      if cache:
        # Inference only: realizing after each block lets tinygrad reuse one block's schedule.
        x.realize()
    return materialize(self.norm(x))

  def embed(self, ids: Tensor, start: Size = 0, attention_mask: Tensor | None = None) -> Tensor:
    """Return the sum of the token and position embeddings: ids (B, T) -> (B, T, D)."""
    if attention_mask is None:
      positions = to_float32(self.positions.weight[start : start + ids.shape[1]])
    else:
      # Position 0 is the first token after the padding on the left.
      position_ids = (attention_mask.int().cumsum(1) - 1).maximum(0)
      positions = embed(self.positions, position_ids[:, start:])
    x = embed(self.tokens, ids) + positions
    return materialize(x.dropout(self.dropout))

  def additive_mask(
    self, T: Size, start: Size, attention_mask: Tensor | None = None
  ) -> Tensor | None:
    """Return the mask of T queries from position `start`, or None if all keys are visible.

    The shape broadcasts to (B, H, T, start + T).
    """
    S = start + T
    if attention_mask is not None:
      attention_mask = attention_mask[:, :S]
    # A single query is the last position, so it sees every key.
    return padded(causal_mask(T, S) if T > 1 else None, attention_mask)

  def head(self, x: Tensor) -> Tensor:
    """Return the dot products with all token embeddings as logits: (..., D) -> (..., V)."""
    return self.product(x, self.tokens.weight)

  @property
  def unembedding(self) -> Tensor:
    """Return the matrix (V, D) that maps the last hidden state to logits."""
    return self.tokens.weight

  def cache(self, batch: int = 1) -> KVCache:
    """Return an empty KV cache for `batch` sequences of up to `context` tokens."""
    head_dim = self.dim // self.heads
    return KVCache(len(self.blocks), batch, self.heads, self.context, head_dim)


def from_config(config: Config, **parts) -> GPT2:
  """Return an untrained model with the sizes of a config.json.

  parts: the arguments `linear`, `attention_fn` and `layer_norm` of GPT2.
  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  config.only(
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
    tie_word_embeddings=True,
  )
  dim = config.size("n_embd")
  return GPT2(
    vocab_size=config.size("vocab_size"),
    context=config.size("n_positions"),
    dim=dim,
    heads=config.size("n_head"),
    num_layers=config.size("n_layer"),
    ff_dim=config.size("n_inner", 4 * dim),
    activation=config.activation("activation_function", "gelu_new"),
    eps=config.get("layer_norm_epsilon", 1e-5),
    **parts,
  )


load = loader(from_config, KEY_MAP)


def save(model: GPT2, folder: str | Path, dtype: str = "float32", **config) -> None:
  """Save a model in a folder that `load` and GPT2LMHeadModel of transformers can read.

  config: additional keys of config.json, such as eos_token_id.
  """
  keys = {
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
  safetensors.write(model, Path(folder), keys | config, KEY_MAP, dtype)
