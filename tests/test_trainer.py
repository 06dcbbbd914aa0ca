"""The training step and loop: accumulation, data parallelism, AdamW, clipping, dropout, saving."""

import functools
import math

import numpy as np
import pytest
from tinygrad import Device, Tensor, nn

from models.gpt2 import GPT2, GPT2Config
from tinyformer.kernels import language_model_loss
from tinyformer.training import random_state
from tinyformer.training import trainer as training
from tinyformer.training.run import TrainConfig
from tinyformer.training.trainer import Trainer
from transformer import Linear, loss


class BigramModel:
  """Logits of the next token that depend on the last token only."""

  def __init__(self, dropout: float = 0.0):
    self.tokens = nn.Embedding(11, 6)
    self.head = Linear(6, 11)
    self.dropout = dropout

  def __call__(self, ids: Tensor) -> Tensor:
    return self.head(self.tokens(ids).dropout(self.dropout))


def device_names(count: int) -> tuple[str, ...]:
  return tuple(f"{Device.DEFAULT}:{i}" for i in range(count))


@functools.cache
def train(
  grad_accum_steps: int = 1, num_devices: int = 0, clip: float = 0.05
) -> dict[str, np.ndarray]:
  """Train a BigramModel for three steps.

  Returns the state of the trainer by name, the losses, and the parameters after `copy_to` another
  model, as "copied.NAME".
  """
  Tensor.manual_seed(1)
  model = BigramModel()
  config = TrainConfig(
    clip=clip, grad_accum_steps=grad_accum_steps, devices=device_names(num_devices)
  )
  trainer = Trainer(model, lambda x, y: loss(model(x), y), config)
  losses = []
  for step in range(3):
    ids = np.random.default_rng(step).integers(0, 11, (4, 9)).astype(np.int32)
    losses.append(trainer.train_step(1e-2, ids[:, :-1].copy(), ids[:, 1:].copy()))
  other = BigramModel()
  trainer.copy_to(other)
  copied = {f"copied.{name}": t.numpy() for name, t in nn.state.get_state_dict(other).items()}
  state = {name: t.numpy() for name, t in trainer.state.items()}
  return state | {"losses": np.array(losses)} | copied


@pytest.mark.parametrize(
  "grad_accum_steps, num_devices, clip",
  [
    (2, 0, math.inf),
    (2, 2, 0.05),
    pytest.param(4, 0, 0.05, marks=pytest.mark.slow),
    pytest.param(1, 2, 0.05, marks=pytest.mark.slow),
  ],
)
def test_accumulated_and_data_parallel_steps_equal_steps_on_full_batches(
  grad_accum_steps, num_devices, clip
):
  """All parameters and both moments of their gradients are equal.

  The parameters alone would hide a gradient that is twice too large, because AdamW and clipping
  normalize the gradient.
  """
  expected = train(clip=clip)
  actual = train(grad_accum_steps, num_devices, clip)
  for name, value in expected.items():
    assert np.abs(actual[name] - value).max() <= 1e-5 * np.abs(value).max(), name
  for name in ("tokens.weight", "head.weight", "head.bias"):
    assert (actual[f"copied.{name}"] == actual[f"model.{name}"]).all()


class LinearLoss:
  """A loss whose gradients are its arguments."""

  def __init__(self):
    self.matrix = Tensor.ones(3, 4).contiguous()
    self.bias = Tensor.ones(4).contiguous()

  def __call__(self, matrix: Tensor, bias: Tensor) -> Tensor:
    return (self.matrix * matrix).sum() + (self.bias * bias).sum()


