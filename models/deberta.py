"""DeBERTa is BERT whose positions are only relative, and stay apart from the content: queries and keys have scores for each other's distance (He et al. 2021).

It differs from GPT-2 as BERT does. Version 2 puts far distances in common buckets and version 3 is trained another way (He et al. 2023).
"""

import math
from collections.abc import Callable, Collection

from tinygrad import Tensor, nn

from layers.positions import distances, signed_bucket
from models.heads import KEY_MAP as HEADS
from models.heads import LEFT, Vectors, for_config
from models.key_map import KeyMap
from tinyformer.checkpoints.config import ACTIVATIONS, Config, loader
from tinyformer.kernels.linear import embed, to_float32
from transformer import Block, FeedForward, Linear, attention, materialize, padding_mask

LAYER, OUR = r"deberta.encoder.layer.\1.", r"blocks\.(\d+)\."
KEY_MAP = KeyMap(
  rules={
    r"tokens": "deberta.embeddings.word_embeddings",
    r"norm": "deberta.embeddings.LayerNorm",
    r"relative\.table": "deberta.encoder.rel_embeddings",
    r"relative\.norm": "deberta.encoder.LayerNorm",
    r"convolution\.norm": "deberta.encoder.conv.LayerNorm",
    r"convolution\.conv": "deberta.encoder.conv.conv",
    r"head\.pool": "pooler.dense",
    OUR + r"attn\.place_q": LAYER + "attention.self.pos_query_proj",
    OUR + r"attn\.place_k": LAYER + "attention.self.pos_key_proj",
    OUR + r"attn\.q": LAYER + "attention.self.query_proj",
    OUR + r"attn\.k": LAYER + "attention.self.key_proj",
    OUR + r"attn\.v": LAYER + "attention.self.value_proj",
    OUR + r"attn\.out": LAYER + "attention.output.dense",
    OUR + r"attn_norm": LAYER + "attention.output.LayerNorm",
    OUR + r"ff_norm": LAYER + "output.LayerNorm",
    OUR + r"ff\.up": LAYER + "intermediate.dense",
    OUR + r"ff\.down": LAYER + "output.dense",
  }
  | HEADS,
  legacy={
    r"^(embeddings|encoder)\.": r"deberta.\1.",
    r"^lm_predictions\.lm_head\.(dense|LayerNorm)": r"cls.predictions.transform.\1",
    r"^lm_predictions\.lm_head\.": "cls.predictions.",
  },
  ignored={
    r"deberta\.embeddings\.position_": "absolute places, added by none of these",
    r"mask_predictions\.": "a task of pre-training alone",
  }
  | LEFT,
)


class Relative:
  """The vectors of the 2k relative positions, and which of them a query and a key have (He et al. 2021, eq. 3).

  buckets: k, shared by distances up to `most` (signed_bucket); 0: k is `most`, each distance has its own.  norm: makes one of the vectors, or None.
  """

  def __init__(self, dim: int, most: int, buckets: int = 0, norm: Callable | None = None):
    self.k, self.most, self.buckets, self.norm = (
      buckets or most,
      most,
      buckets,
      norm() if norm else None,
    )
    self.table = nn.Embedding(2 * self.k, dim)

  def __call__(self, T: int) -> tuple[Tensor, Tensor]:
    """The vectors (2k, D), and delta (T, T): for query i and key j, the row of i - j."""
    row = [
      min(
        max(self.k + (signed_bucket(d, self.buckets, self.most) if self.buckets else d), 0),
        2 * self.k - 1,
      )
      for d in range(1 - T, T)
    ]
    vectors = to_float32(self.table.weight)
    return materialize(self.norm(vectors) if self.norm else vectors), Tensor(row)[
      distances(T, T) + T - 1
    ].contiguous()


class DisentangledAttention:
  """Contents attend to contents, contents to positions (c2p) and positions to contents (p2c), by the sum of three scores (He et al. 2021, sec. 3.1).

  terms: "c2p", "p2c" or both.  shared: the positions' keys and queries are made by what makes the contents'.
  The score of p2c is of the row of i - j too, as in Microsoft's code; the paper's equation 4 has j - i.
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
    self.head_dim, self.attention_fn = dim // heads, attention_fn
    self.q, self.k, self.v, self.out = (linear(dim, dim) for _ in range(4))

    def place(term: str, content: Callable) -> Callable | None:
      return (
        None if term not in terms else (lambda x: content(x)) if share_att_key else linear(dim, dim)
      )

    self.place_k, self.place_q = place("c2p", self.k), place("p2c", self.q)

  def __call__(
    self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None, cache: None = None
  ) -> Tensor:
    """x (B, T, D) -> (B, T, D). turn: what Relative gives for T.  mask: broadcasts to (B, H, T, T).  There is no cache."""

    def split(x: Tensor) -> Tensor:
      return x.rearrange("b t (h k) -> b h t k", k=self.head_dim)

    q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
    vectors, delta = rope[0].unsqueeze(0), rope[1].expand(*q.shape[:3], q.shape[2])
    scores = []
    if self.place_k:
      scores.append(
        materialize(q @ split(self.place_k(vectors)).transpose(-2, -1)).gather(-1, delta)
      )
    if self.place_q:
      scores.append(
        materialize(k @ split(self.place_q(vectors)).transpose(-2, -1))
        .gather(-1, delta.transpose(-2, -1))
        .transpose(-2, -1)
      )
    terms = 1 + len(scores)
    bias = sum(scores[1:], scores[0]) / math.sqrt(self.head_dim * terms)
    return self.out(
      self.attention_fn(
        q / math.sqrt(terms), k, v, bias if mask is None else bias + mask
      ).rearrange("b h t k -> b t (h k)")
    )


class Convolution:
  """Beside the first block, what each token's neighbours say of its embedding (in version 2's two largest)."""

  def __init__(self, dim: int, size: int, groups: int, activation: Callable, norm: Callable):
    self.conv, self.norm, self.activation = (
      nn.Conv1d(dim, dim, size, padding=(size - 1) // 2, groups=groups),
      norm(),
      activation,
    )

  def __call__(self, embedded: Tensor, x: Tensor) -> Tensor:
    """The embeddings and the first block's output, (B, T, D) -> (B, T, D). Padding is zeros in `embedded`."""
    return materialize(
      self.norm(x + self.activation(self.conv(embedded.transpose(1, 2)).transpose(1, 2)))
    )


