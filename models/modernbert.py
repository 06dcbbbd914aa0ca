"""ModernBERT is BERT with RoPE, pre-norm, gated feed-forward networks, local layers and no biases.

Two of three layers are local: a token attends only to tokens near it, and RoPE has another theta.
Source: Warner et al. 2024, sec. 2.1. The head's first layer is the same for all tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinygrad import Tensor

from layers.attention import CachedAttention
from layers.feedforward import GatedFeedForward
from layers.norms import UnbiasedLayerNorm, pre_norm
from layers.parts import PLAIN, Parts
from layers.positions import check_context, local_mask, rope_cos_sin, rope_inv_freq
from models.encoder_decoder import identity
from models.heads import IGNORED_HEADS, NO_HEAD, HeadConfig, IdentityHead, head_from_hf, mean
from models.hf_config import HFConfig
from models.key_map import KeyMap
from models.llama import MAX_THETA
from transformer import Block, padding_mask


@dataclass(frozen=True)
class ModernBertConfig:
  """The sizes and settings of a ModernBERT.

  global_interval: layers 0, n, 2n, ... are global, for this n. All others are local.
  distance: the largest distance between a token and those it attends to in a local layer.
  global_theta, local_theta: RoPE's theta in the two kinds of layers.
  head: see models/heads.py.  mean_pooling: whether a text is classified by the mean of its tokens'
  vectors, instead of by that of the first token.
  """

  vocab_size: int
  context: int
  dim: int
  heads: int
  num_layers: int
  ff_dim: int
  global_interval: int = 3
  distance: int = 64
  global_theta: float = 160_000.0
  local_theta: float = 10_000.0
  activation: str = "gelu"
  eps: float = 1e-5
  head: HeadConfig = NO_HEAD
  mean_pooling: bool = False


class ModernBertHead:
  """A linear layer, an activation and a norm, followed by the output layer of a task.

  tokens: the token embeddings, whose matrix the output layer of masked language modelling shares.
  """

  def __init__(self, config: ModernBertConfig, tokens, norm: Callable, parts: Parts):
    head = config.head
    self.task, self.labels, self.problem = head.task, list(head.labels), head.problem
    self.mean_pooling = config.mean_pooling
    self.dense = parts.linear(config.dim, config.dim, bias=False)
    self.activation = parts.activations[head.activation]
    self.norm = norm()
    self.decoder: Callable | None = None
    self.classifier: Callable | None = None
    if self.task == "fill-mask" and head.tied:
      self.bias = Tensor.zeros(config.vocab_size)
      self.decoder = lambda x: tokens.as_linear(x) + self.bias
    elif self.task == "fill-mask":
      self.decoder = parts.linear(config.dim, config.vocab_size)
    else:
      is_qa = self.task == "question-answering"
      self.classifier = parts.linear(config.dim, 2 if is_qa else len(self.labels))

  def __call__(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return logits (B, T, outputs) for x (B, T, D), or (B, outputs) for text classification.

    attention_mask (B, T): 1 for a token, 0 for padding, which must follow the tokens.
    """
    if self.task == "text-classification":
      x = mean(x, attention_mask) if self.mean_pooling else x[:, 0]
    output_layer = self.decoder or self.classifier
    assert output_layer is not None
    return output_layer(self.norm(self.activation(self.dense(x))))


