"""The Vision Transformer (Dosovitskiy et al. 2021, sec. 3.1): BERT's encoder on image patches.

Unlike BERT, it normalizes before each sublayer, and embeds patches instead of words.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Tensor

from layers.norms import pre_norm
from layers.parts import PLAIN, Parts
from models.heads import labels_from_hf
from models.hf_config import HFConfig, hf_activation
from models.key_map import KeyMap
from transformer import Block, FeedForward, MultiHeadAttention

MAX_SIDE = 8_192  # pixels


@dataclass(frozen=True)
class ViTConfig:
  """The defaults are the sizes of ViT-Base/16.

  labels: the class names; empty for a model without a head.
  image, patch: height and width in pixels.
  """

  labels: tuple[str, ...] = ()
  image: tuple[int, int] = (224, 224)
  patch: tuple[int, int] = (16, 16)
  channels: int = 3
  dim: int = 768
  heads: int = 12
  num_layers: int = 12
  ff_dim: int = 3072
  activation: str = "gelu"
  eps: float = 1e-12


class Patches:
  """Split images into patches, and project each one linearly: x_p E of equation 1.

  Patches are in row-major order. A patch's pixels are ordered by channel, then row, then column.
  patch: height and width in pixels.
  """

  def __init__(self, channels: int, patch: tuple[int, int], dim: int, parts: Parts = PLAIN):
    self.weight = Tensor.glorot_uniform(dim, channels, *patch)
    self.bias = Tensor.zeros(dim)
    self.linear_fn = parts.linear_fn

  def __call__(self, pixels: Tensor) -> Tensor:
    """Return the embeddings (B, N, D) of the N patches of images (B, C, height, width).

    Pixels beyond the last whole patch of a row or column are ignored.
    """
    p, q = self.weight.shape[2:]
    rows = pixels.shape[2] // p
    columns = pixels.shape[3] // q
    pixels = pixels[:, :, : rows * p, : columns * q]
    x = pixels.rearrange("b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)
    return self.linear_fn(x, self.weight.flatten(1)) + self.bias


def cubic(new: int, old: int) -> Tensor:
  """Return the matrix (new, old) that resamples `old` points to `new` points by cubic convolution.

  Both sets of points are the centres of equal cells of the same interval. Beyond the ends, the
  first and the last point repeat. Keys's parameter a is -3/4, as in PyTorch.
  Source: Keys 1981, eq. 4.
  """
  a = -0.75
  points = np.arange(-2, old + 2)
  centers = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
  d = np.abs(centers - points)
  near = (a + 2) * d**3 - (a + 3) * d**2 + 1
  far = a * (d**3 - 5 * d**2 + 8 * d - 4)
  weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
  is_source = points.clip(0, old - 1)[:, None] == np.arange(old)
  return Tensor((weights @ is_source).astype(np.float32))


class ViT:
  """Classify images by the final vector of a class token, which precedes the patches.

  Weights are initialized as in Linear, positions from N(0, 0.02), the class token and the head
  to zero.
  """

  task = "image-classification"

  def __init__(self, config: ViTConfig, parts: Parts = PLAIN):
    c = config
    self.config, self.parts = config, parts
    self.patch, self.channels, self.dim = c.patch, c.channels, c.dim
    self.grid = (c.image[0] // c.patch[0], c.image[1] // c.patch[1])
    self.patches = Patches(c.channels, c.patch, c.dim, parts)
    self.class_token = Tensor.zeros(1, 1, c.dim)
    self.positions = Tensor.normal(1, 1 + self.grid[0] * self.grid[1], c.dim, std=0.02)
    self.blocks = [
      Block(
        MultiHeadAttention(c.dim, c.heads, parts.linear, attention_fn=parts.attention),
        FeedForward(c.dim, c.ff_dim, parts.activations[c.activation], parts.linear),
        lambda: parts.layer_norm(c.dim, c.eps),
        pre_norm,
      )
      for _ in range(c.num_layers)
    ]
    self.norm = parts.layer_norm(c.dim, c.eps)
    self.new_head(c.labels)

  @property
  def labels(self) -> list[str]:
    """Return the class names."""
    return list(self.config.labels)

  def new_head(self, labels: Sequence[str]) -> None:
    """Replace the head by an all-zero one for other classes, for fine-tuning (sec. 3.2)."""
    self.config = dataclasses.replace(self.config, labels=tuple(labels))
    self.head = self.parts.linear(self.dim, len(labels)) if labels else None
    if self.head:
      self.head.weight = Tensor.zeros(len(labels), self.dim)
      self.head.bias = Tensor.zeros(len(labels))

  def interpolated_positions(self, rows: int, columns: int) -> Tensor:
    """Return the position embeddings (1, 1 + rows * columns, D) for a grid of patches.

    The embeddings of the patches are interpolated if the grid is not the model's own (sec. 3.2).
    """
    if (rows, columns) == self.grid:
      return self.positions
    class_position = self.positions[:, :1]
    grid = self.positions[0, 1:].reshape(*self.grid, self.dim)
    grid = cubic(rows, self.grid[0]) @ grid.flatten(1)
    grid = cubic(columns, self.grid[1]) @ grid.reshape(rows, self.grid[1], self.dim)
    return class_position.cat(grid.reshape(1, rows * columns, self.dim), dim=1)

  def last_hidden_state(self, pixels: Tensor) -> Tensor:
    """Return the normalized output (B, 1 + N, D): the class token first, then the N patches.

    pixels (B, C, height, width): preprocessed as the checkpoint demands
    (tinyformer/vision/image_processor.py). The positions are interpolated for images of another
    size than the model's.
    Raises ValueError for a wrong number of channels or an image smaller than a patch.
    """
    B, C, height, width = pixels.shape
    rows = int(height) // self.patch[0]
    columns = int(width) // self.patch[1]
    if self.channels != C or not rows * columns:
      raise ValueError(
        f"images of {C} x {height} x {width} pixels do not fit the model: "
        f"use {self.channels} channels and at least {self.patch[0]} x {self.patch[1]} pixels"
      )
    class_token = self.class_token.expand(B, 1, self.dim)
    x = class_token.cat(self.patches(pixels), dim=1)
    x = x + self.interpolated_positions(rows, columns)
    for block in self.blocks:
      x = block(x)
    return self.norm(x)

  def __call__(self, pixels: Tensor) -> Tensor:
    """Return logits (B, number of labels) for pixels (B, C, height, width).

    Raises ValueError if the model has no head.
    """
    if not self.head:
      raise ValueError(
        "the model has no head, so it cannot classify: add one with new_head and train it"
      )
    return self.head(self.last_hidden_state(pixels)[:, 0])


def height_and_width(hf: HFConfig, name: str, default: int) -> tuple[int, int]:
  """Return (height, width) from a number or a list of two. Raises ValueError for other values."""
  value = hf.values.get(name)
  sides = value if isinstance(value, list) else [hf.size(name, default)] * 2
  if len(sides) == 2 and all(type(n) is int and 0 < n <= MAX_SIDE for n in sides):
    return sides[0], sides[1]
  raise hf.error(name, f"be one or two integers from 1 to {MAX_SIDE}")


def from_hf(hf: HFConfig) -> ViTConfig:
  """Translate a config.json. Raises ValueError for an unsupported configuration."""
  hf.only(qkv_bias=True)
  dim = hf.size("hidden_size", 768)
  is_headless = hf.texts("architectures") == ["ViTModel"]
  return ViTConfig(
    labels=() if is_headless else labels_from_hf(hf),
    image=height_and_width(hf, "image_size", 224),
    patch=height_and_width(hf, "patch_size", 16),
    channels=hf.size("num_channels", 3),
    dim=dim,
    heads=hf.size("num_attention_heads", 12, divides=dim),
    num_layers=hf.size("num_hidden_layers", 12),
    ff_dim=hf.size("intermediate_size", 3072),
    activation=hf.activation("hidden_act", "gelu"),
    eps=hf.epsilon("layer_norm_eps", 1e-12),
  )


def to_hf(model: ViT) -> dict[str, Any]:
  """Return the config.json of a model, for transformers. preprocessor_config.json is another."""
  c = model.config

  def number_or_list(sides: tuple[int, int]) -> int | list[int]:
    return sides[0] if sides[0] == sides[1] else list(sides)

  return {
    "model_type": "vit",
    "image_size": number_or_list(c.image),
    "patch_size": number_or_list(c.patch),
    "num_channels": c.channels,
    "hidden_size": c.dim,
    "num_attention_heads": c.heads,
    "num_hidden_layers": c.num_layers,
    "intermediate_size": c.ff_dim,
    "hidden_act": hf_activation(c.activation),
    "layer_norm_eps": c.eps,
    "architectures": ["ViTForImageClassification" if c.labels else "ViTModel"],
    "id2label": dict(enumerate(c.labels)),
    "label2id": {label: i for i, label in enumerate(c.labels)},
  }


# Each parameter has its own tensor in the checkpoint, of the same shape.
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
  # Checkpoints saved without a head lack the prefix.
  legacy={r"^(?!vit\.|classifier)": "vit."},
  ignored={
    r"vit\.pooler\.": (
      "transformers' ViTModel has a tanh layer on the class token, which no classifier reads"
    ),
  },
)
