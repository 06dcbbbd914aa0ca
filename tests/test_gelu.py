"""The GELU kernel equals tinygrad's GELU."""

import numpy as np
import pytest
from conftest import normal
from tinygrad import Tensor

from tinyformer.kernels.gelu import gelu


@pytest.mark.parametrize("shape", [(5,), (2, 3, 16), (3, 100), (700, 301)])
def test_gelu_and_its_gradient_equal_tinygrads(shape):
  x = normal(*shape) * 4
  x.flat[:4] = 1e4, -1e4, -40, 0
  dy = Tensor(normal(*shape, seed=1)).realize()
  results = []
  for function in (gelu, Tensor.gelu):
    t = Tensor(x).realize()
    y = function(t)
    (gradient,) = (y * dy).sum().gradient(t)
    results.append([y.numpy(), gradient.numpy()])
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_gelu_of_huge_numbers_is_0_or_the_number_itself():
  x = [-1e30, -1e13, -100, 100, 1e13, 1e30]
  expected = np.array([0, 0, 0, 100, 1e13, 1e30], np.float32)
  np.testing.assert_allclose(gelu(Tensor(x).realize()).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_gelu_of_another_dtype_is_tinygrads():
  x = Tensor(normal(2, 6)).half().realize()
  np.testing.assert_array_equal(gelu(x).numpy(), x.gelu().numpy())
