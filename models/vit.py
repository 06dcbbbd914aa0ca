"""The Vision Transformer: BERT's encoder with norms before the sublayers, on patches of a picture in place of words (Dosovitskiy et al. 2021, sec. 3.1)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tinygrad import Tensor, nn

from models.heads import labels
from models.key_map import KeyMap
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import ACTIVATIONS, Config, loader, name_of
from transformer import (
  Block,
  FeedForward,
  Linear,
  MultiHeadAttention,
  attention,
  materialize,
  pre_norm,
)

KEY_MAP = KeyMap(
  rules={
    r"class_token": "vit.embeddings.cls_token",
    r"positions": "vit.embeddings.position_embeddings",
    r"norm": "vit.layernorm",
    r"head": "classifier",
    r"patches": "vit.embeddings.patch_embeddings.projection",
    r"blocks\.(\d+)\.attn_norm": r"vit.encoder.layer.\1.layernorm_before",
    r"blocks\.(\d+)\.ff_norm": r"vit.encoder.layer.\1.layernorm_after",
    r"blocks\.(\d+)\.attn\.q": r"vit.encoder.layer.\1.attention.attention.query",
    r"blocks\.(\d+)\.attn\.k": r"vit.encoder.layer.\1.attention.attention.key",
    r"blocks\.(\d+)\.attn\.v": r"vit.encoder.layer.\1.attention.attention.value",
    r"blocks\.(\d+)\.attn\.out": r"vit.encoder.layer.\1.attention.output.dense",
    r"blocks\.(\d+)\.ff\.up": r"vit.encoder.layer.\1.intermediate.dense",
    r"blocks\.(\d+)\.ff\.down": r"vit.encoder.layer.\1.output.dense",
  },
  legacy={
    r"^(?!vit\.|classifier)": "vit."
  },  # a checkpoint without a head is saved without the prefix
  ignored={
    r"vit\.pooler\.": "a tanh layer on the class row, which transformers' ViTModel has beside its hidden states: no classifier reads it"
  },
)


class Patches:
  """A picture cut into patches from the left to the right, row after row, each a linear map of its pixels: x_p E of equation 1.

  A patch's pixels are taken channel by channel, in each from the left to the right, row after row.
  """

  def __init__(
    self, channels: int, patch: tuple[int, int], dim: int, linear: type[Linear] = Linear
  ):
    self.weight, self.bias, self.product = (
      Tensor.glorot_uniform(dim, channels, *patch),
      Tensor.zeros(dim),
      linear.product,
    )

  def __call__(self, pixels: Tensor) -> Tensor:
    """(B, C, height, width) -> (B, N, D). What is left of a side that is no multiple of the patch's is not seen."""
    p, q = self.weight.shape[2:]
    rows, columns = pixels.shape[2] // p, pixels.shape[3] // q
    x = pixels[:, :, : rows * p, : columns * q].rearrange(
      "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q
    )
    return materialize(self.product(materialize(x), self.weight.flatten(1)) + self.bias)


def cubic(new: int, old: int) -> Tensor:
  """(new, old): how much of each of `old` points in a row is in each of `new` ones on the same length, by cubic convolution (Keys 1981, eq. 4).

  Points are the middles of equal cells; beyond the ends the last ones go on. Keys's a is -3/4, as torch has it.
  """
  a, points = -0.75, np.arange(-2, old + 2)
  d = np.abs((np.arange(new)[:, None] + 0.5) * old / new - 0.5 - points)
  weights = np.where(
    d <= 1,
    (a + 2) * d**3 - (a + 3) * d**2 + 1,
    np.where(d < 2, a * (d**3 - 5 * d**2 + 8 * d - 4), 0),
  )
  return Tensor((weights @ (points.clip(0, old - 1)[:, None] == np.arange(old))).astype(np.float32))


