import numpy as np
import pytest
from conftest import normal
from tinygrad import Device, Tensor

import transformer
from tinyformer.kernels.cross_entropy import loss


@pytest.mark.parametrize(
  "shape, smoothing", [((1, 1, 5), 0.1), ((2, 3, 16), 0), ((2, 7, 33), 0.1), ((3, 40, 1000), 0)]
)
def test_it_and_its_gradient_are_the_plain_ones(shape, smoothing):
  logits, target, results = (
    normal(*shape) * 5,
    np.random.default_rng(0).integers(0, shape[-1], shape[:2]),
    [],
  )
  if target.size > 1:
    target.flat[1], logits[0, 0] = (
      -1,
      logits[0, 0] - 1e4,
    )  # ignored; and e^x of the first would be nothing but for its maximum
  if not smoothing:
    logits[0, 0, 3] = -np.inf  # a token that cannot be
  for function in (loss, transformer.loss):
    value = function(t := Tensor(logits).realize(), Tensor(target, dtype="int32"), smoothing)
    results.append([t.numpy() for t in (value, *(value * 3).gradient(t))])
  for got, want in zip(*results):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_target_of_another_shape_is_refused():
  for shape in ((6, 4), (24,)):
    with pytest.raises((IndexError, RuntimeError, ValueError, AssertionError)):
      loss(Tensor(normal(4, 6, 5)), Tensor.zeros(*shape, dtype="int32")).realize()


@pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel is for the CPU")
def test_a_target_that_is_no_token_is_no_number():
  for wrong in (-2, 6):
    assert np.isnan(loss(Tensor(normal(1, 2, 6)), Tensor([[1, wrong]])).numpy())
