"""BERT is GPT-2 without the causal mask, with segment embeddings, post-norm and the exact GELU.

The embeddings are normalized too. Source: Devlin et al. 2019, sec. 3.
"""

from dataclasses import dataclass
from functools import partial

from tinygrad import Tensor, nn

from layers.parts import PLAIN, Parts
from layers.positions import check_context, token_positions
from models.heads import HEAD_RULES, IGNORED_HEADS, NO_HEAD, HeadConfig, head_from_hf, make_head
from models.hf_config import HFConfig
from models.key_map import KeyMap, tied_decoder
from transformer import Block, FeedForward, MultiHeadAttention, padding_mask, post_norm


@dataclass(frozen=True)
class BertConfig:
  """The sizes and settings of a BERT.

  segments: number of segment embeddings; None means that there are none.
  head: see models/heads.py.
  """

  vocab_size: int
  context: int
  dim: int
  heads: int
  num_layers: int
  ff_dim: int
  segments: int | None = 2
  activation: str = "gelu"
  eps: float = 1e-12
  dropout: float = 0.0
  head: HeadConfig = NO_HEAD


class Bert:
  """Compute a vector for each token, and the output of a head (models/heads.py).

  Matrices are initialized with standard deviation 0.02, biases to zero.
  """

  def __init__(self, config: BertConfig, parts: Parts = PLAIN):
    c = config
    self.config = config
    self.vocab_size, self.context = c.vocab_size, c.context

    def norm():
      return parts.layer_norm(c.dim, c.eps)

    self.tokens = parts.embedding(c.vocab_size, c.dim)
    self.positions = parts.embedding(self.first_position + c.context, c.dim)
    self.segments = parts.embedding(c.segments, c.dim) if c.segments else None
    self.norm = norm()
    self.blocks = [
      Block(
        MultiHeadAttention(c.dim, c.heads, parts.linear, attention_fn=parts.attention),
        FeedForward(c.dim, c.ff_dim, parts.activations[c.activation], parts.linear),
        norm,
        partial(post_norm, dropout=c.dropout),
      )
      for _ in range(c.num_layers)
    ]
    self.head = make_head(c, self.tokens, norm, parts)
    self.task = self.head.task
    self.labels = self.head.labels
    if parts.initialize:
      for parameter in nn.state.get_parameters(self):
        if parameter.ndim == 2:
          parameter.replace(Tensor.normal(*parameter.shape, std=0.02))

  @property
  def first_position(self) -> int:
    """Return the row of the position table that belongs to the first token."""
    return 0

  def position_ids(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return position ids (T), or (B, T) if there is a mask: the first unmasked token has 0."""
    if attention_mask is None:
      return Tensor.arange(ids.shape[1])
    return token_positions(attention_mask)

  def last_hidden_state(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the output (B, T, D) of the last block for ids (B, T).

    attention_mask (B, T): 1 for a token, 0 for padding. No token attends to padding.
    segments (B, T): 0 for the first sentence, 1 for the second; None means all 0. A model without
    segment embeddings ignores them.
    Raises ValueError if the text is longer than the context.
    """
    check_context(ids.shape[1], self.context)
    if segments is None:
      # Not `ids * 0`: tinygrad folds that into a constant and then omits the table's gradient.
      segments = (ids < 0).int()
    x = self.tokens(ids) + self.positions(self.position_ids(ids, attention_mask))
    if self.segments is not None:
      x = x + self.segments(segments)
    x = self.norm(x).dropout(self.config.dropout)
    mask = None if attention_mask is None else padding_mask(attention_mask)
    for block in self.blocks:
      x = block(x, mask=mask)
    return x

  def __call__(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the head's output for ids (B, T); its shape is documented in the head's class.

    attention_mask and segments: as in `last_hidden_state`.
    """
    return self.head(self.last_hidden_state(ids, attention_mask, segments))


def from_hf(hf: HFConfig) -> BertConfig:
  """Translate a config.json. Raises ValueError if the configuration is not supported."""
  hf.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
  activation = hf.activation("hidden_act", "gelu")
  dim = hf.size("hidden_size")
  tied = hf.flag("tie_word_embeddings", True)
  return BertConfig(
    vocab_size=hf.size("vocab_size"),
    context=hf.size("max_position_embeddings"),
    dim=dim,
    heads=hf.size("num_attention_heads", divides=dim),
    num_layers=hf.size("num_hidden_layers"),
    ff_dim=hf.size("intermediate_size"),
    segments=hf.size("type_vocab_size", 2),
    activation=activation,
    eps=hf.epsilon("layer_norm_eps", 1e-12),
    head=head_from_hf(hf, activation, "tanh", tied),
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
  tied = tied_decoder(f"{prefix}.embeddings.word_embeddings.weight", head_rules)
  return KeyMap(rules | head_rules, legacy=legacy, ignored=ignored | IGNORED_HEADS, tied=tied)


# The pooler, which classifies a text, has the prefix although it is part of our head.
KEY_MAP = key_map("bert", HEAD_RULES | {r"head\.pooler": "bert.pooler.dense"})