def test_a_step_is_adamw_with_the_clipped_gradient_and_decays_matrices_only():
  """The expected values are those of Loshchilov & Hutter (2019), algorithm 2, in numpy.

  The weight decay is multiplied by the learning rate of the step.
  """
  model = LinearLoss()
  clip, decay, b1, b2 = 3.0, 0.5, 0.8, 0.95
  trainer = Trainer(model, model, TrainConfig(weight_decay=decay, clip=clip, betas=(b1, b2)))
  expected = [np.ones((3, 4)), np.ones(4)]
  m = [0.0, 0.0]
  v = [0.0, 0.0]
  for t, learning_rate in enumerate((0.1, 0.05, 0.2), 1):
    # Both gradients come from the same seed; their norm grows with t.
    gradients = [
      np.random.default_rng(t).normal(0, 0.3 * t, shape).astype(np.float32)
      for shape in ((3, 4), (4,))
    ]
    value = trainer.train_step(learning_rate, *gradients)
    expected_loss = sum((w * g).sum() for w, g in zip(expected, gradients, strict=True))
    assert value == pytest.approx(expected_loss, rel=1e-4, abs=1e-5)
    norm = math.sqrt(sum((g**2).sum() for g in gradients))
    # Only the gradient of the third step is clipped.
    assert (norm > clip) == (t == 3)
    for i, gradient in enumerate(gradients):
      g = gradient * min(1, clip / norm)
      m[i] = b1 * m[i] + (1 - b1) * g
      v[i] = b2 * v[i] + (1 - b2) * g**2
      m_hat = m[i] / (1 - b1**t)
      v_hat = v[i] / (1 - b2**t)
      decayed = decay * expected[i] if i == 0 else 0
      expected[i] = expected[i] - learning_rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + decayed)
  assert model.matrix.numpy() == pytest.approx(expected[0], rel=1e-4)
  assert model.bias.numpy() == pytest.approx(expected[1], rel=1e-4)


class PartlyTrained(LinearLoss):
  """A LinearLoss with a parameter before the others that the loss does not depend on."""

  def __init__(self):
    self.unused = Tensor.full((3, 4), 2.0)
    super().__init__()


@pytest.mark.parametrize("clip", [1.0, math.inf])
@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_a_parameter_without_a_gradient_is_skipped(grad_accum_steps, clip):
  """It has the shape of the next parameter, whose gradient would fit. Nothing decays it."""
  rng = np.random.default_rng(0)
  batch = [rng.normal(0, 1, (2, *shape)).astype(np.float32) for shape in ((3, 4), (4,))]
  states = []
  for model in (LinearLoss(), PartlyTrained()):

    def mean_loss(matrices, biases, model=model):
      return model(matrices.mean(0), biases.mean(0))

    config = TrainConfig(weight_decay=0.5, clip=clip, grad_accum_steps=grad_accum_steps)
    trainer = Trainer(model, mean_loss, config)
    for _ in range(2):
      trainer.train_step(0.1, *batch)
    states.append({name: t.numpy() for name, t in trainer.state.items()})
  expected, actual = states
  assert (actual["model.unused"] == 2).all()
  # The moments of the matrices are numbered; number 0 is now that of the unused parameter.
  for moment in (0, 1):
    assert not actual[f"optimizer.0.{moment}.0"].any()
    assert (actual[f"optimizer.0.{moment}.1"] == expected[f"optimizer.0.{moment}.0"]).all()
    assert expected[f"optimizer.0.{moment}.0"].any()
  for name in ("model.matrix", "model.bias", "optimizer.1.0.0", "optimizer.1.1.0"):
    assert (actual[name] == expected[name]).all(), name


def trained_gpt2(smoothing: float = 0, **options) -> tuple[Trainer, list[float]]:
  """Return the trainer of a small GPT-2 with dropout, and the losses of three steps."""
  Tensor.manual_seed(1)
  model = GPT2(GPT2Config(11, 8, 12, 3, 2, dropout=0.2))
  trainer = Trainer(model, language_model_loss(model, smoothing), TrainConfig(**options))
  losses = []
  for step in range(3):
    ids = np.random.default_rng(step).integers(0, 11, (4, 9)).astype(np.int32)
    losses.append(trainer.train_step(1e-2, ids[:, :-1].copy(), ids[:, 1:].copy()))
  return trainer, losses


