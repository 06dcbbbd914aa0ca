"""Where a token stands: sinusoids in halves, rotations of queries and keys, and biases of their scores by distance.

T queries are the last T of S places, as in transformer.causal_mask: what is added to scores is (T, S), or (H, T, S) with a value for each head.
"""

import math
from typing import Any

from tinygrad import Tensor, UOp

from transformer import Size


def sinusoids_in_halves(T: Size, dim: int, start: Size = 0) -> Tensor:
  """(T, D), from place `start` on: the columns of transformer.sinusoids in another order, all sines before all cosines (tensor2tensor's, and so Marian's)."""
  if dim % 2:
    raise ValueError(f"dim {dim} is odd: sines and cosines come in pairs")
  angle = places(start, T).reshape(T, 1) / 10000 ** (Tensor.arange(0, dim, 2) / dim)
  return angle.sin().cat(angle.cos(), dim=1)


def places(start: Size | Tensor, T: Size) -> Tensor:
  """(T): start, start + 1, ..."""
  return Tensor.arange(T) + (Tensor(start) if isinstance(start, UOp) else start)


# **************** rotations (Su et al. 2021, RoFormer, sec. 3.2) ****************


def rope_inv_freq(
  dim: int, theta: float = 10000.0, scaling: dict[str, Any] | None = None
) -> list[float]:
  """Radians a place for each of the D / 2 planes: theta^(-2i / D).

  scaling stretches a trained model to longer texts, in the words of a config.json. "linear": all slower by `factor` (Chen et al. 2023).
  "ntk": theta grows so that the slowest is slower by `factor` and the fastest stays (bloc97 2023). "llama3": waves longer than
  original_max_position_embeddings / low_freq_factor are slower by `factor`, those shorter than that over high_freq_factor stay, and those
  between lie between (Llama 3.1). Raises ValueError for another kind.
  """
  kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
  factor = float((scaling or {}).get("factor", 1))
  if kind == "ntk":
    theta *= factor ** (dim / (dim - 2))
  plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
  if kind in ("default", "ntk"):
    return plain
  if kind == "linear":
    return [f / factor for f in plain]
  if kind != "llama3" or scaling is None:
    raise ValueError(
      f"rope scaling of the kind {kind!r} is not built here: default, linear, ntk and llama3 are"
    )
  low, high, old = (
    float(scaling[key])
    for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
  )

  def stretched(f: float) -> float:
    share = min(
      1.0, max(0.0, (old * f / (2 * math.pi) - low) / (high - low))
    )  # of the plain frequency: 1 for waves that fit in often
    return share * f + (1 - share) * f / factor

  return [stretched(f) for f in plain]


def rope_cos_sin(
  start: Size | Tensor, T: Size, rope_inv_freq: list[float]
) -> tuple[Tensor, Tensor]:
  """The cosines and sines (T, D/2) of the angles at the places from `start` on."""
  angle = places(start, T).reshape(T, 1) * Tensor.stack(
    *map(Tensor, rope_inv_freq)
  )  # constants of the kernel: a list would be a tensor to keep with it
  return angle.cos(), angle.sin()


def apply_rope_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """x (..., T, D) with each pair (x_i, x_{i + D/2}) turned by its angle: the order of Hugging Face's LLaMA checkpoints and of GPT-NeoX."""
  a, b = x.chunk(2, dim=-1)
  return (a * cos - b * sin).cat(b * cos + a * sin, dim=-1)


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """x (..., T, D) with each pair (x_{2i}, x_{2i+1}) turned by its angle: the paper's order, and that of Meta's own LLaMA files."""
  a, b = x[..., 0::2], x[..., 1::2]
  return Tensor.stack(a * cos - b * sin, b * cos + a * sin, dim=-1).flatten(-2)


# **************** biases ****************


def distances(T: Size, S: Size) -> Tensor:
  """(T, S): how many places each key stands before each query; below 0 for a later one."""
  return places(S - T, T).reshape(T, 1) - Tensor.arange(S).reshape(1, S)


def window_mask(T: Size, S: Size, window: int) -> Tensor:
  """(T, S): 0 for a query's own key and the window - 1 before it, -inf elsewhere (Beltagy et al. 2020; Mistral, Jiang et al. 2023, sec. 2)."""
  d = distances(T, S)
  return ((d >= 0) & (d < window)).where(0.0, -math.inf)


def alibi_slopes(heads: int) -> list[float]:
  """2^(-8/H), 2^(-16/H), ...; where H is no power of two, those of the power below, and every second of those of the power above."""
  power = 2 ** int(math.log2(heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


def alibi(T: Size, S: Size, heads: int) -> Tensor:
  """(H, T, S): minus the distance times the head's slope (Press et al. 2022, sec. 3); a causal mask goes with it."""
  return -distances(T, S).abs() * Tensor(alibi_slopes(heads)).reshape(heads, 1, 1)


def bucket(distance: Tensor, both: bool, buckets: int = 32, most: int = 128) -> Tensor:
  """Which of T5's buckets a distance (query's place minus key's) falls in: small ones have their own, larger ones share, by their logarithm, up to `most`.

  both: keys after the query have the upper half of the buckets; otherwise they count as at the query (Raffel et al. 2020, sec. 2.1).
  """
  after = (distance < 0).where(buckets // 2, 0) if both else 0
  n, d = buckets // 2 if both else buckets, distance.abs() if both else distance.maximum(0)
  exact = n // 2
  far = exact + ((d.maximum(1) / exact).log() / math.log(most / exact) * (n - exact)).cast("int32")
  return after + (d < exact).where(d, far.minimum(n - 1))


def signed_bucket(distance: int, buckets: int, most: int) -> int:
  """DeBERTa's bucket of a distance: itself up to buckets / 2; from there to most - 1 their logarithms share the other half; its sign stays (He et al. 2023)."""
  exact = buckets // 2
  if abs(distance) <= exact:
    return distance
  far = exact + math.ceil(
    math.log(abs(distance) / exact) / math.log((most - 1) / exact) * (exact - 1)
  )
  return far if distance > 0 else -far


class RelativeBias:
  """T5's learned bias for each head and bucket of distances; the layers of a stack share one."""

  def __init__(self, heads: int, both: bool, buckets: int = 32, most: int = 128):
    self.weight, self.both, self.buckets, self.most = (
      Tensor.normal(buckets, heads, std=0.02),
      both,
      buckets,
      most,
    )

  def __call__(self, T: Size, S: Size) -> Tensor:
    """(H, T, S), to be added to the scores."""
    return self.weight[bucket(distances(T, S), self.both, self.buckets, self.most)].permute(2, 0, 1)
