"""DeBERTa versions 2 and 3 (He et al. 2021 and 2023): BERT with disentangled attention.

Positions are relative only, and content and position stay separate. Attention scores add
content-to-position and position-to-content terms to the content-to-content term. DeBERTa differs
from GPT-2 as BERT does. Version 2 puts long distances into shared buckets. Version 3 changes the
pre-training only.
"""

import math
from collections.abc import Callable, Collection

from tinygrad import Tensor, nn

from layers.positions import distances, signed_bucket
from models.heads import HEAD_RULES, IGNORED_HEADS, IdentityHead, head_builder
from models.key_map import KeyMap
from tinyformer.checkpoints.config import ACTIVATIONS, Config, loader
from tinyformer.kernels.linear import embed, to_float32
from transformer import Block, FeedForward, Linear, attention, materialize, padding_mask

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
)


class RelativeEmbedding:
  """Embed the 2k relative positions, and index them by query and key (He et al. 2021, eq. 3).

  max_distance: distances of this size or more share a row.
  buckets: 0 gives each distance its own row, so k = max_distance. Otherwise k = buckets, and
    `signed_bucket` maps distances to buckets.
  norm: function that returns a norm for the vectors, or None.
  """

  def __init__(self, dim: int, max_distance: int, buckets: int = 0, norm: Callable | None = None):
    self.k = buckets or max_distance
    self.max_distance = max_distance
    self.buckets = buckets
    self.norm = norm() if norm else None
    self.table = nn.Embedding(2 * self.k, dim)

  def row(self, distance: int) -> int:
    """Return the table's row for a distance i - j between query i and key j."""
    if self.buckets:
      distance = signed_bucket(distance, self.buckets, self.max_distance)
    return min(max(distance + self.k, 0), 2 * self.k - 1)

  def __call__(self, T: int) -> tuple[Tensor, Tensor]:
    """Return the vectors (2k, D) and delta (T, T), the row of i - j for query i and key j."""
    weight = to_float32(self.table.weight)
    vectors = materialize(self.norm(weight) if self.norm else weight)
    rows = Tensor([self.row(distance) for distance in range(1 - T, T)])
    delta = rows[distances(T, T) + T - 1].contiguous()
    return vectors, delta


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
    linear: type[Linear] = Linear,
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
    self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None, cache: None = None
  ) -> Tensor:
    """Return the attention output (B, T, D) for x (B, T, D).

    rope: the vectors and delta that RelativeEmbedding returns for T.
    mask: additive; broadcasts to (B, H, T, T).
    cache: must be None, because an encoder has no KV cache.
    """

    def split_heads(x: Tensor) -> Tensor:
      return x.rearrange("b t (h k) -> b h t k", k=self.head_dim)

    q = split_heads(self.q(x))
    k = split_heads(self.k(x))
    v = split_heads(self.v(x))
    vectors = rope[0].unsqueeze(0)
    delta = rope[1].expand(*q.shape[:3], q.shape[2])
    position_scores = []
    if self.pos_k:
      pos_k = split_heads(self.pos_k(vectors))
      c2p = materialize(q @ pos_k.transpose(-2, -1))
      position_scores.append(c2p.gather(-1, delta))
    if self.pos_q:
      pos_q = split_heads(self.pos_q(vectors))
      p2c = materialize(k @ pos_q.transpose(-2, -1))
      position_scores.append(p2c.gather(-1, delta.transpose(-2, -1)).transpose(-2, -1))
    terms = 1 + len(position_scores)
    total = sum(position_scores[1:], position_scores[0])
    bias = total / math.sqrt(self.head_dim * terms)
    bias = bias if mask is None else bias + mask
    # attention_fn itself divides by sqrt(head_dim).
    heads = self.attention_fn(q / math.sqrt(terms), k, v, bias)
    return self.out(heads.rearrange("b h t k -> b t (h k)"))


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
    return materialize(self.norm(x + self.activation(convolved)))


