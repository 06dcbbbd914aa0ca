"""DeBERTa is BERT with disentangled attention, which adds scores of relative positions.

Source: He et al. 2021 and 2023 (versions 2 and 3). Content and position stay separate: attention
scores add content-to-position and position-to-content terms to the content-to-content term.
Version 2 puts long distances into shared buckets. Version 3 changes the pre-training only.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from tinygrad import Tensor, nn

from layers.parts import PLAIN, Parts
from layers.positions import distances, signed_bucket
from models.heads import HEAD_RULES, IGNORED_HEADS, NO_HEAD, HeadConfig, head_from_hf, make_head
from models.hf_config import HFConfig
from models.key_map import KeyMap, tied_decoder
from transformer import (
  Block,
  Embedding,
  FeedForward,
  Linear,
  attention,
  merge_heads,
  padding_mask,
  split_heads,
)


@dataclass(frozen=True)
class DebertaConfig:
  """The sizes and settings of a DeBERTa.

  terms: the position terms of the attention scores, "c2p", "p2c" or both.
  share_att_key: use the content's key and query projections for the positions too.
  max_distance, buckets: as in RelativeEmbedding.
  normalize_relative: whether the embeddings of relative positions have a norm.
  conv_width: width of the convolution after the first block; 0 if there is none.
  head: see models/heads.py.
  """

  vocab_size: int
  context: int
  dim: int
  heads: int
  num_layers: int
  ff_dim: int
  activation: str = "gelu"
  eps: float = 1e-7
  terms: tuple[str, ...] = ("c2p", "p2c")
  share_att_key: bool = True
  max_distance: int = 512
  buckets: int = 0
  normalize_relative: bool = False
  conv_width: int = 0
  conv_groups: int = 1
  conv_activation: str = "tanh"
  head: HeadConfig = NO_HEAD


class RelativeEmbedding:
  """Embed the 2k relative positions, and index them by query and key (He et al. 2021, eq. 3).

  max_distance: distances of this size or more share a row.
  buckets: 0 gives each distance its own row, so k = max_distance. Otherwise k = buckets, and
    `signed_bucket` maps distances to buckets.
  norm: function that returns a norm for the vectors, or None.
  """

  def __init__(
    self,
    dim: int,
    max_distance: int,
    buckets: int = 0,
    norm: Callable | None = None,
    embedding: Callable = Embedding,
  ):
    self.k = buckets or max_distance
    self.max_distance = max_distance
    self.buckets = buckets
    self.norm = norm() if norm else None
    self.table = embedding(2 * self.k, dim)

  def row(self, distance: int) -> int:
    """Return the table's row for a distance i - j between query i and key j."""
    if self.buckets:
      distance = signed_bucket(distance, self.buckets, self.max_distance)
    return min(max(distance + self.k, 0), 2 * self.k - 1)

  def __call__(self, T: int) -> tuple[Tensor, Tensor]:
    """Return the vectors (2k, D) and delta (T, T), the row of i - j for query i and key j."""
    vectors = self.table(Tensor.arange(2 * self.k))
    if self.norm:
      vectors = self.norm(vectors)
    rows = Tensor([self.row(distance) for distance in range(1 - T, T)])
    return vectors, rows[distances(T, T) + T - 1]


class DisentangledAttention:
  """Attend by the sum of up to three scores (He et al. 2021, sec. 3.1).

  The scores are content-to-content, content-to-position (c2p) and position-to-content (p2c).
  terms: "c2p", "p2c" or both.
  share_att_key: use the content's key and query projections for the positions too.
  As in Microsoft's code, p2c uses the row of i - j; the paper's equation 4 has j - i.
  """

  def __init__(
    self,
    dim: int,
    heads: int,
    terms: Collection[str] = ("c2p", "p2c"),
    share_att_key: bool = True,
    linear: Callable = Linear,
    attention_fn: Callable = attention,
  ):
    if dim % heads:
      raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
    self.head_dim = dim // heads
    self.attention_fn = attention_fn
    self.q, self.k, self.v, self.out = (linear(dim, dim) for _ in range(4))

    def position_projection(term: str, content_projection: Callable) -> Callable | None:
      if term not in terms:
        return None
      if share_att_key:
        # The lambda hides the shared weights, which otherwise would be listed twice.
        return lambda x: content_projection(x)
      return linear(dim, dim)

    self.pos_k = position_projection("c2p", self.k)
    self.pos_q = position_projection("p2c", self.q)

  def __call__(
    self, x: Tensor, relative: tuple[Tensor, Tensor], mask: Tensor | None = None
  ) -> Tensor:
    """Return the attention output (B, T, D) for x (B, T, D).

    relative: the vectors and delta that RelativeEmbedding returns for T.
    mask: additive; broadcasts to (B, H, T, T).
    """
    split = partial(split_heads, head_dim=self.head_dim)
    q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
    vectors, delta = relative
    vectors = vectors.unsqueeze(0)
    delta = delta.expand(*q.shape[:3], q.shape[2])
    position_scores = []
    if self.pos_k:
      c2p = q @ split(self.pos_k(vectors)).transpose(-2, -1)
      position_scores.append(c2p.gather(-1, delta))
    if self.pos_q:
      p2c = k @ split(self.pos_q(vectors)).transpose(-2, -1)
      position_scores.append(p2c.gather(-1, delta.transpose(-2, -1)).transpose(-2, -1))
    terms = 1 + len(position_scores)
    total = sum(position_scores[1:], position_scores[0])
    bias = total / math.sqrt(self.head_dim * terms)
    bias = bias if mask is None else bias + mask
    # attention_fn itself divides by sqrt(head_dim).
    return self.out(merge_heads(self.attention_fn(q / math.sqrt(terms), k, v, bias)))


