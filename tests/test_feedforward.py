import numpy as np
from conftest import normal
from tinygrad import Tensor, nn
from parts.feedforward import GatedFeedForward

def test_a_gate_says_how_much_of_each_feature_passes():
  ff = GatedFeedForward(6, 10)
  x = normal(2, 3, 6)
  w = {name: t.numpy() for name, t in nn.state.get_state_dict(ff).items()}
  gate, up = (x @ w[f"{n}.weight"].T + w[f"{n}.bias"] for n in ("gate", "up"))
  np.testing.assert_allclose(ff(Tensor(x)).numpy(), (gate / (1 + np.exp(-gate)) * up) @ w["down.weight"].T + w["down.bias"], atol=1e-5)
