"""minigrad's graph, memory, random numbers, layers and optimizer."""

import math

import numpy as np
import pytest
import tinygrad
from conftest import normal

import minigrad
from minigrad import Context, Tensor, dtypes, nn, random

# the graph


def test_the_gradient_of_a_tensor_that_is_used_twice_is_the_sum():
  x = Tensor([3.0])
  (x * x + 2 * x).sum().backward()
  assert x.grad.tolist() == [2 * 3 + 2]


def test_backward_adds_to_the_gradients_of_earlier_calls():
  x = Tensor([1.0, 2.0])
  (x * 3).sum().backward()
  (x * 4).sum().backward()
  assert x.grad.tolist() == [7, 7]


def test_backward_sets_the_gradients_of_intermediate_tensors_too():
  x = Tensor(2.0)
  y = x * 5
  z = (y * y).backward()
  assert (z.grad.item(), y.grad.item(), x.grad.item()) == (1, 20, 100)


def test_a_diamond_is_visited_once_per_tensor():
  x = Tensor(1.5)
  y = x
  for _ in range(40):  # 2^40 paths
    y = y + y
  y.backward()
  assert x.grad.item() == 2.0**40


def test_each_tensor_comes_after_its_inputs_in_the_graph():
  x = Tensor(2.0)
  y = x.exp()
  z = y * x + y
  order = z.graph()
  position = {id(t): i for i, t in enumerate(order)}
  assert order[-1] is z
  for t in order:
    for source in t.node.inputs if t.node else ():
      assert position[id(source)] < position[id(t)]


def test_a_graph_may_be_deeper_than_pythons_stack():
  x = Tensor(1.0)
  y = x
  for _ in range(5000):
    y = y + 1
  y.backward()
  assert x.grad.item() == 1


def test_no_gradient_flows_through_detach():
  x = Tensor([2.0, 3.0])
  (x * x.detach()).sum().backward()
  assert x.grad.tolist() == [2, 3]
  assert x.detach().sum().gradient(x)[0].tolist() == [0, 0]


def test_gradient_does_not_set_grad():
  x, y = Tensor([1.0, 2.0]), Tensor([5.0])
  dx, dy, dother = (x * y).sum().gradient(x, y, Tensor([1.0, 1.0]))
  assert (dx.tolist(), dy.tolist(), dother.tolist()) == ([5, 5], [3], [0, 0])
  assert x.grad is None


def test_a_gradient_can_be_passed_in_for_several_numbers():
  x = Tensor([1.0, 2.0])
  (x * x).backward(Tensor([10.0, 100.0]))
  assert x.grad.tolist() == [20, 400]


def test_only_a_single_float_has_a_gradient():
  for t in (Tensor([1.0, 2.0]), Tensor(1)):
    with pytest.raises(RuntimeError, match="compute one float"):
      t.backward()


def test_integers_and_truth_values_are_not_part_of_the_graph():
  x = Tensor([1.0, -2.0])
  assert not (x > 0).needs_grad
  assert not x.int().needs_grad
  y = (x > 0).where(x, 0).sum()
  assert {t.dtype for t in y.graph()} == {dtypes.float32}


def test_the_gradient_of_a_cast_has_the_dtype_of_its_input():
  x = Tensor([1.0, 2.0], dtype=dtypes.float16)
  x.float().sum().backward()
  assert x.grad.dtype == dtypes.float16


def test_constants_need_no_gradient():
  mask = (Tensor.arange(3) > 1).where(-math.inf, 0.0)
  assert not mask.needs_grad
  assert mask.node is None


def test_without_a_record_the_inputs_are_not_kept():
  x = Tensor([1.0])
  with Context(RECORD=0):
    assert (x * 2).node is None
    with Context(TRAINING=1):
      assert (x * 2).node is not None
  assert (x * 2).node is not None


# memory


def test_assigning_to_a_slice_writes_to_the_tensor():
  cache = Tensor.zeros(2, 5)
  cache[:, 1:3].assign(Tensor([[1.0, 2.0], [3.0, 4.0]]))
  assert cache.tolist() == [[0, 1, 2, 0, 0], [0, 3, 4, 0, 0]]


def test_a_tensor_does_not_share_the_memory_of_the_callers_array():
  array = np.ones(2, np.float32)
  t = Tensor(array)
  t.assign(Tensor([5.0, 6.0]))
  assert array.tolist() == [1, 1]
  t.numpy()[0] = 9
  assert t.tolist() == [5, 6]


def test_in_place_multiplication_keeps_the_tensor():
  t = same = Tensor([2.0])
  t *= 3
  assert same.tolist() == [6]


def test_replace_checks_the_shape():
  t = Tensor([1.0, 2.0])
  assert t.replace(Tensor([3.0, 4.0])).tolist() == [3, 4]
  with pytest.raises(AssertionError, match=r"\(2,\)"):
    t.replace(Tensor([1.0]))


def test_a_tensor_is_neither_true_nor_false():
  with pytest.raises(TypeError, match="neither true nor false"):
    bool(Tensor([1.0]))


# random numbers


