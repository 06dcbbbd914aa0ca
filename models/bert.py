"""BERT differs from GPT-2 in that every token sees all others: no causal mask; norms after the sublayers, segments, exact GELU (Devlin et al. 2019, sec. 3).

RoBERTa and CamemBERT are BERT with other training and tokens, and positions that begin after the padding's id (Liu et al. 2019; Martin et al. 2020).
"""

import functools
from collections.abc import Callable
from pathlib import Path

from tinygrad import Tensor, nn

from models.heads import KEY_MAP as HEADS
from models.heads import LEFT, Vectors, for_config
from models.key_map import KeyMap
from tinyformer.checkpoints.config import ACTIVATIONS, Config, loader
from tinyformer.kernels.linear import embed
from transformer import (
  Block,
  FeedForward,
  Linear,
  MultiHeadAttention,
  attention,
  materialize,
  padding_mask,
  post_norm,
)


def names(trunk: str, head: dict[str, str]) -> KeyMap:
  """trunk: what comes before the names of all but the head's tensors."""
  layer = rf"{trunk}.encoder.layer.\1."
  return KeyMap(
    rules={
      r"tokens": f"{trunk}.embeddings.word_embeddings",
      r"positions": f"{trunk}.embeddings.position_embeddings",
      r"segments": f"{trunk}.embeddings.token_type_embeddings",
      r"norm": f"{trunk}.embeddings.LayerNorm",
      r"blocks\.(\d+)\.attn\.q": layer + "attention.self.query",
      r"blocks\.(\d+)\.attn\.k": layer + "attention.self.key",
      r"blocks\.(\d+)\.attn\.v": layer + "attention.self.value",
      r"blocks\.(\d+)\.attn\.out": layer + "attention.output.dense",
      r"blocks\.(\d+)\.attn_norm": layer + "attention.output.LayerNorm",
      r"blocks\.(\d+)\.ff_norm": layer + "output.LayerNorm",
      r"blocks\.(\d+)\.ff\.up": layer + "intermediate.dense",
      r"blocks\.(\d+)\.ff\.down": layer + "output.dense",
    }
    | head,
    legacy={
      r"^(embeddings|encoder|pooler)\.": rf"{trunk}.\1.",  # saved without a head, and so without the prefix
      r"LayerNorm\.gamma$": "LayerNorm.weight",
      r"LayerNorm\.beta$": "LayerNorm.bias",
    },  # converted from TensorFlow
    ignored={
      rf"{trunk}\.embeddings\.(position|token_type)_ids": "0, 1, 2 ... and zeros: hidden makes them"
    }
    | LEFT,
  )


KEY_MAP = names("bert", HEADS | {r"head\.pool": "bert.pooler.dense"})
ROBERTA = names(
  "roberta",
  {
    r"head\.dense": "lm_head.dense",
    r"head\.norm": "lm_head.layer_norm",
    r"head\.bias": "lm_head.bias",
    r"head\.decoder": "lm_head.decoder",
    r"head\.pool": "classifier.dense",
    r"head\.classes": "classifier.out_proj",
    r"head\.tags": "classifier",
    r"head\.ends": "qa_outputs",
  },
)


