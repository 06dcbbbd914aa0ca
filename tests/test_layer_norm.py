import numpy as np
import pytest
from conftest import normal
from tinygrad import Device, Tensor, nn

from tinyformer.kernels.layer_norm import LayerNorm


@pytest.mark.parametrize(
  "shape", [(1, 1), (3, 5), (2, 7, 16), (1, 1, 768), (4, 50, 33), (600, 128)]
)
def test_it_and_its_gradients_are_tinygrads(shape):
  x, dy, results = (
    Tensor(normal(*shape) * 3 + 1).realize(),
    Tensor(normal(*shape, seed=1)).realize(),
    [],
  )
  for kind in (LayerNorm, nn.LayerNorm):
    norm = kind(shape[-1], 1e-3)
    norm.weight, norm.bias = (
      Tensor(normal(shape[-1], seed=2)).realize(),
      Tensor(normal(shape[-1], seed=3)).realize(),
    )
    y = norm(x)
    results.append([t.numpy() for t in (y, *(y * dy).sum().gradient(x, norm.weight, norm.bias))])
  for got, want in zip(*results):
    np.testing.assert_allclose(got, want, atol=2e-5 * max(1, np.abs(want).max()))


@pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel is for the CPU")
def test_a_kernel_is_used_where_it_serves_and_nowhere_else():
  def used(norm, x):
    return "norm_" in str(norm(x).schedule_linear())

  assert used(LayerNorm(6), Tensor(normal(2, 6)).realize())
  assert not used(LayerNorm(6), Tensor(normal(2, 6)).half().realize()) and not used(
    LayerNorm((2, 6)), Tensor(normal(2, 6)).realize()
  )