class ViT:
  """Pixels to logits for what the picture shows; the class is read from a token of its own, which stands before the patches.

  labels: names of the classes, none of a model without a head.  image, patch: height and width in pixels.
  Weights start as Linear's do, positions as N(0, 0.02), the class token and the head at zero.
  """

  task = "image-classification"

  def __init__(
    self,
    labels: Sequence[str],
    image: tuple[int, int] = (224, 224),
    patch: tuple[int, int] = (16, 16),
    channels: int = 3,
    dim: int = 768,
    heads: int = 12,
    num_layers: int = 12,
    ff_dim: int = 3072,
    activation: Callable = ACTIVATIONS["gelu"],
    eps: float = 1e-12,
    linear: type[Linear] = Linear,
    attention_fn: Callable = attention,
    layer_norm: Callable = nn.LayerNorm,
  ):
    self.image, self.patch, self.channels, self.dim, self.heads, self.ff_dim = (
      image,
      patch,
      channels,
      dim,
      heads,
      ff_dim,
    )
    self.activation, self.linear, self.grid = (
      activation,
      linear,
      (image[0] // patch[0], image[1] // patch[1]),
    )
    self.patches, self.class_token = Patches(channels, patch, dim, linear), Tensor.zeros(1, 1, dim)
    self.positions = Tensor.normal(1, 1 + self.grid[0] * self.grid[1], dim, std=0.02)
    self.blocks = [
      Block(
        MultiHeadAttention(dim, heads, linear, attention_fn=attention_fn),
        FeedForward(dim, ff_dim, activation, linear),
        lambda: layer_norm(dim, eps),
        pre_norm,
      )
      for _ in range(num_layers)
    ]
    self.norm = layer_norm(dim, eps)
    self.new_head(labels)

  def new_head(self, labels: Sequence[str]) -> None:
    """Puts a head for other classes in the place of the one that there is, all zeros, to be taught with the rest (sec. 3.2)."""
    self.labels, self.head = list(labels), self.linear(self.dim, len(labels)) if labels else None
    if self.head:
      self.head.weight = Tensor.zeros(len(labels), self.dim)

  def placed(self, rows: int, columns: int) -> Tensor:
    """(1, 1 + rows columns, D): the positions, those of the patches stretched to another grid than the model's own (sec. 3.2)."""
    if (rows, columns) == self.grid:
      return self.positions
    grid = self.positions[0, 1:].reshape(*self.grid, self.dim)
    stretched = (cubic(rows, self.grid[0]) @ grid.flatten(1)).reshape(rows, self.grid[1], self.dim)
    return self.positions[:, :1].cat(
      (cubic(columns, self.grid[1]) @ stretched).reshape(1, rows * columns, self.dim), dim=1
    )

  def last_hidden_state(self, pixels: Tensor) -> Tensor:
    """(B, C, height, width), the pixels as the checkpoint's preprocessor makes them (models/pictures.py) -> (B, 1 + N, D): the class's row, then a row a patch.

    A picture of another size than the model's has its positions stretched. Raises ValueError for other channels, or a picture smaller than a patch.
    """
    B, C, height, width = pixels.shape
    rows, columns = int(height) // self.patch[0], int(width) // self.patch[1]
    if self.channels != C or not rows * columns:
      raise ValueError(
        f"pictures of {C} x {height} x {width} pixels are not {self.channels} x {self.patch[0]} x {self.patch[1]} or more"
      )
    x = materialize(
      self.class_token.expand(B, 1, self.dim).cat(self.patches(pixels), dim=1)
      + self.placed(rows, columns)
    )
    for block in self.blocks:
      x = block(x)
    return materialize(self.norm(x))

  def __call__(self, pixels: Tensor) -> Tensor:
    """(B, C, height, width) -> logits (B, labels). Raises ValueError for a model without a head."""
    if not self.head:
      raise ValueError("this model has no head that tells classes apart: give it one and teach it")
    return self.head(self.last_hidden_state(pixels)[:, 0])


def pair(config: Config, name: str, default: int) -> tuple[int, int]:
  """(height, width) from a number or a list of two. Raises ValueError for what is neither."""
  sides = value if isinstance(value := config.get(name, default), list) else [value, value]
  if len(sides) == 2 and all(type(n) is int and n > 0 for n in sides):
    return sides[0], sides[1]
  raise ValueError(
    f"{config.source}: {name} should be a whole number above 0 or two, not {value!r}"
  )


def from_config(config: Config, **parts) -> ViT:
  """An untrained model of the sizes that a config.json states. parts: linear, attend and layer_norm. Raises ValueError for what is not built here."""
  config.only(qkv_bias=True)
  names = [] if config.get("architectures") == ["ViTModel"] else labels(config)
  return ViT(
    names,
    pair(config, "image_size", 224),
    pair(config, "patch_size", 16),
    config.size("num_channels", 3),
    config.size("hidden_size", 768),
    config.size("num_attention_heads", 12),
    config.size("num_hidden_layers", 12),
    config.size("intermediate_size", 3072),
    config.activation("hidden_act", "gelu"),
    config.get("layer_norm_eps", 1e-12),
    **parts,
  )


load = loader(from_config, KEY_MAP)


def save(model: ViT, folder: str | Path, dtype: str = "float32", **config) -> None:
  """Writes a folder that `load`, and transformers, read; the preprocessor's file is not in it. config: more keys for config.json."""
  image, patch = (
    side[0] if side[0] == side[1] else list(side) for side in (model.image, model.patch)
  )
  heads = {
    "architectures": ["ViTForImageClassification" if model.head else "ViTModel"],
    "id2label": dict(enumerate(model.labels)),
    "label2id": {label: i for i, label in enumerate(model.labels)},
  }
  safetensors.write(
    model,
    Path(folder),
    {
      "model_type": "vit",
      "image_size": image,
      "patch_size": patch,
      "num_channels": model.channels,
      "hidden_size": model.dim,
      "num_attention_heads": model.heads,
      "num_hidden_layers": len(model.blocks),
      "intermediate_size": model.ff_dim,
      "hidden_act": name_of(model.activation),
      "layer_norm_eps": model.norm.eps,
    }
    | heads
    | config,
    KEY_MAP,
    dtype,
  )