def test_the_seed_determines_the_random_numbers():
  def draw():
    return Tensor.normal(3).tolist(), Tensor.uniform(3).tolist()

  Tensor.manual_seed(1)
  first = draw()
  second = draw()
  Tensor.manual_seed(1)
  assert draw() == first
  assert second != first
  Tensor.manual_seed(2)
  assert draw() != first


def test_the_state_of_the_random_numbers_can_be_restored():
  Tensor.manual_seed(3)
  Tensor.normal(2)
  state = dict(random.state)
  expected = Tensor.normal(5).tolist()
  random.state.update(state)
  assert Tensor.normal(5).tolist() == expected


def test_distributions():
  Tensor.manual_seed(0)
  x = Tensor.normal(10_000, mean=3, std=0.5).numpy()
  assert abs(x.mean() - 3) < 0.03
  assert abs(x.std() - 0.5) < 0.02
  w = Tensor.glorot_uniform(100, 200).numpy()
  assert abs(w.var() - 2 / 300) < 2e-4
  assert np.abs(w).max() < math.sqrt(6 / 300)


def test_dropout_is_active_in_training_only_and_keeps_the_mean():
  Tensor.manual_seed(0)
  x = Tensor.ones(100, 100)
  assert x.dropout(0.3) is x
  with Context(TRAINING=1):
    y = x.dropout(0.3)
  values = y.numpy()
  assert abs((values == 0).mean() - 0.3) < 0.02
  assert np.allclose(values[values > 0], 1 / 0.7)
  y.sum().backward()
  assert x.grad.tolist() == y.tolist()


# layers and the optimizer


class Module:
  """A module with Tensors in lists, dicts and modules."""

  def __init__(self, backend):
    self.blocks = [backend.nn.LayerNorm(3), {"inner": backend.nn.RMSNorm(2)}]
    self.name, self.none = "x", None
    self.tokens = backend.nn.Embedding(4, 3)
    self.function = lambda: None


def test_the_state_dict_has_tinygrads_names():
  ours = minigrad.nn.state.get_state_dict(Module(minigrad))
  theirs = tinygrad.nn.state.get_state_dict(Module(tinygrad))
  assert list(ours) == list(theirs)
  assert [t.shape for t in minigrad.nn.state.get_parameters(Module(minigrad))] == [
    t.shape for t in theirs.values()
  ]


@pytest.mark.parametrize(
  "make, shape",
  [
    (lambda nn: nn.LayerNorm(6, 1e-3), (2, 5, 6)),
    (lambda nn: nn.RMSNorm(6, 1e-3), (2, 5, 6)),
    (lambda nn: nn.Conv1d(6, 4, 3, padding=1, groups=2), (2, 6, 5)),
  ],
)
def test_layers_equal_tinygrads(make, shape):
  ours, theirs = make(nn), make(tinygrad.nn)
  x = normal(*shape, seed=9)
  for i, name in enumerate(tinygrad.nn.state.get_state_dict(theirs)):
    values = normal(*getattr(theirs, name).shape, seed=i)
    setattr(ours, name, Tensor(values))
    setattr(theirs, name, tinygrad.Tensor(values))
  np.testing.assert_allclose(
    ours(Tensor(x)).numpy(), theirs(tinygrad.Tensor(x)).numpy(), rtol=1e-5, atol=1e-5
  )


def test_adamw_follows_the_algorithm():
  """Compare two steps with algorithm 2 of Loshchilov & Hutter 2019, in plain Python."""
  lr, b1, b2, eps, decay = 0.1, 0.8, 0.9, 1e-8, 0.2
  t = Tensor([1.0, -2.0], dtype=dtypes.float64)
  unused = Tensor([7.0])
  optimizer = nn.optim.AdamW([t, unused], lr=lr, b1=b1, b2=b2, eps=eps, weight_decay=decay)
  values, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
  for step in (1, 2):
    optimizer.zero_grad()
    (t * t * t).sum().backward()
    optimizer.step()
    for i, x in enumerate(values):
      g = 3 * x * x
      m[i] = b1 * m[i] + (1 - b1) * g
      v[i] = b2 * v[i] + (1 - b2) * g * g
      m_hat, v_hat = m[i] / (1 - b1**step), v[i] / (1 - b2**step)
      values[i] = x - lr * (m_hat / (math.sqrt(v_hat) + eps) + decay * x)
  assert t.tolist() == pytest.approx(values, rel=1e-12)
  assert unused.tolist() == [7]


def test_adamw_learns_a_line():
  Tensor.manual_seed(0)
  x = Tensor(normal(64, 2))
  target = x @ Tensor([[2.0], [-1.0]]) + 0.5
  weight, bias = Tensor.zeros(2, 1), Tensor.zeros(1)
  optimizer = nn.optim.AdamW([weight, bias], lr=0.1, weight_decay=0)
  for _ in range(200):
    optimizer.zero_grad()
    (x @ weight + bias - target).square().mean().backward()
    optimizer.step()
  assert weight.tolist() == [pytest.approx([2], abs=0.01), pytest.approx([-1], abs=0.01)]
  assert bias.tolist() == pytest.approx([0.5], abs=0.01)
