"""The layer norm kernel equals tinygrad's LayerNorm."""

import numpy as np
import pytest
from conftest import normal
from tinygrad import Device, Tensor, nn

from tinyformer.kernels.layer_norm import LayerNorm


@pytest.mark.parametrize(
  "shape", [(1, 1), (3, 5), (2, 7, 16), (1, 1, 768), (4, 50, 33), (600, 128)]
)
def test_layer_norm_and_its_gradients_equal_tinygrads(shape):
  x = Tensor(normal(*shape) * 3 + 1).realize()
  dy = Tensor(normal(*shape, seed=1)).realize()
  results = []
  for layer in (LayerNorm, nn.LayerNorm):
    norm = layer(shape[-1], 1e-3)
    norm.weight = Tensor(normal(shape[-1], seed=2)).realize()
    norm.bias = Tensor(normal(shape[-1], seed=3)).realize()
    y = norm(x)
    gradients = (y * dy).sum().gradient(x, norm.weight, norm.bias)
    results.append([t.numpy() for t in (y, *gradients)])
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, atol=2e-5 * max(1, np.abs(expected).max()))


@pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel runs on the CPU only")
def test_the_kernel_is_used_if_and_only_if_it_supports_the_input():
  def uses_kernel(norm, x):
    return "norm_" in str(norm(x).schedule_linear())

  x = Tensor(normal(2, 6)).realize()
  assert uses_kernel(LayerNorm(6), x)
  assert not uses_kernel(LayerNorm(6), x.half().realize())
  assert not uses_kernel(LayerNorm((2, 6)), x)
