import functools
import math

import numpy as np
import pytest
from tinygrad import Device, Tensor, nn

from tinyformer.training.trainer import Trainer
from transformer import Linear, loss


class Pairs:
  """Logits of the next token from the last one alone."""

  def __init__(self, dropout: float = 0.0):
    self.tokens, self.head, self.dropout = nn.Embedding(11, 6), Linear(6, 11), dropout

  def __call__(self, ids: Tensor) -> Tensor:
    return self.head(self.tokens(ids).dropout(self.dropout))


@functools.cache
def taught(pieces: int = 1, devices: int = 0, clip: float = 0.05) -> dict[str, np.ndarray]:
  """What a small model is after three steps, by name, and the losses of the steps."""
  Tensor.manual_seed(1)
  model = Pairs()
  learner = Trainer(
    model,
    lambda x, y: loss(model(x), y),
    clip=clip,
    pieces=pieces,
    devices=[f"{Device.DEFAULT}:{i}" for i in range(devices)],
  )
  losses = []
  for step in range(3):
    ids = np.random.default_rng(step).integers(0, 11, (4, 9)).astype(np.int32)
    losses.append(learner.train_step(1e-2, ids[:, :-1].copy(), ids[:, 1:].copy()))
  other = Pairs()
  learner.copy_to(other)
  copied = {f"copied.{name}": t.numpy() for name, t in nn.state.get_state_dict(other).items()}
  return (
    {name: t.numpy() for name, t in learner.state.items()} | {"losses": np.array(losses)} | copied
  )


@pytest.mark.parametrize(
  "pieces, devices, clip",
  [
    (2, 0, math.inf),
    (2, 2, 0.05),
    *(pytest.param(*ways, marks=pytest.mark.slow) for ways in ((4, 0, 0.05), (1, 2, 0.05))),
  ],
)
def test_a_batch_in_pieces_or_on_several_devices_teaches_what_the_whole_does(pieces, devices, clip):
  """Every parameter, and both moments of its gradient: AdamW's steps alone would hide a gradient that is twice as large, and so would clipping."""
  whole, parts = taught(clip=clip), taught(pieces, devices, clip)
  for name in whole:
    assert np.abs(parts[name] - whole[name]).max() <= 1e-5 * np.abs(whole[name]).max(), name
  for name in ("tokens.weight", "head.weight", "head.bias"):
    assert (parts[f"copied.{name}"] == parts[f"model.{name}"]).all()  # onto one device


class Slopes:
  """A loss whose gradient is what it is told."""

  def __init__(self):
    self.matrix, self.bias = Tensor.ones(3, 4).contiguous(), Tensor.ones(4).contiguous()

  def __call__(self, matrix: Tensor, bias: Tensor) -> Tensor:
    return (self.matrix * matrix).sum() + (self.bias * bias).sum()


def test_a_step_is_adamws_of_the_clipped_gradient_and_only_matrices_decay():
  """Loshchilov & Hutter 2019, algorithm 2, with the step's rate on its decay, in numpy."""
  model, rates, clip, decay, b1, b2 = Slopes(), (0.1, 0.05, 0.2), 3.0, 0.5, 0.9, 0.95
  learner = Trainer(model, model, weight_decay=decay, clip=clip, b2=b2)
  want, m, v = [np.ones((3, 4)), np.ones(4)], [0.0, 0.0], [0.0, 0.0]
  for t, rate in enumerate(rates, 1):
    slopes = [
      np.random.default_rng(t).normal(0, 0.3 * t, shape).astype(np.float32)
      for shape in ((3, 4), (4,))
    ]  # their length is below 3, then above
    value = learner.train_step(rate, *slopes)
    assert value == pytest.approx(
      sum((w * g).sum() for w, g in zip(want, slopes)), rel=1e-4, abs=1e-5
    )
    length = math.sqrt(sum((g**2).sum() for g in slopes))
    assert (length > clip) == (t == 3)
    for i, g in enumerate(slopes):
      g = g * min(1, clip / length)
      m[i], v[i] = b1 * m[i] + (1 - b1) * g, b2 * v[i] + (1 - b2) * g**2
      want[i] = want[i] - rate * (
        m[i] / (1 - b1**t) / (np.sqrt(v[i] / (1 - b2**t)) + 1e-8)
        + (decay if i == 0 else 0) * want[i]
      )
  assert model.matrix.numpy() == pytest.approx(
    want[0], rel=1e-4
  ) and model.bias.numpy() == pytest.approx(want[1], rel=1e-4)


@pytest.mark.parametrize("devices", [0, 2])
def test_dropout_draws_anew_in_each_step(devices):
  """Also where nothing was drawn before the first step, as with a model from a file."""
  model = Pairs(dropout=0.5)
  Tensor.realize(*nn.state.get_parameters(model))
  Tensor.manual_seed(1)
  learner = Trainer(
    model, lambda x, y: loss(model(x), y), devices=[f"{Device.DEFAULT}:{i}" for i in range(devices)]
  )
  ids, losses, rng_state = (
    np.random.default_rng(0).integers(0, 11, (4, 9)).astype(np.int32),
    list[float](),
    list[dict[str, list[int]]](),
  )
  for _ in range(4):
    rng_state.append(learner.rng_state)
    losses.append(learner.train_step(0.0, ids[:, :-1].copy(), ids[:, 1:].copy()))
  assert len(set(losses)) == 4 and len(rng_state[0]) == max(1, devices)
  for device in rng_state[0]:
    assert [d[device][0] for d in rng_state] == [
      i * rng_state[1][device][0] for i in range(4)
    ] and rng_state[1][device][0] > 0
