import functools, math
import numpy as np
import pytest
from tinygrad import Device, Tensor, nn
from parts.learner import Learner
from transformer import Linear, loss

class Pairs:
  """Logits of the next token from the last one alone."""
  def __init__(self, dropout:float=0.0): self.tokens, self.head, self.dropout = nn.Embedding(11, 6), Linear(6, 11), dropout
  def __call__(self, ids:Tensor) -> Tensor: return self.head(self.tokens(ids).dropout(self.dropout))

@functools.cache
def taught(pieces:int=1, devices:int=0, clip:float=0.05) -> dict[str, np.ndarray]:
  """What a small model is after three steps, by name, and the losses of the steps."""
  Tensor.manual_seed(1)
  model = Pairs()
  learner = Learner(model, lambda x, y: loss(model(x), y), clip=clip, pieces=pieces, devices=[f"{Device.DEFAULT}:{i}" for i in range(devices)])
  losses = []
  for step in range(3):
    ids = np.random.default_rng(step).integers(0, 11, (4, 9)).astype(np.int32)
    losses.append(learner.learn(1e-2, ids[:, :-1].copy(), ids[:, 1:].copy()))
  return {name: t.numpy() for name, t in learner.state.items()} | {"losses": np.array(losses)}

@pytest.mark.parametrize("pieces, devices, clip", [(2, 0, math.inf), (4, 0, 0.05), (1, 2, 0.05), (2, 2, 0.05)])
def test_a_batch_in_pieces_or_on_several_devices_teaches_what_the_whole_does(pieces, devices, clip):
  """Every parameter, and both moments of its gradient: AdamW's steps alone would hide a gradient that is twice as large, and so would clipping."""
  whole, parts = taught(clip=clip), taught(pieces, devices, clip)
  for name in whole: assert np.abs(parts[name] - whole[name]).max() <= 1e-5 * np.abs(whole[name]).max(), name

@pytest.mark.parametrize("devices", [0, 2])
def test_dropout_draws_anew_in_each_step(devices):
  """Also where nothing was drawn before the first step, as with a model from a file."""
  model = Pairs(dropout=0.5)
  Tensor.realize(*nn.state.get_parameters(model))
  Tensor.manual_seed(1)
  learner = Learner(model, lambda x, y: loss(model(x), y), devices=[f"{Device.DEFAULT}:{i}" for i in range(devices)])
  ids, losses, drawn = np.random.default_rng(0).integers(0, 11, (4, 9)).astype(np.int32), list[float](), list[dict[str, list[int]]]()
  for _ in range(4):
    drawn.append(learner.drawn)
    losses.append(learner.learn(0.0, ids[:, :-1].copy(), ids[:, 1:].copy()))
  assert len(set(losses)) == 4 and len(drawn[0]) == max(1, devices)
  for device in drawn[0]: assert [d[device][0] for d in drawn] == [i * drawn[1][device][0] for i in range(4)] and drawn[1][device][0] > 0
