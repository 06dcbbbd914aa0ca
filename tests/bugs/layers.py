"""Bugs planted in layers/; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "apply_rope_half pairs neighbouring columns",
    "layers/positions.py",
    "apply_rope_half",
    "a, b = x.chunk(2, dim=-1)",
    "a, b = x[..., 0::2], x[..., 1::2]",
    "llama",
  ),
  Bug(
    "the gate has no activation",
    "layers/feedforward.py",
    "GatedFeedForward.__call__",
    "self.activation(self.gate(x)) * self.up(x)",
    "self.gate(x) * self.up(x)",
    "feedforward",
  ),
  Bug(
    "the selected experts' weights are not renormalized",
    "layers/moe.py",
    "MixtureOfExperts.route",
    "weights / weights.sum(-1, keepdim=True)",
    "weights",
    "feedforward",
  ),
  Bug(
    "one token goes to the expert after the selected one",
    "tinyformer/kernels/fused.py",
    "FusedMixtureOfExperts.forward_token.project",
    "indices.flatten()",
    "(indices.flatten() + 1) % self.experts",
    "feedforward",
  ),
  Bug(
    "the window is one key too wide",
    "layers/positions.py",
    "window_mask",
    "(d < window)",
    "(d <= window)",
    "positions",
  ),
  Bug(
    "DeBERTa's buckets are linear",
    "layers/positions.py",
    "signed_bucket",
    "log_ratio = math.log(abs(distance) / exact) / math.log((max_distance - 1) / exact)",
    "log_ratio = (abs(distance) - exact) / (max_distance - 1 - exact)",
    "deberta",
  ),
  Bug(
    "T5's bucket has the sign of the distance reversed",
    "layers/positions.py",
    "bucket",
    "offset = (distance < 0)",
    "offset = (distance > 0)",
    "positions",
  ),
]
