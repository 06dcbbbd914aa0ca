import numpy as np
import pytest
from conftest import normal
from tinygrad import Tensor

from tinyformer.kernels.gelu import gelu


@pytest.mark.parametrize("shape", [(5,), (2, 3, 16), (3, 100), (700, 301)])
def test_gelu_and_its_gradient_are_tinygrads(shape):
  x, dy, results = normal(*shape) * 4, Tensor(normal(*shape, seed=1)).realize(), []
  x.flat[:4] = 1e4, -1e4, -40, 0  # e^x of these would overflow
  for function in (gelu, Tensor.gelu):
    y = function(t := Tensor(x).realize())
    results.append([t.numpy() for t in (y, *(y * dy).sum().gradient(t))])
  for got, want in zip(*results):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_other_dtypes_go_to_tinygrads():
  x = Tensor(normal(2, 6)).half().realize()
  np.testing.assert_array_equal(gelu(x).numpy(), x.gelu().numpy())
