"""BERT (Devlin et al. 2019, sec. 3): unlike GPT-2, it has no causal mask, and segment embeddings.

Its norms follow the sublayers, and its GELU is the exact one. RoBERTa and CamemBERT are BERT with
another training procedure and tokenizer; their position ids begin after the padding id
(Liu et al. 2019; Martin et al. 2020).
"""

import functools
from collections.abc import Callable
from pathlib import Path

from tinygrad import Tensor, nn

from models.heads import HEAD_RULES, IGNORED_HEADS, IdentityHead, head_builder
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


def key_map(prefix: str, head_rules: dict[str, str]) -> KeyMap:
  """Return the key map of a checkpoint whose tensor names, except the head's, begin with prefix."""
  layer = rf"{prefix}.encoder.layer.\1."
  rules = {
    r"tokens": f"{prefix}.embeddings.word_embeddings",
    r"positions": f"{prefix}.embeddings.position_embeddings",
    r"segments": f"{prefix}.embeddings.token_type_embeddings",
    r"norm": f"{prefix}.embeddings.LayerNorm",
    r"blocks\.(\d+)\.attn\.q": layer + "attention.self.query",
    r"blocks\.(\d+)\.attn\.k": layer + "attention.self.key",
    r"blocks\.(\d+)\.attn\.v": layer + "attention.self.value",
    r"blocks\.(\d+)\.attn\.out": layer + "attention.output.dense",
    r"blocks\.(\d+)\.attn_norm": layer + "attention.output.LayerNorm",
    r"blocks\.(\d+)\.ff_norm": layer + "output.LayerNorm",
    r"blocks\.(\d+)\.ff\.up": layer + "intermediate.dense",
    r"blocks\.(\d+)\.ff\.down": layer + "output.dense",
  }
  legacy = {
    # Checkpoints saved without a head lack the prefix.
    r"^(embeddings|encoder|pooler)\.": rf"{prefix}.\1.",
    # Checkpoints converted from TensorFlow use its names for the norm parameters.
    r"LayerNorm\.gamma$": "LayerNorm.weight",
    r"LayerNorm\.beta$": "LayerNorm.bias",
  }
  ignored = {
    rf"{prefix}\.embeddings\.(position|token_type)_ids": "constants; the model computes them",
  }
  return KeyMap(rules | head_rules, legacy=legacy, ignored=ignored | IGNORED_HEADS)


KEY_MAP = key_map("bert", HEAD_RULES | {r"head\.pooler": "bert.pooler.dense"})
ROBERTA_KEY_MAP = key_map(
  "roberta",
  {
    r"head\.dense": "lm_head.dense",
    r"head\.norm": "lm_head.layer_norm",
    r"head\.bias": "lm_head.bias",
    r"head\.decoder": "lm_head.decoder",
    r"head\.pooler": "classifier.dense",
    r"head\.classifier": "classifier.out_proj",
    r"head\.token_classifier": "classifier",
    r"head\.qa_outputs": "qa_outputs",
  },
)


