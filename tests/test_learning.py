"""Test that the encoder-decoder of transformer.py learns to reverse sequences."""

import numpy as np
import pytest
from tinygrad import Context, Tensor, TinyJit, nn

import transformer

pytestmark = pytest.mark.slow
START = 0
VOCAB_SIZE = 12
LENGTH = 5


def train_to_reverse(num_steps: int) -> tuple[float, float]:
  """Train a small Transformer to reverse random sequences.

  Returns the share of correct tokens in greedy generation and the training loss of the last step.
  """
  Tensor.manual_seed(0)
  rng = np.random.default_rng(0)
  model = transformer.Transformer(VOCAB_SIZE, 32, 4, 64, num_layers=1, dropout=0)
  optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=3e-3, b2=0.98)

  @TinyJit
  def train_step(source: Tensor, shifted: Tensor, target: Tensor) -> Tensor:
    with Context(TRAINING=1):
      optimizer.zero_grad()
      loss = transformer.loss(model(source, shifted), target, smoothing=0).backward()
      return loss.realize(*optimizer.schedule_step())

  def sample_batch(n: int) -> tuple[np.ndarray, np.ndarray]:
    source = rng.integers(1, VOCAB_SIZE, (n, LENGTH)).astype(np.int32)
    return source, source[:, ::-1].copy()

  for _ in range(num_steps):
    source, target = sample_batch(64)
    shifted = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    loss = train_step(*(Tensor(x).realize() for x in (source, shifted, target))).item()
  source, target = sample_batch(200)
  generated = np.full((200, LENGTH + 1), START, np.int32)
  for t in range(LENGTH):
    logits = model(Tensor(source), Tensor(generated[:, :-1].copy())).numpy()
    generated[:, t + 1] = logits[:, t].argmax(-1)
  return (generated[:, 1:] == target).mean(), loss


def test_encoder_decoder_learns_to_reverse():
  accuracy, _ = train_to_reverse(600)
  assert accuracy > 0.99


def test_model_without_a_causal_mask_learns_to_copy_its_input(monkeypatch):
  monkeypatch.setattr(transformer, "causal_mask", lambda T, S: Tensor.zeros(T, S))
  accuracy, loss = train_to_reverse(600)
  # The training loss is low because the decoder's input contains the target.
  assert loss < 0.1
  assert accuracy < 0.9