def test_a_later_trainer_loads_the_cached_step_and_trains_equally(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  first, expected = trained_gpt2()
  second, losses = trained_gpt2()
  assert first.compiled_step.is_new
  assert not second.compiled_step.is_new
  assert losses == expected
  for name, t in first.state.items():
    np.testing.assert_array_equal(second.state[name].numpy(), t.numpy())


@pytest.mark.parametrize(
  "settings", [dict(smoothing=0.1), dict(clip=1.0), dict(weight_decay=0.0), dict(betas=(0.5, 0.9))]
)
def test_a_step_with_another_loss_or_optimizer_is_not_loaded(monkeypatch, tmp_path, settings):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  trained_gpt2()
  trainer, _ = trained_gpt2(**settings)
  assert trainer.compiled_step.is_new


@pytest.mark.slow
def test_accumulated_steps_equal_those_of_an_earlier_trainer(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  _, expected = trained_gpt2(grad_accum_steps=2)
  _, losses = trained_gpt2(grad_accum_steps=2)
  assert losses == expected


def test_a_loss_without_parameters_is_an_error():
  model = LinearLoss()
  trainer = Trainer(model, lambda x: x.sum())
  with pytest.raises(ValueError, match="depends on no parameter"):
    trainer.train_step(0.1, np.ones(4, np.float32))


class RecordedRun:
  """A run that records what `train` calls. It saves after the second of four steps."""

  steps = 4
  eval_interval = 3

  def __init__(self, step: int = 0):
    self.step = step
    self.recent_losses: list[float] = []
    self.calls: list[str] = []

  def learning_rate(self, step: int) -> float:
    self.calls.append(f"learning rate {step}")
    return 0.1

  def batch(self, step: int) -> tuple[int]:
    self.calls.append(f"batch {step}")
    return (step,)

  def train_step(self, learning_rate: float, batch: int) -> float:
    self.calls.append(f"train on {batch} at {learning_rate}")
    return batch / 2

  def report(self, loss: float) -> None:
    self.calls.append(f"step {self.step}: loss {loss}")

  def evaluate(self) -> None:
    self.calls.append(f"evaluate {self.recent_losses}")
    self.recent_losses = []

  def save_is_due(self) -> bool:
    return self.step == 2

  def save(self) -> None:
    self.calls.append(f"save {self.step}")


def step_calls(step: int) -> list[str]:
  """Return the calls of a step that neither evaluates nor saves."""
  return [
    f"learning rate {step}",
    f"batch {step}",
    f"train on {step} at 0.1",
    f"step {step + 1}: loss {step / 2}",
  ]


def test_the_loop_evaluates_at_the_interval_and_at_the_last_step():
  run = RecordedRun()
  training.train(run, run)
  assert run.calls == [
    *step_calls(0),
    *step_calls(1),
    "save 2",
    *step_calls(2),
    "evaluate [0.0, 0.5, 1.0]",
    *step_calls(3),
    "evaluate [1.5]",
  ]


def test_an_interrupted_loop_saves_after_the_step_and_returns():
  run = RecordedRun()
  training.train(run, run, interrupted=lambda: run.step == 1)
  assert run.calls == [*step_calls(0), "save 1"]


def test_a_finished_run_is_neither_trained_nor_saved():
  run = RecordedRun(step=4)
  training.train(run, run)
  assert not run.calls


@pytest.mark.parametrize("num_devices", [0, 2])
def test_dropout_uses_new_random_numbers_in_each_step(num_devices):
  """This also holds if no random number was used before the first step, as for loaded weights."""
  model = BigramModel(dropout=0.5)
  Tensor.realize(*nn.state.get_parameters(model))
  Tensor.manual_seed(1)
  config = TrainConfig(devices=device_names(num_devices))
  trainer = Trainer(model, lambda x, y: loss(model(x), y), config)
  ids = np.random.default_rng(0).integers(0, 11, (4, 9)).astype(np.int32)
  losses = []
  rng_states = []
  for _ in range(4):
    rng_states.append(random_state.get_rng_state())
    losses.append(trainer.train_step(0.0, ids[:, :-1].copy(), ids[:, 1:].copy()))
  assert len(set(losses)) == 4
  assert len(rng_states[0]) == max(1, num_devices)
  for device in rng_states[0]:
    per_step = rng_states[1][device][0]
    assert per_step > 0
    assert [state[device][0] for state in rng_states] == [i * per_step for i in range(4)]