def bert_position_ids(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
  """Return position ids (T), or (B, T) if there is a mask: the first unmasked token has 0."""
  if attention_mask is None:
    return Tensor.arange(ids.shape[1])
  return (attention_mask.int().cumsum(1) - 1).maximum(0)


def roberta_position_ids(padding_id: int) -> Callable[[Tensor, Tensor | None], Tensor]:
  """Return a function from (ids, attention_mask) to RoBERTa's position ids (B, T).

  Tokens other than `padding_id` are numbered from padding_id + 1. Padding tokens have position
  `padding_id` wherever they occur. The attention mask is ignored.
  """

  def position_ids(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    is_token = (ids != padding_id).int()
    return is_token.cumsum(1) * is_token + padding_id

  return position_ids


class Bert:
  """Compute a vector for each token, and the output of a head (models/heads.py).

  position_ids: function from (ids, attention_mask) to rows of the position table.
  position_offset: number of rows of that table before the row of the first token.
  head: function from the token embeddings to the head.
  Matrices are initialized from N(0, 0.02) and biases to zero.
  """

  def __init__(  # noqa: PLR0913
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
    position_ids: Callable = bert_position_ids,
    position_offset: int = 0,
    head: Callable = lambda tokens: IdentityHead(),
    dropout: float = 0.0,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
    layer_norm: Callable = nn.LayerNorm,
  ):
    self.vocab_size = vocab_size
    self.context = context
    self.position_ids = position_ids
    self.dropout = dropout
    self.tokens = nn.Embedding(vocab_size, dim)
    self.positions = nn.Embedding(position_offset + context, dim)
    self.segments = nn.Embedding(segments, dim)
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
    self.task = self.head.task
    self.labels = self.head.labels
    for parameter in nn.state.get_parameters(self):
      if parameter.ndim == 2:
        parameter.replace(Tensor.normal(*parameter.shape, std=0.02))

  def last_hidden_state(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the output (B, T, D) of the last block for ids (B, T).

    attention_mask (B, T): 1 for a token, 0 for padding. No token attends to padding.
    segments (B, T): 0 for the first sentence, 1 for the second; None means all 0.
    Raises ValueError if the text is longer than the context.
    """
    if ids.shape[1] > self.context:
      raise ValueError(
        f"{ids.shape[1]} tokens are more than the context of {self.context}: shorten the text"
      )
    if segments is None:
      # Not `ids * 0`: tinygrad folds that into a constant and then omits the table's gradient.
      segments = (ids < 0).int()
    x = embed(self.tokens, ids)
    x = x + embed(self.positions, self.position_ids(ids, attention_mask))
    x = x + embed(self.segments, segments)
    x = materialize(self.norm(x).dropout(self.dropout))
    mask = None if attention_mask is None else padding_mask(attention_mask)
    for block in self.blocks:
      x = block(x, mask=mask)
    return materialize(x)

  def __call__(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the head's output for ids (B, T); its shape is documented in the head's class.

    attention_mask and segments: as in `last_hidden_state`.
    """
    return self.head(self.last_hidden_state(ids, attention_mask, segments))


def from_config(
  config: Config,
  linear: type[Linear] = Linear,
  attention_fn: Callable = attention,
  layer_norm: Callable = nn.LayerNorm,
) -> Bert:
  """Return an untrained model with the sizes and the head given in config.json.

  Raises ValueError if the configuration is not supported.
  """
  config.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
  bert = is_bert(config)
  dim = config.size("hidden_size")
  eps = config.get("layer_norm_eps", 1e-12)
  activation = config.activation("hidden_act", "gelu")
  padding_id = config.get("pad_token_id", 1)
  position_offset = 0 if bert else padding_id + 1
  head = head_builder(
    config,
    norm=lambda: layer_norm(dim, eps),
    lm_activation=activation if bert else ACTIVATIONS["gelu"],
    pooler_activation=Tensor.tanh,
    linear=linear,
    tied=config.get("tie_word_embeddings", True),
  )
  return Bert(
    vocab_size=config.size("vocab_size"),
    context=config.size("max_position_embeddings") - position_offset,
    dim=dim,
    heads=config.size("num_attention_heads"),
    num_layers=config.size("num_hidden_layers"),
    ff_dim=config.size("intermediate_size"),
    segments=config.size("type_vocab_size", 2),
    activation=activation,
    eps=eps,
    position_ids=bert_position_ids if bert else roberta_position_ids(padding_id),
    position_offset=position_offset,
    head=head,
    linear=linear,
    attention_fn=attention_fn,
    layer_norm=layer_norm,
  )


def is_bert(config: Config) -> bool:
  """Return whether the model is BERT itself, not RoBERTa or one of its descendants."""
  return config.get("model_type", "bert") == "bert"


def load(folder: str | Path, dtype: str = "float32", **parts) -> Bert:
  """Load a checkpoint; see tinyformer.checkpoints.config.loader."""
  names = KEY_MAP if is_bert(Config.read(folder)) else ROBERTA_KEY_MAP
  return loader(from_config, names)(folder, dtype, **parts)