def from_the_first(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
  """(T), or (B, T): which place each token has, 0 the first that is kept."""
  return (
    Tensor.arange(ids.shape[1])
    if attention_mask is None
    else (attention_mask.int().cumsum(1) - 1).maximum(0)
  )


def after_padding(pad: int) -> Callable[[Tensor, Tensor | None], Tensor]:
  """RoBERTa's places: the tokens that are not `pad` count from pad + 1; those that are have place `pad`, wherever they stand."""

  def places(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    word = (ids != pad).int()
    return word.cumsum(1) * word + pad

  return places


class Bert:
  """Token ids to a vector for each of them, and to what the head says of these.

  places: (ids, keep) -> rows of the position table, which has `before` rows before that of a text's first token.  head: makes of the token embeddings what reads the vectors (models/heads.py).
  Matrices start as N(0, 0.02), biases at zero.
  """

  def __init__(
    self,
    vocab_size: int,
    context: int,
    dim: int,
    heads: int,
    num_layers: int,
    ff_dim: int,
    segments: int = 2,
    activation: Callable = ACTIVATIONS["gelu"],
    eps: float = 1e-12,
    places: Callable = from_the_first,
    before: int = 0,
    head: Callable = lambda tokens: Vectors(),
    dropout: float = 0.0,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
    layer_norm: Callable = nn.LayerNorm,
  ):
    self.vocab_size, self.context, self.places, self.dropout = vocab_size, context, places, dropout
    self.tokens, self.positions, self.segments = (
      nn.Embedding(vocab_size, dim),
      nn.Embedding(before + context, dim),
      nn.Embedding(segments, dim),
    )
    self.norm = layer_norm(dim, eps)
    self.blocks = [
      Block(
        MultiHeadAttention(dim, heads, linear, attention_fn=attention_fn),
        FeedForward(dim, ff_dim, activation, linear),
        lambda: layer_norm(dim, eps),
        functools.partial(post_norm, dropout=dropout),
      )
      for _ in range(num_layers)
    ]
    self.head = head(self.tokens)
    self.task, self.labels = self.head.task, self.head.labels
    for t in nn.state.get_parameters(self):
      if t.ndim == 2:
        t.replace(Tensor.normal(*t.shape, std=0.02))

  def last_hidden_state(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """ids (B, T) -> (B, T, D), what the head reads.

    keep (B, T): false for padding, which no token sees and which takes no place.  segments (B, T): 0 for a first sentence, 1 for a second; all 0
    without. Raises ValueError if the text is longer than the context.
    """
    if ids.shape[1] > self.context:
      raise ValueError(f"{ids.shape[1]} tokens are more than the context of {self.context}")
    first = (
      ids < 0
    ).int()  # all 0; ids*0 tinygrad would know beforehand, and it sums no gradient for rows whose number it knows
    x = (
      embed(self.tokens, ids)
      + embed(self.positions, self.places(ids, attention_mask))
      + embed(self.segments, first if segments is None else segments)
    )
    x = materialize(self.norm(x).dropout(self.dropout))
    for block in self.blocks:
      x = block(x, mask=None if attention_mask is None else padding_mask(attention_mask))
    return materialize(x)

  def __call__(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """ids (B, T) -> what the head says: see its class. keep and segments as in `hidden`."""
    return self.head(self.last_hidden_state(ids, attention_mask, segments))


def from_config(
  config: Config,
  linear: type[Linear] = Linear,
  attention_fn: Callable = attention,
  layer_norm: Callable = nn.LayerNorm,
) -> Bert:
  """An untrained model of the sizes, and with the head, that a config.json states. Raises ValueError for what is not built here."""
  config.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
  bert, eps, pad, activation = (
    is_bert(config),
    config.get("layer_norm_eps", 1e-12),
    config.get("pad_token_id", 1),
    config.activation("hidden_act", "gelu"),
  )
  before = 0 if bert else pad + 1
  dim, rows = config.size("hidden_size"), config.size("max_position_embeddings")
  head = for_config(
    config,
    lambda: layer_norm(dim, eps),
    activation if bert else ACTIVATIONS["gelu"],
    Tensor.tanh,
    linear,
    config.get("tie_word_embeddings", True),
  )
  return Bert(
    config.size("vocab_size"),
    rows - before,
    dim,
    config.size("num_attention_heads"),
    config.size("num_hidden_layers"),
    config.size("intermediate_size"),
    config.size("type_vocab_size", 2),
    activation,
    eps,
    from_the_first if bert else after_padding(pad),
    before,
    head,
    linear=linear,
    attention_fn=attention_fn,
    layer_norm=layer_norm,
  )


def is_bert(config: Config) -> bool:
  """Whether it is BERT itself, and none of those that began with RoBERTa."""
  return config.get("model_type", "bert") == "bert"


def load(folder: str | Path, dtype: str = "float32", **parts) -> Bert:
  """As models.config.loader's."""
  return loader(from_config, KEY_MAP if is_bert(Config.read(folder)) else ROBERTA)(
    folder, dtype, **parts
  )
