"""Position encodings: sinusoids in halves, rotary embeddings (RoPE), and biases by distance.

The T queries are the last T of S positions, as in transformer.causal_mask. Biases are added to the
scores; they have shape (T, S), or (H, T, S) if they differ by head.
"""

import math
from collections.abc import Callable
from typing import Any

from tinygrad import Tensor


def check_context(length, context: int) -> None:
  """Raise ValueError if a sequence is longer than the context."""
  if length > context:
    raise ValueError(f"{length} tokens are more than the context of {context}: shorten the text")


def sinusoids_in_halves(positions: Tensor, dim: int) -> Tensor:
  """Return the encodings (T, D) of positions (T): transformer.sinusoids with all sines first.

  This is the column order of tensor2tensor, and therefore of Marian. Raises ValueError if D is odd.
  """
  if dim % 2:
    raise ValueError(f"dim {dim} is odd: sines and cosines come in pairs")
  angle = positions.unsqueeze(-1) / 10000 ** (Tensor.arange(0, dim, 2) / dim)
  return angle.sin().cat(angle.cos(), dim=-1)


def concatenate_positions(x: Tensor, positions: Tensor) -> Tensor:
  """x (B, T, D), positions (T, P) -> (B, T, D + P): the alternative to adding them."""
  return x.cat(positions.expand(x.shape[0], *positions.shape), dim=-1)


def token_positions(attention_mask: Tensor) -> Tensor:
  """Return the position of each token (B, S), not counting the padding before it.

  attention_mask (B, S): 1 for tokens, 0 for padding.
  """
  return (attention_mask.int().cumsum(1) - 1).maximum(0)


# **************** RoPE (Su et al. 2021, RoFormer, sec. 3.2) ****************


