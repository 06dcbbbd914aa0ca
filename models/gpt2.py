"""GPT-2 is the Transformer's decoder with pre-norm, learned positions, GELU and no cross-attention.

Source: Radford et al. 2019, sec. 2.3.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinygrad import Tensor, nn

from layers.attention import CachedAttention
from layers.norms import pre_norm
from layers.parts import PLAIN, Parts
from layers.positions import check_context, token_positions
from models.hf_config import HFConfig, hf_activation
from models.key_map import KeyMap
from transformer import Block, FeedForward, causal_mask, padding_mask


@dataclass(frozen=True)
class GPT2Config:
  """The defaults are the sizes of the smallest GPT-2, with 124 million parameters."""

  vocab_size: int = 50257
  context: int = 1024
  dim: int = 768
  heads: int = 12
  num_layers: int = 12
  ff_dim: int | None = None  # None: 4 * dim
  activation: str = "gelu_tanh"
  eps: float = 1e-5
  dropout: float = 0.0


class GPT2:
  """Compute the logits of the next token for each token of a sequence.

  See `initialize` for the initial weights.
  """

  task = "text-generation"
  residual = staticmethod(pre_norm)

  def __init__(self, config: GPT2Config, parts: Parts = PLAIN):
    c = config
    self.config, self.parts = config, parts
    self.vocab_size, self.context = c.vocab_size, c.context
    self.tokens = parts.embedding(c.vocab_size, c.dim)
    self.positions = parts.embedding(c.context, c.dim)
    activation = parts.activations[c.activation]
    self.blocks = [
      Block(
        attn=CachedAttention(c.dim, c.heads, parts.linear, parts.attention),
        ff=FeedForward(c.dim, c.ff_dim or 4 * c.dim, activation, parts.linear),
        norm=lambda: parts.layer_norm(c.dim, c.eps),
        residual=partial(self.residual, dropout=c.dropout),
      )
      for _ in range(c.num_layers)
    ]
    self.norm = parts.layer_norm(c.dim, c.eps)
    if parts.initialize:
      self.initialize()

  def initialize(self) -> None:
    """Draw weights with standard deviation 0.02 (Radford et al. 2018, sec. 4.1).

    The last projection of each sublayer has standard deviation 0.02 / sqrt(2 * num_layers), so that
    the variance of the residual stream does not grow with depth (Radford et al. 2019, sec. 2.3).
    """
    for name, parameter in nn.state.get_state_dict(self).items():
      if parameter.ndim == 2:
        last_of_sublayer = name.endswith(("out.weight", "down.weight"))
        std = 0.02 / math.sqrt(2 * len(self.blocks)) if last_of_sublayer else 0.02
        parameter.replace(Tensor.normal(*parameter.shape, std=std))

  def __call__(self, ids: Tensor, cache=None, attention_mask: Tensor | None = None) -> Tensor:
    """Return the logits of the next tokens: ids (B, T) -> (B, T, V).

    The other arguments are those of `last_hidden_state`.
    """
    return self.head(self.last_hidden_state(ids, cache, attention_mask))

  def last_hidden_state(self, ids: Tensor, cache=None, attention_mask=None) -> Tensor:
    """Return the input of the head: ids (B, T) -> (B, T, D).

    cache: a KVCache of P earlier positions, to which the T new ones are added; None means P = 0.
    attention_mask (B, P + T): 1 for tokens, 0 for padding. Positions do not count padding.
    Raises ValueError if the sequence exceeds the context.
    """
    x = self.embed(ids, cache, attention_mask)
    inputs = self.attention_inputs(ids, cache, attention_mask)
    for i, block in enumerate(self.blocks):
      x = block(x, **inputs, cache=None if cache is None else cache.layer(i))
    return self.norm(x)

  def embed(self, ids: Tensor, cache=None, attention_mask: Tensor | None = None) -> Tensor:
    """Return the sum of the token and position embeddings: ids (B, T) -> (B, T, D)."""
    T = ids.shape[1]
    if attention_mask is not None:
      positions = token_positions(attention_mask)[:, -T:]
    elif cache is not None:
      positions = Tensor.arange(T) + cache.position
    else:
      check_context(T, self.context)
      positions = Tensor.arange(T)
    x = self.tokens(ids) + self.positions(positions)
    return x.dropout(self.config.dropout)

  def attention_inputs(
    self, ids: Tensor, cache=None, attention_mask: Tensor | None = None
  ) -> dict[str, Any]:
    """Return the arguments of each block's attention besides x: a mask for (B, H, T, P + T)."""
    T = ids.shape[1]
    mask = causal_mask(T, T if cache is None else cache.length + T)
    return {"mask": mask if attention_mask is None else mask + padding_mask(attention_mask)}

  def head(self, x: Tensor) -> Tensor:
    """Return the dot products with all token embeddings as logits: (..., D) -> (..., V)."""
    return self.tokens.as_linear(x)

  @property
  def unembedding(self) -> Tensor:
    """Return the matrix (V, D) that maps the last hidden state to logits."""
    return self.tokens.weight


def from_hf(hf: HFConfig) -> GPT2Config:
  """Translate a config.json.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  hf.only(
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
    tie_word_embeddings=True,
  )
  dim = hf.size("n_embd")
  return GPT2Config(
    vocab_size=hf.size("vocab_size"),
    context=hf.size("n_positions"),
    dim=dim,
    heads=hf.size("n_head", divides=dim),
    num_layers=hf.size("n_layer"),
    ff_dim=hf.size("n_inner", 4 * dim),
    activation=hf.activation("activation_function", "gelu_new"),
    eps=hf.epsilon("layer_norm_epsilon", 1e-5),
  )


def to_hf(model: GPT2) -> dict[str, Any]:
  """Return the config.json of a model, for GPT2LMHeadModel of transformers."""
  c = model.config
  return {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": c.vocab_size,
    "n_positions": c.context,
    "n_ctx": c.context,
    "n_embd": c.dim,
    "n_head": c.heads,
    "n_layer": c.num_layers,
    "n_inner": c.ff_dim or 4 * c.dim,
    "activation_function": hf_activation(c.activation),
    "layer_norm_epsilon": c.eps,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
  }


# Our parameter names on the left, the checkpoint's tensor names on the right.
# For example, block 3's `blocks.3.attn.q.weight` (768, 768) is mapped by the fourth rule to the
# tensor `transformer.h.3.attn.c_attn.weight`, as are the weights of k and v. That tensor therefore
# contains all three side by side, in this order. Its name matches `transposed`: GPT-2 stores each
# matrix as (inputs, outputs). The shape of the tensor is (768, 3 * 768).
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
  tied={"lm_head.weight": ("transformer.wte.weight",)},
)
