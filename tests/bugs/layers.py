"""Bugs planted in layers; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "pairs of another rotation",
    "layers/positions.py",
    "apply_rope_half",
    "a, b = x.chunk(2, dim=-1)",
    "a, b = x[..., 0::2], x[..., 1::2]",
    "llama",
  ),
  Bug(
    "a gate that is not activated",
    "layers/feedforward.py",
    "GatedFeedForward.__call__",
    "self.activation(self.gate(x)) * self.up(x)",
    "self.gate(x) * self.up(x)",
    "feedforward",
  ),
  Bug(
    "experts chosen, and their shares not made to add up to 1",
    "layers/feedforward.py",
    "MixtureOfExperts.__call__",
    "share = share / share.sum(-1, keepdim=True)",
    "share = share",
    "feedforward",
  ),
  Bug(
    "the next expert for the chosen one",
    "layers/feedforward.py",
    "MixtureOfExperts.some.apply",
    "choice.flatten()",
    "(choice.flatten() + 1) % self.experts",
    "feedforward",
  ),
  Bug(
    "a window one key too wide",
    "layers/positions.py",
    "window_mask",
    "(d < window)",
    "(d <= window)",
    "positions",
  ),
  Bug(
    "buckets that are linear",
    "layers/positions.py",
    "signed_bucket",
    "math.log(abs(distance) / exact) / math.log((most - 1) / exact)",
    "(abs(distance) - exact) / (most - 1 - exact)",
    "deberta",
  ),
  Bug(
    "distances of T5 the wrong way round",
    "layers/positions.py",
    "bucket",
    "after = (distance < 0)",
    "after = (distance > 0)",
    "positions",
  ),
]