def rope_inv_freq(
  dim: int, theta: float = 10000.0, scaling: dict[str, Any] | None = None
) -> list[float]:
  """Return the D / 2 angles per position, in radians: theta^(-2i / D).

  `scaling` extends the context of a trained model; its keys are those of a config.json.
  "linear" divides all frequencies by `factor` (Chen et al. 2023). "ntk" increases theta so that
  the lowest frequency is divided by `factor` and the highest is unchanged (bloc97 2023). "llama3"
  divides the frequencies of wavelengths above original_max_position_embeddings / low_freq_factor
  by `factor`, keeps those of wavelengths below original_max_position_embeddings / high_freq_factor
  and interpolates in between (Llama 3.1). "yarn": see yarn_inv_freq. Raises ValueError for any
  other type. "dynamic" changes no frequency: it does so only for texts longer than the context.
  """
  scaling = scaling or {}
  kind = scaling.get("rope_type") or scaling.get("type") or "default"
  factor = float(scaling.get("factor", 1))
  if kind == "ntk":
    theta *= factor ** (dim / (dim - 2))
  inv_freq = [theta ** (-2 * i / dim) for i in range(dim // 2)]
  if kind in ("default", "dynamic", "ntk"):
    return inv_freq
  if kind == "linear":
    return [f / factor for f in inv_freq]
  if kind == "llama3":
    return llama3_inv_freq(inv_freq, factor, scaling)
  if kind == "yarn":
    return yarn_inv_freq(inv_freq, theta, factor, scaling)
  raise ValueError(
    f"RoPE scaling {kind!r} is not supported: use default, linear, ntk, dynamic, llama3 or yarn"
  )


def llama3_inv_freq(inv_freq: list[float], factor: float, scaling: dict[str, Any]) -> list[float]:
  """Return the frequencies with Llama 3.1's scaling; see rope_inv_freq."""
  low = float(scaling["low_freq_factor"])
  high = float(scaling["high_freq_factor"])
  original_context = float(scaling["original_max_position_embeddings"])
  scaled = []
  for f in inv_freq:
    rotations_in_context = original_context * f / (2 * math.pi)
    # The weight of the original frequency: 1 for short wavelengths, 0 for long ones.
    weight = min(1.0, max(0.0, (rotations_in_context - low) / (high - low)))
    scaled.append(weight * f + (1 - weight) * f / factor)
  return scaled


def yarn_inv_freq(
  inv_freq: list[float], theta: float, factor: float, scaling: dict[str, Any]
) -> list[float]:
  """Return the frequencies with YaRN's scaling.

  A pair that rotates more than `beta_fast` times (32 if missing) in the original context keeps its
  frequency. One that rotates less than `beta_slow` times (1) is divided by `factor`. The weights of
  the pairs in between are a linear function of their index. The two indices at which the function
  begins and ends are rounded outward, unless `truncate` is false. Raises ValueError if theta is at
  most 1. Source: Peng et al. 2024, sec. 3.2.
  """
  if theta <= 1:
    raise ValueError(f"YaRN cannot scale RoPE with theta {theta}: theta must be above 1")
  original_context = float(scaling["original_max_position_embeddings"])
  dim = 2 * len(inv_freq)

  def index(full_turns: float) -> float:
    """Return the index, in fractions, of the pair that rotates so often in the context."""
    return dim * math.log(original_context / (full_turns * 2 * math.pi)) / (2 * math.log(theta))

  first = index(float(scaling.get("beta_fast") or 32))
  last = index(float(scaling.get("beta_slow") or 1))
  if scaling.get("truncate", True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, dim - 1)
  width = last - first or 0.001
  scaled = []
  for i, f in enumerate(inv_freq):
    # The weight of the divided frequency: 0 for short wavelengths, 1 for long ones.
    weight = min(1.0, max(0.0, (i - first) / width))
    scaled.append((1 - weight) * f + weight * f / factor)
  return scaled


def rope_scale(scaling: dict[str, Any] | None = None) -> float:
  """Return the factor of RoPE's cosines and sines, by which q and k grow: 1, except for YaRN.

  YaRN's is `attention_factor`, or 0.1 ln(factor) + 1 if that is missing. `mscale` and
  `mscale_all_dim` replace it by (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1).
  Source: Peng et al. 2024, sec. 3.4; DeepSeek-AI 2024 (DeepSeek-V2) for mscale.
  """
  scaling = scaling or {}
  if (scaling.get("rope_type") or scaling.get("type")) != "yarn":
    return 1.0
  if attention_factor := scaling.get("attention_factor"):
    return float(attention_factor)
  log_factor = math.log(max(1.0, float(scaling["factor"])))
  mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
  if mscale and mscale_all_dim:
    return (0.1 * mscale * log_factor + 1) / (0.1 * mscale_all_dim * log_factor + 1)
  return 0.1 * log_factor + 1


def rope_cos_sin(
  positions: Tensor, inv_freq: list[float], scale: float = 1.0
) -> tuple[Tensor, Tensor]:
  """Return the cosines and sines (T, D/2) of the rotation angles at positions (T), times scale."""
  # One constant Tensor per frequency: a Tensor made from the list would be a captured buffer.
  frequencies = Tensor.stack(*map(Tensor, inv_freq))
  angle = positions.unsqueeze(-1) * frequencies
  cos, sin = angle.cos(), angle.sin()
  return (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)


def apply_rope_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """Rotate each pair (x_i, x_{i + D/2}) of x (..., T, D).

  This is the pairing of Hugging Face's LLaMA checkpoints and of GPT-NeoX.
  """
  a, b = x.chunk(2, dim=-1)
  return (a * cos - b * sin).cat(b * cos + a * sin, dim=-1)


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """Rotate each pair (x_{2i}, x_{2i+1}) of x (..., T, D).

  This is the pairing of the paper and of Meta's LLaMA checkpoints.
  """
  a, b = x[..., 0::2], x[..., 1::2]
  return Tensor.stack(a * cos - b * sin, b * cos + a * sin, dim=-1).flatten(-2)


def apply_rope_partial(x: Tensor, rope: Callable[[Tensor], Tensor], rope_dim: int) -> Tensor:
  """Apply rope to the first rope_dim components of x (..., T, D), and keep the others.

  Source: Black et al. 2022, sec. 2.1.
  """
  return rope(x[..., :rope_dim]).cat(x[..., rope_dim:], dim=-1)


# **************** biases and masks by distance ****************


def distances(T, S) -> Tensor:
  """Return (T, S): the query's position minus the key's, negative for later keys."""
  query_position = Tensor.arange(T).reshape(T, 1) + (S - T)
  return query_position - Tensor.arange(S)


def window_mask(T, S, window: int) -> Tensor:
  """Return (T, S): 0 for the query's own position and the window - 1 before it, else -inf.

  Source: Beltagy et al. 2020; Jiang et al. 2023 (Mistral), sec. 2.
  """
  d = distances(T, S)
  return ((d >= 0) & (d < window)).where(0.0, -math.inf)


def local_mask(T, S, distance: int) -> Tensor:
  """Return (T, S): 0 for keys at most `distance` positions before or after the query, else -inf.

  Source: Beltagy et al. 2020, sec. 3.1.
  """
  return (distances(T, S).abs() <= distance).where(0.0, -math.inf)


def alibi_slopes(heads: int) -> list[float]:
  """Return 2^(-8h/H) for head h = 1..H.

  If H is not a power of two, take the slopes of the next lower power, followed by every second
  slope of the next higher one. Source: Press et al. 2022, sec. 3.
  """
  power = 2 ** int(math.log2(heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


def alibi(T, S, heads: int) -> Tensor:
  """Return ALiBi's biases (H, T, S): minus the distance times the head's slope.

  Add them to a causal mask. Source: Press et al. 2022, sec. 3.
  """
  return -distances(T, S).abs() * Tensor(alibi_slopes(heads)).reshape(heads, 1, 1)


def bucket(
  distance: Tensor, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> Tensor:
  """Return T5's bucket of each distance (query's position minus key's).

  Small distances have a bucket each. Larger ones share buckets logarithmically, and all from
  max_distance on share the last. If bidirectional, keys after the query use the upper half of the
  buckets; otherwise their distance counts as 0. Source: Raffel et al. 2020, sec. 2.1.
  """
  offset: Tensor | int
  if bidirectional:
    offset = (distance < 0).where(buckets // 2, 0)
    n, d = buckets // 2, distance.abs()
  else:
    offset, n, d = 0, buckets, distance.maximum(0)
  exact = n // 2
  log_ratio = (d.maximum(1) / exact).log() / math.log(max_distance / exact)
  far = exact + (log_ratio * (n - exact)).cast("int32")
  return offset + (d < exact).where(d, far.minimum(n - 1))


def signed_bucket(distance: int, buckets: int, max_distance: int) -> int:
  """Return DeBERTa's bucket of a distance, with the distance's sign.

  Distances up to buckets / 2 are their own bucket. Larger ones, up to max_distance - 1, share the
  other half logarithmically. Source: He et al. 2023.
  """
  exact = buckets // 2
  if abs(distance) <= exact:
    return distance
  log_ratio = math.log(abs(distance) / exact) / math.log((max_distance - 1) / exact)
  far = exact + math.ceil(log_ratio * (exact - 1))
  return far if distance > 0 else -far


class RelativeBias:
  """T5's learned bias per head and distance bucket. All layers of a stack share one instance."""

  def __init__(self, heads: int, bidirectional: bool, buckets: int = 32, max_distance: int = 128):
    self.weight = Tensor.normal(buckets, heads, std=0.02)
    self.bidirectional, self.buckets, self.max_distance = bidirectional, buckets, max_distance

  def __call__(self, T, S) -> Tensor:
    """Return the biases (H, T, S), to be added to the scores."""
    d = distances(T, S)
    indices = bucket(d, self.bidirectional, self.buckets, self.max_distance)
    return self.weight[indices].permute(2, 0, 1)