class Deberta:
  """Compute a vector for each token, and the output of a head (models/heads.py).

  attn, norm: functions that return a block's attention and a norm.
  head: function from the token embeddings to the head.
  convolution: None if the model has none.
  """

  def __init__(  # noqa: PLR0913
    self,
    vocab_size: int,
    context: int,
    dim: int,
    num_layers: int,
    ff_dim: int,
    attn: Callable,
    norm: Callable,
    relative: RelativeEmbedding,
    convolution: Convolution | None = None,
    activation: Callable = ACTIVATIONS["gelu"],
    head: Callable = lambda tokens: IdentityHead(),
    linear: type[Linear] = Linear,
  ):
    self.vocab_size = vocab_size
    self.context = context
    self.tokens = nn.Embedding(vocab_size, dim)
    self.norm = norm()
    self.relative = relative
    self.blocks = [
      Block(attn(), FeedForward(dim, ff_dim, activation, linear), norm) for _ in range(num_layers)
    ]
    self.convolution = convolution
    self.head = head(self.tokens)
    self.task = self.head.task
    self.labels = self.head.labels

  def last_hidden_state(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the output (B, T, D) of the last block for ids (B, T).

    attention_mask (B, T): 1 for a token, 0 for padding.
    segments: ignored, because these models have no segment embeddings.
    """
    embedded = self.norm(embed(self.tokens, ids))
    mask = None
    if attention_mask is not None:
      embedded = attention_mask.bool().unsqueeze(-1).where(embedded, 0)
      mask = padding_mask(attention_mask)
    embedded = materialize(embedded)
    relative = self.relative(int(ids.shape[1]))
    x = embedded
    for i, block in enumerate(self.blocks):
      x = block(x, mask=mask, rope=relative)
      if i == 0 and self.convolution:
        x = self.convolution(embedded, x)
    return materialize(x)

  def __call__(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the head's output for ids (B, T); its shape is documented in the head's class.

    attention_mask and segments: as in `last_hidden_state`.
    """
    return self.head(self.last_hidden_state(ids, attention_mask, segments))


def attention_terms(config: Config) -> Collection[str]:
  """Return the position terms of the attention scores. Raises ValueError if one is unknown."""
  value = config["pos_att_type"]
  terms = value.replace(" ", "").split("|") if isinstance(value, str) else value
  if not terms or set(terms) - {"c2p", "p2c"}:
    raise ValueError(f"{config.source}: pos_att_type {value!r} is not supported; use c2p|p2c")
  return terms


def from_config(
  config: Config,
  linear: type[Linear] = Linear,
  attention_fn: Callable = attention,
  layer_norm: Callable = nn.LayerNorm,
) -> Deberta:
  """Return an untrained model with the sizes and the head given in config.json.

  Raises ValueError if the configuration is not supported.
  """
  defaults = {"relative_attention": False, "position_biased_input": True, "pos_att_type": ""}
  config = Config(defaults | config, config.source)
  dim = config.size("hidden_size")
  heads = config.size("num_attention_heads")
  context = config.size("max_position_embeddings", 512)
  config.only(
    relative_attention=True,
    position_biased_input=False,
    type_vocab_size=0,
    embedding_size=dim,
    pooler_hidden_size=dim,
    attention_head_size=dim // heads,
  )
  terms = attention_terms(config)
  share_att_key = config.get("share_att_key", False)

  def norm():
    return layer_norm(dim, config.get("layer_norm_eps", 1e-7))

  def attn() -> DisentangledAttention:
    return DisentangledAttention(
      dim, heads, terms, share_att_key, linear=linear, attention_fn=attention_fn
    )

  def size_or_zero(key: str) -> int:
    """Return a size, or 0 if config.json says -1 or null."""
    return max(0, config.get(key) or 0)

  relative = RelativeEmbedding(
    dim,
    max_distance=size_or_zero("max_relative_positions") or context,
    buckets=size_or_zero("position_buckets"),
    norm=norm if "layer_norm" in config.get("norm_rel_ebd", "").lower() else None,
  )
  convolution = None
  if kernel_size := size_or_zero("conv_kernel_size"):
    groups = config.size("conv_groups", 1)
    activation = config.activation("conv_act", "tanh")
    convolution = Convolution(dim, kernel_size, groups, activation, norm=norm)
  head = head_builder(
    config,
    norm=norm,
    lm_activation=config.activation("hidden_act", "gelu"),
    pooler_activation=config.activation("pooler_hidden_act", "gelu"),
    linear=linear,
    # The head of `legacy: false` always multiplies by the token embeddings.
    tied=config.get("tie_word_embeddings", True) or not config.get("legacy", True),
  )
  return Deberta(
    vocab_size=config.size("vocab_size"),
    context=context,
    dim=dim,
    num_layers=config.size("num_hidden_layers"),
    ff_dim=config.size("intermediate_size"),
    attn=attn,
    norm=norm,
    relative=relative,
    convolution=convolution,
    activation=config.activation("hidden_act", "gelu"),
    head=head,
    linear=linear,
  )


load = loader(from_config, KEY_MAP)
