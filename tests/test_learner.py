import functools
import numpy as np
import pytest
from tinygrad import Device, Tensor
from models import FAST, gpt2
from parts.learner import Learner
from transformer import loss

@functools.cache
def taught(pieces:int=1, devices:int=0):
  """What a small model is after three steps, by name."""
  Tensor.manual_seed(1)
  model = gpt2.GPT2(50, 8, 16, 2, 1, **FAST)
  learner = Learner(model, lambda x, y: loss(model(x), y, smoothing=0.1), clip=1.0, pieces=pieces, devices=[f"{Device.DEFAULT}:{i}" for i in range(devices)])
  for step in range(3):
    ids = np.random.default_rng(step).integers(0, 50, (4, 9)).astype(np.int32)
    learner.learn(1e-2, ids[:, :-1].copy(), ids[:, 1:].copy())
  return {name: t.numpy() for name, t in learner.state.items()}

@pytest.mark.parametrize("pieces, devices", [(2, 0), (2, 2)])
def test_a_batch_in_pieces_or_on_several_devices_teaches_what_the_whole_does(pieces, devices):
  """Every parameter, and both moments of its gradient: AdamW's steps alone would hide a gradient that is twice as large."""
  whole, parts = taught(), taught(pieces, devices)
  for name in whole:
    moved = 3e-5 if name.startswith("model.") else 1e-9   # a key's bias, whose gradient is rounding alone, moves so far
    assert np.abs(parts[name] - whole[name]).max() <= 1e-4 * np.abs(whole[name]).max() + moved, name
