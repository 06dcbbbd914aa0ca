"""minigrad's operations: values, dtypes and shapes against tinygrad, gradients against differences.

Each operation is a function that runs on both backends, because minigrad has tinygrad's names.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinygrad
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import dtypes


class Operation(NamedTuple):
  """An operation on arrays that `inputs` draws from a random generator and a shape.

  function: takes the Tensors; `other` makes more Tensors of the same backend.
  """

  function: Callable[..., Any]
  inputs: Callable[[np.random.Generator, tuple[int, ...]], list[np.ndarray]]


def normal(rng, shape):
  return [rng.standard_normal(shape)]


def positive(rng, shape):
  return [rng.uniform(0.1, 3, shape)]


def pair(rng, shape):
  """Return arrays of a shape, and of a shape that broadcasts with it."""
  axes = rng.integers(0, 2, len(shape)).astype(bool)
  other = tuple(1 if axis else n for axis, n in zip(axes, shape, strict=True))
  skipped = rng.integers(0, len(shape) + 1)
  return [rng.standard_normal(shape), rng.standard_normal(other[skipped:])]


def positive_pair(rng, shape):
  x, y = pair(rng, shape)
  return [np.abs(x) + 0.1, np.abs(y) + 0.1]


def matrices(rng, shape):
  *batch, _ = shape
  return [rng.standard_normal((*shape, 3)), rng.standard_normal((*batch, 3, 2))]


def matrix_and_weight(rng, shape):
  return [rng.standard_normal((*shape, 3)), rng.standard_normal((3, 2))]


def last_first(x):
  return x.transpose(0, -1) if x.ndim > 1 else x


UNARY = {
  "negate": lambda x: -x,
  "exp": lambda x: x.exp(),
  "sin": lambda x: x.sin(),
  "cos": lambda x: x.cos(),
  "square": lambda x: x.square(),
  "cube": lambda x: x**3,
  "abs": lambda x: x.abs(),
  "sign": lambda x: x.sign() * x,
  "relu": lambda x: x.relu(),
  "sigmoid": lambda x: x.sigmoid(),
  "tanh": lambda x: x.tanh(),
  "silu": lambda x: x.silu(),
  "erf": lambda x: x.erf(),
  "gelu": lambda x: x.gelu(approximate="none"),
  "gelu_tanh": lambda x: x.gelu(approximate="tanh"),
  "add a number": lambda x: 1 + x + 2,
  "subtract from a number": lambda x: 1 - x,
  "divide by a number": lambda x: x / 3,
  "power of a number": lambda x: 2**x,
  "maximum with a number": lambda x: x.maximum(0.5),
  "minimum with a number": lambda x: x.minimum(0.5),
  "use twice": lambda x: x * x + x,
  "where with a number": lambda x: (x > 0.1).where(x, 2.0),
  "masked with -inf": lambda x: (x > 0.1).where(x, -math.inf).maximum(-3),
  "cast": lambda x: x.cast("float32") * x.float(),
}
POSITIVE = {
  "log": lambda x: x.log(),
  "sqrt": lambda x: x.sqrt(),
  "rsqrt": lambda x: x.rsqrt(),
  "divide a number": lambda x: 2 / x,
  "fractional power": lambda x: x**1.7,
}
PAIRS = {
  "add": lambda x, y: x + y,
  "subtract": lambda x, y: x - y,
  "multiply": lambda x, y: x * y,
  "maximum": lambda x, y: x.maximum(y),
  "minimum": lambda x, y: x.minimum(y),
  "where": lambda x, y: (x > y).where(x, y),
}
POSITIVE_PAIRS = {"divide": lambda x, y: x / y, "power": lambda x, y: x**y}
REDUCTIONS = {
  "sum": lambda x: x.sum(),
  "sum of the first axis": lambda x: x.sum(0),
  "sum of two axes": lambda x: x.unsqueeze(0).sum((0, -1), keepdim=True),
  "max": lambda x: x.max(),
  "max of the last axis": lambda x: x.max(-1, keepdim=True),
  "mean": lambda x: x.mean(-1),
  "softmax": lambda x: x.softmax(-1) * x,
  "log_softmax": lambda x: x.log_softmax(0) * x,
  "cumsum": lambda x: x.cumsum(0),
}
MOVEMENT = {
  "reshape": lambda x: last_first(x).reshape(-1) * 2,
  "permute": lambda x: x.unsqueeze(0).permute(-1, *range(x.ndim)),
  "transpose": last_first,
  "expand": lambda x: x.unsqueeze(-1).expand(*x.shape, 2),
  "expand a new axis": lambda x: x.expand(2, *x.shape),
  "reversed slice": lambda x: x[::-1] * x,
  "strided slice": lambda x: x[..., 1::2],
  "integer index": lambda x: x.unsqueeze(0)[0],
  "new axis": lambda x: x[None, ..., None],
  "cat": lambda x: x.cat(x * 2, x[:1], dim=0),
  "stack": lambda x: type(x).stack(x, x * x, dim=-1),
  "chunk": lambda x: x.chunk(2, dim=0)[0] * 3,
  "flatten": lambda x: x.unsqueeze(0).flatten(1),
  "squeeze": lambda x: x.unsqueeze(1).squeeze(1).squeeze(0),
  "repeat_interleave": lambda x: x.repeat_interleave(2, 0) * 2,
  "rearrange": lambda x: x.unsqueeze(0).flatten(1).rearrange("a (b c) -> c (a b)", c=1),
  "triu": lambda x: x.unsqueeze(0).expand(3, *x.shape).flatten(1).triu(1),
  "embedding": lambda x: x[type(x)([[0, 0], [-1, 0]])],
  "two indices": lambda x: x.unsqueeze(1)[type(x)([0, 0, -1]), 0],
  "gather": lambda x: x.gather(0, type(x)([0, 0]).reshape(2, *[1] * (x.ndim - 1))),
  "topk": lambda x: x.topk(1, dim=-1)[0],
}
OPERATIONS = (
  {name: Operation(f, normal) for name, f in (UNARY | REDUCTIONS | MOVEMENT).items()}
  | {name: Operation(f, positive) for name, f in POSITIVE.items()}
  | {name: Operation(f, pair) for name, f in PAIRS.items()}
  | {name: Operation(f, positive_pair) for name, f in POSITIVE_PAIRS.items()}
  | {"matmul": Operation(lambda x, y: x @ y, matrices)}
  | {"matmul with a weight": Operation(lambda x, y: x @ y, matrix_and_weight)}
)
# Operations that read element 0 of an axis, or split it.
NOT_EMPTY = {"embedding", "two indices", "gather", "topk", "rearrange", "chunk", "mean", "triu"}
NOT_EMPTY |= {"strided slice", "flatten", "reshape"}
every_operation = pytest.mark.parametrize("name", OPERATIONS)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
SEEDS = st.integers(0, 2**16)


def arrays(name: str, shape: tuple[int, ...], seed: int, dtype="float64") -> list[np.ndarray]:
  rng = np.random.default_rng(seed)
  return [np.array(x, dtype) for x in OPERATIONS[name].inputs(rng, shape)]


def evaluate(backend, name: str, inputs: list[np.ndarray]) -> tuple[Any, list[Any]]:
  """Return the result on a backend and the gradients of its sum, weighted by cosines."""
  tensors = [backend.Tensor(x) for x in inputs]
  z = OPERATIONS[name].function(*tensors)
  weights = np.cos(np.arange(z.numel())).reshape(z.shape).astype(inputs[0].dtype)
  return z, (z * backend.Tensor(weights)).sum().gradient(*tensors)


def differences(f: Callable[[], float], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
  """Return the derivative of f with respect to each element of x, by central differences."""
  gradient = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    value = x[i]
    x[i] = value + step
    above = f()
    x[i] = value - step
    gradient[i] = (above - f()) / (2 * step)
    x[i] = value
  return gradient


@every_operation
@settings(max_examples=12, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_each_gradient_equals_finite_differences_in_float64(name, shape, seed):
  inputs = arrays(name, shape, seed)
  z, gradients = evaluate(minigrad, name, inputs)
  weights = np.cos(np.arange(z.numel())).reshape(z.shape)

  def objective() -> float:
    tensors = [minigrad.Tensor(x) for x in inputs]
    return float((OPERATIONS[name].function(*tensors).numpy() * weights).sum())

  # float32 has too few digits for a difference.
  step, tolerance = (1e-2, 2e-2) if name == "cast" else (1e-6, 1e-6)
  for x, gradient in zip(inputs, gradients, strict=True):
    assert gradient.shape == x.shape
    expected = differences(objective, x, step)
    np.testing.assert_allclose(gradient.numpy(), expected, tolerance, 10 * tolerance)


def compare(name: str, inputs: list[np.ndarray], tolerance: float = 2e-6) -> None:
  """Assert that both backends compute the same values, dtypes and gradients."""
  z, gradients = evaluate(minigrad, name, inputs)
  expected, expected_gradients = evaluate(tinygrad, name, inputs)
  tinygrad.Tensor.realize(expected, *expected_gradients)
  for a, b in zip([z, *gradients], [expected, *expected_gradients], strict=True):
    want = b.numpy()
    assert a.shape == want.shape
    assert a.dtype == want.dtype
    np.testing.assert_allclose(a.numpy(), want, tolerance, tolerance * max(1, scale_of(want)))


def scale_of(x: np.ndarray) -> float:
  return float(np.abs(x[np.isfinite(x)]).max(initial=0))


@every_operation
def test_each_operation_equals_tinygrads(name):
  compare(name, arrays(name, (3, 4), seed=1, dtype="float32"))


@pytest.mark.slow
@every_operation
@settings(max_examples=8, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_each_operation_equals_tinygrads_for_any_shape(name, shape, seed):
  compare(name, arrays(name, shape, seed, dtype="float32"))


@pytest.mark.slow
@every_operation
@settings(max_examples=4, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_each_operation_equals_tinygrads_in_float16(name, shape, seed):
  compare(name, arrays(name, shape, seed, dtype="float16"), tolerance=1e-2)


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - NOT_EMPTY))
def test_each_operation_on_an_empty_axis_has_tinygrads_shape(name):
  inputs = arrays(name, (2, 0), seed=0, dtype="float32")
  z, gradients = evaluate(minigrad, name, inputs)
  expected, _ = evaluate(tinygrad, name, inputs)
  assert z.shape == expected.shape
  assert [g.shape for g in gradients] == [x.shape for x in inputs]


def test_reductions_of_no_elements_are_tinygrads():
  for reduce in (lambda x: x.sum(0), lambda x: x.max(0)):
    ours = reduce(minigrad.Tensor(np.zeros((0, 3), np.float32)))
    assert ours.tolist() == reduce(tinygrad.Tensor.empty(0, 3)).tolist()


def test_equal_maxima_share_the_gradient_equally():
  x = minigrad.Tensor([1.0, 3.0, 3.0, 2.0])
  assert x.max().gradient(x)[0].tolist() == [0, 0.5, 0.5, 0]
  y = minigrad.Tensor([3.0, 3.0, 0.0, 5.0])
  dx, dy = x.maximum(y).sum().gradient(x, y)
  assert dx.tolist() == [0, 0.5, 1, 0]
  assert dy.tolist() == [1, 0.5, 0, 1]


def test_sigmoid_and_its_gradient_are_finite_for_large_inputs():
  x = minigrad.Tensor([-1000.0, -90.0, 0.0, 90.0, 1000.0])
  [gradient] = x.sigmoid().sum().gradient(x)
  assert np.isfinite(x.sigmoid().numpy()).all()
  assert gradient.tolist()[2] == 0.25
  assert np.isfinite(gradient.numpy()).all()


# dtypes

OPERANDS = {
  "bool": np.array([True, False]),
  "int32": np.array([1, 2], np.int32),
  "int64": np.array([1, 2], np.int64),
  "float16": np.array([1, 2], np.float16),
  "float32": np.array([1, 2], np.float32),
  "float64": np.array([1, 2], np.float64),
  "a float": 0.5,
  "an integer": 3,
}
MIXED = {
  "add": lambda x, y: x + y,
  "multiply": lambda x, y: y * x,
  "divide": lambda x, y: x / y,
  "maximum": lambda x, y: x.maximum(y),
  "where": lambda x, y: (x > 0).where(x, y),
  "compare": lambda x, y: x > y,
}
UNARY_DTYPES = {
  "exp": lambda x: x.exp(),
  "sqrt": lambda x: x.sqrt(),
  "sigmoid": lambda x: x.sigmoid(),
  "square": lambda x: x.square(),
  "sum": lambda x: x.sum(),
  "mean": lambda x: x.mean(),
  "max": lambda x: x.max(),
  "softmax": lambda x: x.softmax(-1),
  "cumsum": lambda x: x.cumsum(0),
  "matmul": lambda x: x.reshape(1, 2) @ x.reshape(2, 1),
  "float": lambda x: x.float(),
  "bool": lambda x: x.bool(),
  "int": lambda x: x.int(),
  "topk": lambda x: x.topk(1)[1],
  "zeros_like": lambda x: x.zeros_like(),
}
# The dtype that tinygrad gives a result that depends on a Python number becomes one of these.
WEAK = {"weakint": "int", "weakfloat": "float"}
NAMES = {"bool": "bool", "int": "int32", "long": "int64", "half": "float16", "float": "float32"}
NAMES |= {"double": "float64"}


def tinygrad_dtype(t) -> str:
  name = str(t.dtype).removeprefix("dtypes.")
  return NAMES[WEAK.get(name, name)]


@pytest.mark.parametrize("right", OPERANDS)
@pytest.mark.parametrize("left", [name for name in OPERANDS if name in NAMES.values()])
def test_two_dtypes_are_promoted_as_in_tinygrad(left, right):
  x, y = OPERANDS[left], OPERANDS[right]
  is_array = isinstance(y, np.ndarray)
  for name, function in MIXED.items():
    if (left, right) == ("bool", "bool") and name in ("add", "multiply"):
      continue  # tinygrad's sum of truth values is a truth value, but that of numpy is not used
    ours = function(minigrad.Tensor(x), minigrad.Tensor(y) if is_array else y)
    theirs = function(tinygrad.Tensor(x), tinygrad.Tensor(y) if is_array else y)
    assert str(ours.dtype) == tinygrad_dtype(theirs), name


@pytest.mark.parametrize("dtype", [name for name in OPERANDS if name in NAMES.values()])
def test_functions_have_tinygrads_dtypes(dtype):
  x = OPERANDS[dtype]
  for name, function in UNARY_DTYPES.items():
    ours, theirs = function(minigrad.Tensor(x)), function(tinygrad.Tensor(x))
    assert str(ours.dtype) == tinygrad_dtype(theirs), name


@pytest.mark.parametrize("data", [3, 2.5, True, [1, 2], [1.5, 2], [[True], [False]], [], [1, True]])
def test_tensors_of_numbers_have_tinygrads_dtypes(data):
  assert str(minigrad.Tensor(data).dtype) == tinygrad_dtype(tinygrad.Tensor(data))


@pytest.mark.parametrize("bounds", [(3,), (1, 7, 2), (0.0, 1.0, 0.25), (5, 0, -1), (0,)])
def test_arange_equals_tinygrads(bounds):
  ours, theirs = minigrad.Tensor.arange(*bounds), tinygrad.Tensor.arange(*bounds)
  assert str(ours.dtype) == tinygrad_dtype(theirs)
  assert ours.tolist() == theirs.tolist()


def test_an_unsupported_dtype_is_named():
  with pytest.raises(ValueError, match="complex128 is not one of bool, int32"):
    minigrad.Tensor(np.zeros(2, complex))


def test_creation():
  Tensor = minigrad.Tensor
  assert Tensor.zeros(2, 1).tolist() == [[0], [0]]
  assert Tensor.ones((2, 1)).tolist() == [[1], [1]]
  assert Tensor.full((2,), 7).dtype == dtypes.int32
  assert Tensor.eye(2).tolist() == [[1, 0], [0, 1]]
  assert Tensor.zeros(2, dtype=dtypes.int32).dtype == dtypes.int32
  assert Tensor.empty(2, 0, 3).shape == (2, 0, 3)