class Convolution:
  """Add a convolution over the token embeddings to the first block's output.

  Only the two largest models of version 2 have one.
  """

  def __init__(self, dim: int, size: int, groups: int, activation: Callable, norm: Callable):
    self.conv = nn.Conv1d(dim, dim, size, padding=(size - 1) // 2, groups=groups)
    self.norm = norm()
    self.activation = activation

  def __call__(self, embedded: Tensor, x: Tensor) -> Tensor:
    """Return (B, T, D) for the embeddings and the first block's output x, both (B, T, D).

    The embeddings of padding must be zero.
    """
    convolved = self.conv(embedded.transpose(1, 2)).transpose(1, 2)
    return self.norm(x + self.activation(convolved))


class Deberta:
  """Compute a vector for each token, and the output of a head (models/heads.py)."""

  def __init__(self, config: DebertaConfig, parts: Parts = PLAIN):
    c = config
    self.config = config
    self.vocab_size, self.context = c.vocab_size, c.context
    norm = partial(parts.layer_norm, c.dim, c.eps)
    activation = parts.activations[c.activation]

    def attn() -> DisentangledAttention:
      return DisentangledAttention(
        c.dim, c.heads, c.terms, c.share_att_key, parts.linear, parts.attention
      )

    self.tokens = parts.embedding(c.vocab_size, c.dim)
    self.norm = norm()
    relative_norm = norm if c.normalize_relative else None
    self.relative = RelativeEmbedding(
      c.dim, c.max_distance, c.buckets, norm=relative_norm, embedding=parts.embedding
    )
    self.blocks = [
      Block(attn(), FeedForward(c.dim, c.ff_dim, activation, parts.linear), norm)
      for _ in range(c.num_layers)
    ]
    self.convolution = None
    if c.conv_width:
      conv_activation = parts.activations[c.conv_activation]
      self.convolution = Convolution(c.dim, c.conv_width, c.conv_groups, conv_activation, norm=norm)
    self.head = make_head(c, self.tokens, norm, parts)
    self.task = self.head.task
    self.labels = self.head.labels

  def last_hidden_state(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the output (B, T, D) of the last block for ids (B, T).

    attention_mask (B, T): 1 for a token, 0 for padding.
    segments: ignored, because these models have no segment embeddings.
    """
    embedded = self.norm(self.tokens(ids))
    mask = None
    if attention_mask is not None:
      embedded = attention_mask.bool().unsqueeze(-1).where(embedded, 0)
      mask = padding_mask(attention_mask)
    relative = self.relative(int(ids.shape[1]))
    x = embedded
    for i, block in enumerate(self.blocks):
      x = block(x, mask=mask, relative=relative)
      if i == 0 and self.convolution:
        x = self.convolution(embedded, x)
    return x

  def __call__(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the head's output for ids (B, T); its shape is documented in the head's class.

    attention_mask and segments: as in `last_hidden_state`.
    """
    return self.head(self.last_hidden_state(ids, attention_mask, segments))


def attention_terms(hf: HFConfig) -> Collection[str]:
  """Return the position terms of the attention scores. Raises ValueError if one is unknown."""
  if isinstance(hf.values.get("pos_att_type"), str):
    terms = hf.text("pos_att_type").replace(" ", "").split("|")
  else:
    terms = hf.texts("pos_att_type")
  if not terms or set(terms) - {"c2p", "p2c"}:
    raise hf.error("pos_att_type", "be c2p, p2c or c2p|p2c")
  return terms


def from_hf(hf: HFConfig) -> DebertaConfig:
  """Translate a config.json. Raises ValueError if the configuration is not supported."""
  defaults = {"relative_attention": False, "position_biased_input": True}
  hf = HFConfig(defaults | hf.values, hf.source)
  dim = hf.size("hidden_size")
  heads = hf.size("num_attention_heads", divides=dim)
  context = hf.size("max_position_embeddings", 512)
  hf.only(
    relative_attention=True,
    position_biased_input=False,
    type_vocab_size=0,
    embedding_size=dim,
    pooler_hidden_size=dim,
    attention_head_size=dim // heads,
  )

  def size_or_zero(key: str) -> int:
    """Return a size, or 0 if config.json says -1 or null."""
    return max(0, hf.integer(key, 0, -1))

  activation = hf.activation("hidden_act", "gelu")
  pooler_activation = hf.activation("pooler_hidden_act", "gelu")
  # The head of `legacy: false` always multiplies by the token embeddings.
  tied = hf.flag("tie_word_embeddings", True) or not hf.flag("legacy", True)
  max_distance = size_or_zero("max_relative_positions") or context
  buckets = size_or_zero("position_buckets")
  if buckets and not 2 <= buckets < 2 * (max_distance - 1):
    raise hf.error("position_buckets", f"be from 2 to {2 * max_distance - 3}, or -1")
  conv_width = size_or_zero("conv_kernel_size")
  if conv_width and conv_width % 2 == 0:
    raise hf.error("conv_kernel_size", "be odd, so that the convolution keeps the length")
  return DebertaConfig(
    vocab_size=hf.size("vocab_size"),
    context=context,
    dim=dim,
    heads=heads,
    num_layers=hf.size("num_hidden_layers"),
    ff_dim=hf.size("intermediate_size"),
    activation=activation,
    eps=hf.epsilon("layer_norm_eps", 1e-7),
    terms=tuple(attention_terms(hf)),
    share_att_key=hf.flag("share_att_key", False),
    max_distance=max_distance,
    buckets=buckets,
    normalize_relative="layer_norm" in hf.text("norm_rel_ebd", "").lower(),
    conv_width=conv_width,
    conv_groups=hf.size("conv_groups", 1, divides=dim),
    conv_activation=hf.activation("conv_act", "tanh"),
    head=head_from_hf(hf, activation, pooler_activation, tied),
  )


# BERT's names with another prefix. The table of relative positions belongs to the encoder.
BLOCK = r"blocks\.(\d+)\."
LAYER = r"deberta.encoder.layer.\1."
KEY_MAP = KeyMap(
  rules={
    r"tokens": "deberta.embeddings.word_embeddings",
    r"norm": "deberta.embeddings.LayerNorm",
    r"relative\.table": "deberta.encoder.rel_embeddings",
    r"relative\.norm": "deberta.encoder.LayerNorm",
    r"convolution\.norm": "deberta.encoder.conv.LayerNorm",
    r"convolution\.conv": "deberta.encoder.conv.conv",
    r"head\.pooler": "pooler.dense",
    BLOCK + r"attn\.pos_q": LAYER + "attention.self.pos_query_proj",
    BLOCK + r"attn\.pos_k": LAYER + "attention.self.pos_key_proj",
    BLOCK + r"attn\.q": LAYER + "attention.self.query_proj",
    BLOCK + r"attn\.k": LAYER + "attention.self.key_proj",
    BLOCK + r"attn\.v": LAYER + "attention.self.value_proj",
    BLOCK + r"attn\.out": LAYER + "attention.output.dense",
    BLOCK + r"attn_norm": LAYER + "attention.output.LayerNorm",
    BLOCK + r"ff_norm": LAYER + "output.LayerNorm",
    BLOCK + r"ff\.up": LAYER + "intermediate.dense",
    BLOCK + r"ff\.down": LAYER + "output.dense",
  }
  | HEAD_RULES,
  legacy={
    r"^(embeddings|encoder)\.": r"deberta.\1.",
    r"^lm_predictions\.lm_head\.(dense|LayerNorm)": r"cls.predictions.transform.\1",
    r"^lm_predictions\.lm_head\.": "cls.predictions.",
  },
  ignored={
    r"deberta\.embeddings\.position_": "absolute positions, which the supported models do not add",
    r"mask_predictions\.": "a task that only pre-training uses",
  }
  | IGNORED_HEADS,
  tied=tied_decoder("deberta.embeddings.word_embeddings.weight", HEAD_RULES),
)
