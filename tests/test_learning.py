import numpy as np
import pytest
from tinygrad import Context, Tensor, TinyJit, nn

import transformer

pytestmark = pytest.mark.slow
START, VOCAB, LENGTH = 0, 12, 5


def accuracy_of_reversal(steps: int) -> tuple[float, float]:
  """Teaches a small Transformer to reverse random sequences: (share of tokens right when it writes by itself, its last loss)."""
  Tensor.manual_seed(0)
  draw = np.random.default_rng(0)
  model = transformer.Transformer(VOCAB, 32, 4, 64, num_layers=1, dropout=0)
  optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=3e-3, b2=0.98)

  @TinyJit
  def step(source: Tensor, shifted: Tensor, target: Tensor) -> Tensor:
    with Context(TRAINING=1):
      optimizer.zero_grad()
      loss = transformer.loss(model(source, shifted), target, smoothing=0).backward()
      return loss.realize(*optimizer.schedule_step())

  def batch(n: int) -> tuple[np.ndarray, np.ndarray]:
    source = draw.integers(1, VOCAB, (n, LENGTH)).astype(np.int32)
    return source, source[:, ::-1].copy()

  for _ in range(steps):
    source, target = batch(64)
    shifted = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    loss = step(*(Tensor(x).realize() for x in (source, shifted, target))).item()
  source, target = batch(200)
  written = np.full((200, LENGTH + 1), START, np.int32)
  for t in range(LENGTH):
    written[:, t + 1] = (
      model(Tensor(source), Tensor(written[:, :-1].copy())).numpy()[:, t].argmax(-1)
    )
  return (written[:, 1:] == target).mean(), loss


def test_an_encoder_decoder_learns_to_reverse():
  accuracy, _ = accuracy_of_reversal(600)
  assert accuracy > 0.99


def test_with_a_leaky_mask_it_learns_to_copy_what_it_should_not_see(monkeypatch):
  monkeypatch.setattr(transformer, "causal_mask", lambda T, S: Tensor.zeros(T, S))
  accuracy, loss = accuracy_of_reversal(600)
  assert loss < 0.1 and accuracy < 0.9  # the loss is low because the answer is in the input
