"""Bugs planted in layers/; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "apply_rope_half pairs neighbouring columns",
    "layers/positions.py",
    "apply_rope_half",
    "a, b = x.chunk(2, dim=-1)",
    "a, b = x[..., 0::2], x[..., 1::2]",
    "llama::test_logits_equal_hugging_face",
  ),
  Bug(
    "the gate has no activation",
    "layers/feedforward.py",
    "GatedFeedForward.__call__",
    "self.activation(self.gate(x)) * self.up(x)",
    "self.gate(x) * self.up(x)",
    "feedforward::test_the_activated_gate_multiplies_the_features",
  ),
  Bug(
    "the selected experts' weights are not renormalized",
    "layers/moe.py",
    "MixtureOfExperts.route",
    "weights / weights.sum(-1, keepdim=True)",
    "weights",
    "feedforward::test_the_output_is_the_weighted_sum_of_the_two_selected_experts",
  ),
  Bug(
    "one token goes to the expert after the selected one",
    "tinyformer/kernels/fused.py",
    "FusedMixtureOfExperts.project",
    "gather_rows(matrices, indices)",
    "gather_rows(matrices, (indices + 1) % self.experts)",
    "feedforward::test_the_output_is_the_weighted_sum_of_the_two_selected_experts",
  ),
  Bug(
    "the window is one key too wide",
    "layers/positions.py",
    "window_mask",
    "(d < window)",
    "(d <= window)",
    "positions::test_window_mask_allows_the_last_keys_only",
  ),
  Bug(
    "DeBERTa's buckets are linear",
    "layers/positions.py",
    "signed_bucket",
    "log_ratio = math.log(abs(distance) / exact) / math.log((max_distance - 1) / exact)",
    "log_ratio = (abs(distance) - exact) / (max_distance - 1 - exact)",
    "deberta::test_short_distances_have_their_own_buckets_and_long_ones_share_buckets",
  ),
  Bug(
    "T5's bucket has the sign of the distance reversed",
    "layers/positions.py",
    "bucket",
    "offset = (distance < 0)",
    "offset = (distance > 0)",
    "positions::test_t5_buckets",
  ),
]
