import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, normal
from tinygrad import Tensor, dtypes, nn

from tinyformer.kernels import mixed_precision
from tinyformer.kernels.mixed_precision import MixedLinear, attention
from tinyformer.training.trainer import Trainer
from transformer import Linear, causal_mask, loss

B, T, H, K = 2, 5, 3, 7


@pytest.fixture(params=["rounded", "multiplied"])
def way(request, monkeypatch):
  """On the CPU numbers are rounded to bfloat16 and multiplied in float32. What a GPU does is done there too, but tinygrad then rounds each product."""
  if request.param == "multiplied":
    monkeypatch.setattr(mixed_precision, "has_clang", lambda device: False)
  return request.param


def rounded(x: np.ndarray) -> np.ndarray:
  """To 8 bits, the nearest, of two the even one: bfloat16."""
  bits = x.astype(np.float32).view(np.uint32)
  return (
    (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000)
    .astype(np.uint32)
    .view(np.float32)
    .astype(np.float64)
  )


def test_a_product_is_that_of_rounded_numbers_not_itself_rounded(way):
  linear, x, dy = MixedLinear(K, T), normal(B, 40, K), normal(B, 40, T, seed=1)
  linear.weight.replace(Tensor(normal(T, K, seed=2)))
  linear.bias.replace(Tensor(normal(T, seed=3)))
  given = Tensor(x)
  y = linear(given)
  (y * Tensor(dy)).sum().backward()
  Tensor.realize(y, *(grads := [t.grad for t in (given, linear.weight, linear.bias)]))
  weight, bias = linear.weight.numpy(), linear.bias.numpy()
  close = 1e-6 if way == "rounded" else 2**-8
  assert (
    y.dtype == dtypes.float32
    and np.abs(y.numpy() - (rounded(x) @ rounded(weight).T + bias)).max() < 20 * close
  )
  assert np.abs(y.numpy() - (x @ weight.T + bias)).max() > 1e-3
  for got, want in zip(grads, (dy @ weight, np.einsum("btn,btk->nk", dy, x), dy.sum((0, 1)))):
    assert (
      got.dtype == dtypes.float32 and np.abs(got.numpy() - want).max() < 0.02 * np.abs(want).max()
    )


def test_attention_is_that_of_rounded_numbers_with_a_softmax_in_float32(way):
  q, k, v = (normal(B, H, T, K, seed=i) for i in range(3))
  got = attention(Tensor(q), Tensor(k), Tensor(v), causal_mask(T, T))
  scores = rounded(q) @ rounded(k).swapaxes(-1, -2) / math.sqrt(K) + np.triu(
    np.full((T, T), -np.inf), 1
  )
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  want = weights / weights.sum(-1, keepdims=True) @ rounded(v)
  assert got.dtype == dtypes.float32 and np.abs(got.numpy() - want).max() < (
    2e-6 if way == "rounded" else 3e-2
  )


def test_neither_a_sum_nor_a_score_is_rounded(way):
  """301 and 128.5 have no place among bfloat16's 8 bits, where they would be 300 and 128; the ones, 256 and 1 that they are made of have."""
  linear = MixedLinear(301, 1, bias=False)
  linear.weight.replace(Tensor(np.ones((1, 301), np.float32)))
  assert linear(Tensor(np.ones((1, 301), np.float32))).item() == 301
  q, k, v = ([16, 1, 0, 0],), ([16, 1, 0, 0], [16, 0, 0, 0]), ([1, 0, 0, 0], [0, 1, 0, 0])
  got = attention(*(Tensor(np.array([[x]], np.float32)) for x in (q, k, v))).numpy()[0, 0, 0]
  assert got[:2] == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))], abs=2e-3)


@pytest.mark.slow
def test_tensor_cores_take_all_its_products():
  """tinygrad's emulated sm_80 stands for a GPU: there a layer's product and its two gradients, and attention's two, are of rounded numbers, summed up in float32."""
  code = """
import numpy as np
from tinygrad import Tensor
from tinyformer.kernels.mixed_precision import MixedLinear, attention
draw = np.random.default_rng(0)
x, w, dy = (np.rint(draw.normal(0, 9, shape)).astype(np.float32) for shape in ((16, 32), (16, 32), (16, 16)))   # whole numbers below 256 are bfloat16's too
linear, given, slope = MixedLinear(32, 16, bias=False), Tensor(x).realize(), Tensor(dy).realize()
linear.weight.replace(Tensor(w).realize())
y = linear(given)
(y * slope).sum().backward()
for got, want in ((y, x @ w.T), (given.grad, dy @ w), (linear.weight.grad, dy.T @ x)): assert np.abs(got.numpy() - want).max() <= 2**-8 * np.abs(want).max()
assert (linear(given).numpy() == x @ w.T).all()
attention(*(Tensor(draw.normal(size=(1, 2, 16, 16)).astype(np.float32)).realize() for _ in "qkv")).realize()"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {"DEV": "PYTHON::sm_80", "DEBUG": "3", "NOOPT": "0"},
  )
  assert done.returncode == 0, done.stderr
  assert len(re.findall(r"opts: \(Opt\(op=OptOps.TC", done.stdout + done.stderr)) >= 5


class Pairs:
  """Logits of the next token from the last one alone."""

  def __init__(self, linear=MixedLinear):
    self.tokens, self.head = nn.Embedding(11, 6), linear(6, 11)

  def __call__(self, ids: Tensor) -> Tensor:
    return self.head(self.tokens(ids))


def taught(linear, steps: int = 12, rate: float = 0.05):
  """(losses, the state) of a model that was taught what follows each of 11 tokens."""
  Tensor.manual_seed(1)
  model = Pairs(linear)
  learner = Trainer(model, lambda x, y: loss(model(x), y))
  ids = np.arange(44).reshape(4, 11).astype(np.int32) * 3 % 11
  return [
    learner.train_step(rate, ids, (ids * 2 % 11).astype(np.int32)) for _ in range(steps)
  ], learner.state


def test_it_learns_as_float32_does_and_the_same_each_time():
  """12 steps, in which the loss halves: within 1% of float32's, and not the same numbers."""
  mixed, again, whole = taught(MixedLinear)[0], taught(MixedLinear)[0], taught(Linear)[0]
  assert mixed == again and mixed != whole and whole[-1] < whole[0] / 2
  assert mixed == pytest.approx(whole, rel=0.01)


def test_a_step_that_bfloat16_would_swallow_is_kept():
  """Numbers near 1 are 1/128 apart in bfloat16; steps of 1e-6 add up all the same. All that a checkpoint keeps is float32."""
  _, state = taught(MixedLinear, 0)
  before = {name: t.numpy().copy() for name, t in state.items() if name.startswith("model.")}
  _, state = taught(MixedLinear, 3, 1e-6)
  assert {t.dtype for t in state.values()} == {dtypes.float32}
  for name, was in before.items():
    moved = np.abs(state[name].numpy() - was)
    assert 2e-6 < moved.max() < 5e-6, name