class ModernBert:
  """Compute a vector for each token, and the output of a head."""

  def __init__(self, config: ModernBertConfig, parts: Parts = PLAIN):
    c = config
    self.config, self.parts = config, parts
    self.vocab_size, self.context = c.vocab_size, c.context
    linear = partial(parts.linear, bias=False)

    def norm() -> Callable:
      return UnbiasedLayerNorm(c.dim, c.eps)

    self.tokens = parts.embedding(c.vocab_size, c.dim)
    self.embed_norm = norm()
    self.blocks = [
      Block(
        CachedAttention(c.dim, c.heads, linear, parts.attention),
        GatedFeedForward(c.dim, c.ff_dim, parts.activations[c.activation], linear),
        norm,
        pre_norm,
      )
      for _ in range(c.num_layers)
    ]
    # The input of the first block has just been normalized.
    self.blocks[0].attn_norm = identity
    self.norm = norm()
    is_bare = c.head.task == "feature-extraction"
    self.head: Any = IdentityHead() if is_bare else ModernBertHead(c, self.tokens, norm, parts)
    self.task, self.labels = self.head.task, self.head.labels

  def attention_inputs(
    self, T, theta: float, distance: int | None, attention_mask: Tensor | None
  ) -> dict[str, Any]:
    """Return the arguments of a layer's attention besides x: mask and rope.

    distance: as in the config for a local layer, None for a global one.
    """
    c = self.config
    cos, sin = rope_cos_sin(Tensor.arange(T), rope_inv_freq(c.dim // c.heads, theta))
    mask = None if attention_mask is None else padding_mask(attention_mask)
    # A short text has no distant tokens.
    if distance is not None and distance + 1 < T:
      local = local_mask(T, T, distance)
      mask = local if mask is None else mask + local
    return {"mask": mask, "rope": partial(self.parts.rope, cos=cos, sin=sin)}

  def last_hidden_state(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the norm of the last block's output (B, T, D) for ids (B, T).

    attention_mask (B, T): 1 for a token, 0 for padding. No token attends to padding.
    segments: ignored.
    Raises ValueError if the text is longer than the context.
    """
    c = self.config
    T = ids.shape[1]
    check_context(T, self.context)
    global_inputs = self.attention_inputs(T, c.global_theta, None, attention_mask)
    local_inputs = self.attention_inputs(T, c.local_theta, c.distance, attention_mask)
    x = self.embed_norm(self.tokens(ids))
    for i, block in enumerate(self.blocks):
      x = block(x, **(local_inputs if i % c.global_interval else global_inputs))
    return self.norm(x)

  def __call__(
    self, ids: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None
  ) -> Tensor:
    """Return the head's output for ids (B, T). attention_mask: as in `last_hidden_state`."""
    x = self.last_hidden_state(ids, attention_mask)
    return self.head(x) if self.task == "feature-extraction" else self.head(x, attention_mask)


def from_hf(hf: HFConfig) -> ModernBertConfig:
  """Translate a config.json. Raises ValueError if the configuration is not supported."""
  hf.only(
    attention_bias=False,
    mlp_bias=False,
    norm_bias=False,
    classifier_bias=False,
    decoder_bias=True,
    rope_scaling=None,
  )
  dim = hf.size("hidden_size", 768)
  heads = hf.size("num_attention_heads", 12, divides=dim)
  if dim // heads % 2:
    raise hf.error("num_attention_heads", f"divide {dim} into heads of even width, for RoPE", heads)
  num_layers = hf.size("num_hidden_layers", 22)
  activation = hf.activation("classifier_activation", "gelu")
  pooling = hf.choice("classifier_pooling", ("cls", "mean"), "cls")
  return ModernBertConfig(
    vocab_size=hf.size("vocab_size", 50368),
    context=hf.size("max_position_embeddings", 8192),
    dim=dim,
    heads=heads,
    num_layers=num_layers,
    ff_dim=hf.size("intermediate_size", 1152),
    global_interval=global_interval(hf, num_layers),
    distance=hf.size("local_attention", 128) // 2,
    global_theta=theta(hf, "full_attention", "global_rope_theta", 160_000.0),
    local_theta=theta(hf, "sliding_attention", "local_rope_theta", 10_000.0),
    activation=hf.activation("hidden_activation", "gelu"),
    eps=hf.epsilon("norm_eps", 1e-5),
    head=head_from_hf(hf, activation, activation, hf.flag("tie_word_embeddings", True)),
    mean_pooling=pooling == "mean",
  )


def theta(hf: HFConfig, layer_type: str, old_name: str, default: float) -> float:
  """Return RoPE's theta in one type of layers. transformers before version 5 writes old_name."""
  rope = hf.section("rope_parameters").section(layer_type)
  rope.only(rope_type="default", partial_rotary_factor=1)
  return rope.number("rope_theta", hf.number(old_name, default, 1, MAX_THETA), 1, MAX_THETA)


def global_interval(hf: HFConfig, num_layers: int) -> int:
  """Return n if layers 0, n, 2n, ... are global. Raises ValueError if there is no such n.

  transformers 5 writes a list of layer types, older versions write n.
  """
  types = hf.texts("layer_types")
  if not types:
    return hf.size("global_attn_every_n_layers", 3)
  is_global = [layer_type == "full_attention" for layer_type in types]
  n = is_global.index(True, 1) if True in is_global[1:] else len(types)
  expected = ["sliding_attention" if i % n else "full_attention" for i in range(len(types))]
  if types != expected or len(types) != num_layers:
    raise hf.error("layer_types", "have full_attention at regular intervals, from the first layer")
  return n


LAYER = r"model.layers.\1."
KEY_MAP = KeyMap(
  rules={
    r"tokens": "model.embeddings.tok_embeddings",
    r"embed_norm": "model.embeddings.norm",
    r"blocks\.(\d+)\.attn_norm": LAYER + "attn_norm",
    r"blocks\.(\d+)\.attn\.[qkv]\.": LAYER + "attn.Wqkv.",
    r"blocks\.(\d+)\.attn\.out": LAYER + "attn.Wo",
    r"blocks\.(\d+)\.ff_norm": LAYER + "mlp_norm",
    r"blocks\.(\d+)\.ff\.(gate|up)\.": LAYER + "mlp.Wi.",
    r"blocks\.(\d+)\.ff\.down": LAYER + "mlp.Wo",
    r"norm": "model.final_norm",
    r"head\.(dense|norm)": r"head.\1",
    r"head\.bias": "decoder.bias",
    r"head\.(decoder|classifier)": r"\1",
  },
  # Checkpoints saved without a head lack the prefix.
  legacy={r"^(embeddings|layers|final_norm)\.": r"model.\1."},
  ignored={
    r"decoder\.weight": "tied decoder: a copy of the embeddings",
    r"(head|decoder)\.": "a head for another task than the one named in config.json",
  }
  | IGNORED_HEADS,
  tied={"decoder.weight": ("model.embeddings.tok_embeddings.weight", "decoder.bias")},
)
