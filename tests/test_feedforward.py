"""layers/feedforward.py and layers/moe.py against numpy."""

import functools

import numpy as np
import pytest
from conftest import PARTS, normal, randomise
from tinygrad import GlobalCounters, Tensor, nn

from layers.feedforward import GatedFeedForward
from layers.moe import MixtureOfExperts
from tinyformer.kernels.parts import FUSED
from transformer import Linear

X = normal(2, 3, 6)


def test_the_activated_gate_multiplies_the_features():
  ff = GatedFeedForward(6, 10)
  w = {name: t.numpy() for name, t in nn.state.get_state_dict(ff).items()}
  gate, up = (X @ w[f"{n}.weight"].T + w[f"{n}.bias"] for n in ("gate", "up"))
  silu = gate / (1 + np.exp(-gate))
  expected = (silu * up) @ w["down.weight"].T + w["down.bias"]
  np.testing.assert_allclose(ff(Tensor(X)).numpy(), expected, atol=1e-5)


def expert(moe, e):
  """Return the e-th expert as a separate network."""
  ff = GatedFeedForward(6, 10, linear=functools.partial(Linear, bias=False))
  for name in ("gate", "up", "down"):
    stacked = getattr(moe, name).weight
    rows = stacked.shape[0] // moe.experts
    getattr(ff, name).weight = stacked[e * rows : (e + 1) * rows]
  return ff


def test_a_single_expert_is_a_gated_feed_forward_network():
  moe = randomise(MixtureOfExperts(1, 1, 6, 10))
  np.testing.assert_allclose(moe(Tensor(X)).numpy(), expert(moe, 0)(Tensor(X)).numpy(), atol=1e-6)


@pytest.mark.parametrize("mixture", [part.moe for part in PARTS.values()], ids=PARTS)
def test_the_output_is_the_weighted_sum_of_the_two_selected_experts(mixture):
  moe = randomise(mixture(4, 2, 6, 10))
  logits = X @ moe.router.weight.numpy().T
  outputs = [expert(moe, e)(Tensor(X)).numpy() for e in range(4)]
  expected = np.zeros_like(X)
  for position in np.ndindex(2, 3):
    a, b = np.argsort(-logits[position])[:2]
    # The softmax of these two logits alone.
    weight = 1 / (1 + np.exp(logits[position][b] - logits[position][a]))
    expected[position] = weight * outputs[a][position] + (1 - weight) * outputs[b][position]
  np.testing.assert_allclose(moe(Tensor(X)).numpy(), expected, atol=1e-6)
  # A single token is computed by another method of the fused mixtures.
  np.testing.assert_allclose(moe(Tensor(X[:1, :1])).numpy(), expected[:1, :1], atol=1e-6)


def test_a_single_token_reads_only_the_selected_experts():
  moe, x = randomise(FUSED.moe(8, 2, 32, 64)), Tensor(normal(1, 1, 32)).realize()
  Tensor.realize(*nn.state.get_parameters(moe))
  GlobalCounters.reset()
  moe(x).realize()
  assert GlobalCounters.global_mem < 0.3 * sum(t.nbytes() for t in nn.state.get_parameters(moe))


def test_more_experts_per_token_than_experts_are_rejected():
  with pytest.raises(ValueError, match="experts_per_token 3 is more than experts 2"):
    MixtureOfExperts(2, 3, 6, 10)