class Deberta:
  """Token ids to a vector for each of them, and to what the head says of these.

  attn, norm, head: make a block's attention, a norm, and of the token embeddings what reads the vectors.  convolution: None where a model has none.
  """

  def __init__(
    self,
    vocab_size: int,
    context: int,
    dim: int,
    num_layers: int,
    ff_dim: int,
    attn: Callable,
    norm: Callable,
    relative: Relative,
    convolution: Convolution | None = None,
    activation: Callable = ACTIVATIONS["gelu"],
    head: Callable = lambda tokens: Vectors(),
    linear: type[Linear] = Linear,
  ):
    self.vocab_size, self.context, self.tokens, self.norm, self.relative = (
      vocab_size,
      context,
      nn.Embedding(vocab_size, dim),
      norm(),
      relative,
    )
    self.blocks, self.convolution = (
      [
        Block(attn(), FeedForward(dim, ff_dim, activation, linear), norm) for _ in range(num_layers)
      ],
      convolution,
    )
    self.head = head(self.tokens)
    self.task, self.labels = self.head.task, self.head.labels

  def last_hidden_state(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """ids (B, T) -> (B, T, D), what the head reads. keep (B, T): false for padding.  segments: not read, these models know none."""
    x = self.norm(embed(self.tokens, ids))
    embedded = x = materialize(
      x if attention_mask is None else attention_mask.bool().unsqueeze(-1).where(x, 0)
    )
    mask, rope = (
      None if attention_mask is None else padding_mask(attention_mask),
      self.relative(int(ids.shape[1])),
    )
    for i, block in enumerate(self.blocks):
      x = block(x, mask=mask, rope=rope)
      if i == 0 and self.convolution:
        x = self.convolution(embedded, x)
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
) -> Deberta:
  """An untrained model of the sizes, and with the head, that a config.json states. Raises ValueError for what is not built here."""
  config = Config(
    {"relative_attention": False, "position_biased_input": True, "pos_att_type": ""} | config,
    config.source,
  )
  dim, heads, context = (
    config.size("hidden_size"),
    config.size("num_attention_heads"),
    config.size("max_position_embeddings", 512),
  )
  config.only(
    relative_attention=True,
    position_biased_input=False,
    type_vocab_size=0,
    embedding_size=dim,
    pooler_hidden_size=dim,
    attention_head_size=dim // heads,
  )
  terms = (
    config["pos_att_type"].replace(" ", "").split("|")
    if isinstance(config["pos_att_type"], str)
    else config["pos_att_type"]
  )
  if not terms or set(terms) - {"c2p", "p2c"}:
    raise ValueError(
      f"{config.source}: pos_att_type should be c2p, p2c or both, not {config['pos_att_type']!r}"
    )

  def norm():
    return layer_norm(dim, config.get("layer_norm_eps", 1e-7))

  most, buckets, kernel = (
    max(0, config.get(key) or 0)
    for key in ("max_relative_positions", "position_buckets", "conv_kernel_size")
  )  # -1: none
  return Deberta(
    config.size("vocab_size"),
    context,
    dim,
    config.size("num_hidden_layers"),
    config.size("intermediate_size"),
    lambda: DisentangledAttention(
      dim, heads, terms, config.get("share_att_key", False), linear, attention_fn
    ),
    norm,
    Relative(
      dim,
      most or context,
      buckets,
      norm if "layer_norm" in config.get("norm_rel_ebd", "").lower() else None,
    ),
    Convolution(
      dim, kernel, config.size("conv_groups", 1), config.activation("conv_act", "tanh"), norm
    )
    if kernel
    else None,
    config.activation("hidden_act", "gelu"),
    for_config(
      config,
      norm,
      config.activation("hidden_act", "gelu"),
      config.activation("pooler_hidden_act", "gelu"),
      linear,
      config.get("tie_word_embeddings", True) or not config.get("legacy", True),
    ),
    linear,
  )


load = loader(from_config, KEY_MAP)
