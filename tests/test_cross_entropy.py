"""The cross-entropy kernel equals transformer.loss."""

import numpy as np
import pytest
from conftest import normal
from tinygrad import Device, Tensor

import transformer
from tinyformer.kernels.cross_entropy import loss


@pytest.mark.parametrize(
  "shape, smoothing", [((1, 1, 5), 0.1), ((2, 3, 16), 0), ((2, 7, 33), 0.1), ((3, 40, 1000), 0)]
)
def test_loss_and_its_gradient_equal_the_plain_loss(shape, smoothing):
  logits = normal(*shape) * 5
  target = np.random.default_rng(0).integers(0, shape[-1], shape[:2])
  if target.size > 1:
    # -1 is ignored.
    target.flat[1] = -1
    # e^x of these logits is 0 unless their maximum is subtracted first.
    logits[0, 0] -= 1e4
  if not smoothing:
    # A token with probability 0.
    logits[0, 0, 3] = -np.inf
  results = []
  for function in (loss, transformer.loss):
    t = Tensor(logits).realize()
    value = function(t, Tensor(target, dtype="int32"), smoothing)
    (gradient,) = (value * 3).gradient(t)
    results.append([value.numpy(), gradient.numpy()])
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_targets_of_another_shape_are_rejected():
  logits = Tensor(normal(4, 6, 5))
  for shape in ((6, 4), (24,)):
    with pytest.raises((IndexError, RuntimeError, ValueError, AssertionError)):
      loss(logits, Tensor.zeros(*shape, dtype="int32")).realize()


@pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the kernel runs on the CPU only")
def test_a_target_outside_the_vocabulary_gives_nan():
  for target in (-2, 6):
    assert np.isnan(loss(Tensor(normal(1, 2, 6)), Tensor([[1, target]])).numpy())
