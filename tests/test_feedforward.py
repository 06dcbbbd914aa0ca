import functools

import numpy as np
import pytest
from conftest import normal, randomise
from tinygrad import GlobalCounters, Tensor, nn

from layers.feedforward import GatedFeedForward, MixtureOfExperts
from transformer import Linear


def test_a_gate_says_how_much_of_each_feature_passes():
  ff = GatedFeedForward(6, 10)
  x = normal(2, 3, 6)
  w = {name: t.numpy() for name, t in nn.state.get_state_dict(ff).items()}
  gate, up = (x @ w[f"{n}.weight"].T + w[f"{n}.bias"] for n in ("gate", "up"))
  np.testing.assert_allclose(
    ff(Tensor(x)).numpy(),
    (gate / (1 + np.exp(-gate)) * up) @ w["down.weight"].T + w["down.bias"],
    atol=1e-5,
  )


X = normal(2, 3, 6)


def expert(moe, e):
  """The e-th expert as a network of its own."""
  ff = GatedFeedForward(6, 10, linear=functools.partial(Linear, bias=False))
  for name in ("gate", "up", "down"):
    rows = getattr(moe, name).weight
    getattr(ff, name).weight = rows[e * (n := rows.shape[0] // moe.experts) : (e + 1) * n]
  return ff


def test_one_expert_of_one_is_the_expert_itself():
  moe = randomise(MixtureOfExperts(1, 1, 6, 10))
  np.testing.assert_allclose(moe(Tensor(X)).numpy(), expert(moe, 0)(Tensor(X)).numpy(), atol=1e-6)


def test_each_token_gets_its_two_best_experts_by_their_shares():
  moe = randomise(MixtureOfExperts(4, 2, 6, 10))
  logits, each = (
    X @ moe.router.weight.numpy().T,
    [expert(moe, e)(Tensor(X)).numpy() for e in range(4)],
  )
  want = np.zeros_like(X)
  for place in np.ndindex(2, 3):
    a, b = np.argsort(-logits[place])[:2]
    share = 1 / (1 + np.exp(logits[place][b] - logits[place][a]))  # a softmax of the two alone
    want[place] = share * each[a][place] + (1 - share) * each[b][place]
  np.testing.assert_allclose(moe(Tensor(X)).numpy(), want, atol=1e-6)
  np.testing.assert_allclose(
    moe(Tensor(X[:1, :1])).numpy(), want[:1, :1], atol=1e-6
  )  # a step of generation goes another way


def test_a_step_of_generation_reads_the_chosen_experts_alone():
  moe, x = randomise(MixtureOfExperts(8, 2, 32, 64)), Tensor(normal(1, 1, 32)).realize()
  Tensor.realize(*nn.state.get_parameters(moe))
  GlobalCounters.reset()
  moe(x).realize()
  assert GlobalCounters.global_mem < 0.3 * sum(t.nbytes() for t in nn.state.get_parameters(moe))


def test_more_experts_than_there_are_cannot_be_chosen():
  with pytest.raises(ValueError, match="3 experts cannot be chosen of 2"):
    MixtureOfExperts(2, 3, 6, 10)
