"""Tensor: an array, and the operation that it came from. Tensors and operations form a graph.

`backward` visits the graph from the loss back to its inputs. It is micrograd's algorithm, with
arrays instead of numbers.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import ops, random
from minigrad.dtype import ORDER, dtype_of, dtypes, is_float, promote, promote_number
from minigrad.functions import Functions
from minigrad.helpers import Context

DTYPES = frozenset(ORDER)


def unary(function: type[ops.Function]) -> Any:
  """Return a method that applies a primitive of one float."""
  return lambda x: apply(function, x.as_float())


def binary(function: type[ops.Function]) -> Any:
  """Return a method that applies a primitive of two inputs, after broadcasting them."""
  return lambda x, y: apply(function, *broadcast(x, y))


def comparison(compare: Callable) -> Any:
  """Return a method that compares elements. Truth values have no gradient."""
  return lambda x, y: wrap(compare(*(t.data for t in broadcast(x, y))))


def reduction(function: type[ops.Function]) -> Any:
  """Return a method that applies Sum or Max over an axis, several axes, or all axes (None)."""

  def method(x: "Tensor", axis: Any = None, keepdim: bool = False) -> "Tensor":
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(i % x.ndim for i in axes)
    z = apply(function, x, axes=axes)
    return z if keepdim else z.reshape([n for i, n in enumerate(x.shape) if i not in axes])

  return method


def wrap(data: Any, node: Any = None) -> "Tensor":
  """Return a Tensor that shares the memory of an array, and needs a gradient if it has a node."""
  t = Tensor.__new__(Tensor)
  t.data, t.node, t.grad = np.asarray(data), node, None
  t.needs_grad = node is not None
  return t


def apply(function: type[ops.Function], *inputs: "Tensor", **settings: Any) -> "Tensor":
  """Apply a primitive to Tensors, and record it if a gradient may be needed."""
  node = function()
  recording = Context.variables["RECORD"] or Context.variables["TRAINING"]
  node.needs = tuple(bool(recording and t.needs_grad) for t in inputs)
  with np.errstate(all="ignore"):  # infinity and NaN are results, as in tinygrad
    z = node.forward(*(t.data for t in inputs), **settings)
  if not any(node.needs) or not is_float(z.dtype):
    return wrap(z)
  node.inputs = inputs
  return wrap(z, node)


class Tensor(Functions):
  """An array with a gradient.

  data: the numpy array.  node: the operation that computed it, or None for a leaf of the graph.
  grad: the gradient that `backward` computed, a Tensor, or None.
  needs_grad: whether `backward` computes a gradient. It does for floating-point Tensors, except
    detached ones and those that depend on Python numbers only.
  """

  device = "NUMPY"

  def __init__(self, data: Any, device: str | None = None, dtype: Any = None):
    """Copy an array, a number or nested lists of numbers. There is one device.

    Raises ValueError if minigrad.dtype does not list the dtype.
    """
    if dtype is None and not isinstance(data, np.ndarray):
      dtype = dtype_of(data)
    self.data = np.array(data, dtype)
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype {self.dtype} is not one of {', '.join(map(str, ORDER))}: convert it")
    self.node: Any = None
    self.needs_grad = is_float(self.dtype)
    self.grad: Tensor | None = None

  # **************** the graph ****************

  def graph(self) -> list["Tensor"]:
    """Return this Tensor and those that it was computed from, each after its inputs."""
    order: list[Tensor] = []
    visited: set[int] = set()
    stack = [(self, False)]  # not a recursion: a model's graph is deeper than Python's stack
    while stack:
      t, has_its_inputs_in_order = stack.pop()
      if has_its_inputs_in_order:
        order.append(t)
      elif id(t) not in visited:
        visited.add(id(t))
        stack.append((t, True))
        stack.extend((x, False) for x in (t.node.inputs if t.node else ()) if x.needs_grad)
    return order

  def gradients(self, gradient: "Tensor | None" = None) -> list[tuple["Tensor", np.ndarray]]:
    """Return the Tensors of the graph and their gradients, from this one back to the leaves.

    gradient: the gradient with respect to this Tensor; None is 1, for a single number.
    Raises RuntimeError if it is None and there are several numbers, or if they are not floats.
    """
    if (gradient is None and self.shape) or not is_float(self.dtype):
      raise RuntimeError(f"{self.dtype} of shape {self.shape} has no gradient: compute one float")
    order = self.graph()[::-1]
    found = {id(self): np.ones((), self.dtype) if gradient is None else gradient.data}
    for t in (t for t in order if t.node):
      with np.errstate(all="ignore"):
        dxs = t.node.backward(found[id(t)])
      for x, dx in zip(t.node.inputs, dxs, strict=True):
        if x.needs_grad:
          # A Tensor that is used twice receives the sum of two gradients.
          found[id(x)] = found[id(x)] + dx if id(x) in found else dx
    return [(t, found[id(t)]) for t in order]

  def backward(self, gradient: "Tensor | None" = None) -> "Tensor":
    """Add the gradient of this Tensor to the `grad` of all Tensors in its graph, and return it."""
    for t, g in self.gradients(gradient):
      t.grad = wrap(g if t.grad is None else t.grad.data + g)
    return self

  def gradient(self, *targets: "Tensor", gradient: "Tensor | None" = None) -> list["Tensor"]:
    """Return the gradient of this Tensor with respect to each target, without setting `grad`."""
    found = {id(t): g for t, g in self.gradients(gradient)}
    return [wrap(found.get(id(t), np.zeros_like(t.data))) for t in targets]

  def detach(self) -> "Tensor":
    """Return a Tensor with the same memory, through which no gradient flows."""
    return wrap(self.data)

  # **************** data ****************

  shape: Any = property(lambda self: self.data.shape)
  ndim: Any = property(lambda self: self.data.ndim)
  dtype: Any = property(lambda self: self.data.dtype)

  def numel(self) -> int:
    return self.data.size

  def numpy(self) -> np.ndarray:
    """Return a copy of the array."""
    return self.data.copy()

  def tolist(self) -> Any:
    return self.data.tolist()

  def item(self) -> float:
    return self.data.item()

  def __bool__(self) -> bool:
    raise TypeError("a Tensor is neither true nor false: compare it, then use item() or where()")

  def __repr__(self) -> str:
    return f"Tensor({self.data!r})"

  def assign(self, x: "Tensor") -> "Tensor":
    """Overwrite the memory, which a slice shares with its Tensor: `cache[:, 3:5].assign(x)`."""
    assert x.dtype == self.dtype, f"cannot assign {x.dtype} to {self.dtype}: cast it"
    self.data[...] = x.data
    return self

  def replace(self, x: "Tensor") -> "Tensor":
    """Use the memory of another Tensor of the same shape."""
    assert x.shape == self.shape, f"a Tensor of shape {self.shape} cannot have shape {x.shape}"
    self.data = x.data
    return self

  def realize(self, *others: "Tensor") -> "Tensor":
    """Return this Tensor. tinygrad computes it here; minigrad has already done so."""
    return self

  contiguous = realize

  # **************** creation ****************

  @staticmethod
  def full(shape: tuple[int, ...], value: float, **kwargs: Any) -> "Tensor":
    return Tensor(np.full(shape, value, kwargs.pop("dtype", dtype_of(value))), **kwargs)

  @staticmethod
  def zeros(*shape: Any, **kwargs: Any) -> "Tensor":
    return Tensor.full(sizes(shape), 0.0, **kwargs)

  @staticmethod
  def ones(*shape: Any, **kwargs: Any) -> "Tensor":
    return Tensor.full(sizes(shape), 1.0, **kwargs)

  @staticmethod
  def empty(*shape: Any, dtype: Any = dtypes.float32) -> "Tensor":
    """Return memory that is not initialized. It is not in use before something is assigned."""
    t = wrap(np.empty(sizes(shape), dtype))
    t.needs_grad = is_float(t.dtype)
    return t

  @staticmethod
  def arange(*bounds: float, **kwargs: Any) -> "Tensor":
    """Return the numbers from start (0) to stop, which is excluded, in steps (1), as in numpy."""
    return Tensor(np.arange(*bounds), **{"dtype": dtype_of(bounds)} | kwargs)

  manual_seed = staticmethod(random.manual_seed)

  eye = staticmethod(lambda n: Tensor(np.eye(n), dtype=dtypes.float32))

  @staticmethod
  def uniform(*shape: Any, low: float = 0.0, high: float = 1.0) -> "Tensor":
    return Tensor(random.generator().uniform(low, high, sizes(shape)), dtype=dtypes.float32)

  @staticmethod
  def normal(*shape: Any, mean: float = 0.0, std: float = 1.0) -> "Tensor":
    return Tensor(random.generator().normal(mean, std, sizes(shape)), dtype=dtypes.float32)

  @staticmethod
  def glorot_uniform(*shape: Any) -> "Tensor":
    """Return uniform numbers of variance 2 / (in + out) (Glorot & Bengio 2010, eq. 16)."""
    rows, *columns = sizes(shape)
    bound = math.sqrt(6 / (rows + math.prod(columns)))
    return Tensor.uniform(rows, *columns, low=-bound, high=bound)

  # **************** elementwise ****************

  exp = unary(ops.Exp)
  log = unary(ops.Log)
  sin = unary(ops.Sin)
  __add__ = __radd__ = binary(ops.Add)
  __mul__ = __rmul__ = binary(ops.Multiply)
  __pow__ = binary(ops.Power)
  __lt__ = comparison(np.less)
  __le__ = comparison(np.less_equal)
  __gt__ = comparison(np.greater)
  __ge__ = comparison(np.greater_equal)
  __and__ = comparison(np.bitwise_and)
  __eq__ = comparison(np.equal)  # type: ignore[assignment]
  __ne__ = comparison(np.not_equal)  # type: ignore[assignment]
  __hash__ = object.__hash__

  def __truediv__(self, y: Any) -> "Tensor":
    return apply(ops.Divide, *(t.as_float() for t in broadcast(self, y)))

  def __rtruediv__(self, y: Any) -> "Tensor":
    return apply(ops.Divide, *(t.as_float() for t in broadcast(y, self)))

  def __rpow__(self, y: Any) -> "Tensor":
    return apply(ops.Power, *broadcast(y, self))

  def __imul__(self, y: Any) -> "Tensor":  # type: ignore[misc]
    return self.assign(self * y)

  def maximum(self, y: Any) -> "Tensor":
    """Return the larger of two elements. Equal elements receive half of the gradient each."""
    x, y = broadcast(self, y)
    return x.stack(y.expand(x.shape)).max(0)

  def where(self, x: Any, y: Any) -> "Tensor":
    """Return x where this is true, and y elsewhere."""
    x, y = broadcast(x, y)
    shape = np.broadcast_shapes(self.shape, x.shape, y.shape)
    return apply(ops.Where, *(t.expand(shape) for t in (self.bool(), x, y)))

  def cast(self, dtype: Any) -> "Tensor":
    """Return this Tensor in another dtype, such as dtypes.int32 or "int32"."""
    return self if self.dtype == dtype else apply(ops.Cast, self, dtype=np.dtype(dtype))

  # **************** products, reductions and movement ****************

  def matmul(self, y: "Tensor") -> "Tensor":
    """Return the matrix product: (..., M, K), (..., K, N) -> (..., M, N). Batch axes broadcast."""
    dtype = promote(self.dtype, y.dtype)
    x, y = self.cast(dtype), y.cast(dtype)
    if y.ndim > 2:
      batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
      x, y = (t.expand((*batch, *t.shape[-2:])) for t in (x, y))
    return apply(ops.MatMul, x, y)

  __matmul__ = matmul

  sum = reduction(ops.Sum)
  max = reduction(ops.Max)

  def reshape(self, *shape: Any) -> "Tensor":
    """Return this Tensor in another shape. One size may be -1, and is computed."""
    return apply(ops.Reshape, self, shape=sizes(shape))

  def permute(self, *order: Any) -> "Tensor":
    return apply(ops.Permute, self, order=tuple(i % self.ndim for i in sizes(order)))

  def expand(self, *shape: Any) -> "Tensor":
    """Repeat along axes of length 1, and along new axes in front."""
    shape = sizes(shape)
    if shape == self.shape:
      return self
    new_axes = (1,) * (len(shape) - self.ndim)
    return apply(ops.Expand, self.reshape(new_axes + self.shape), shape=shape)

  def cat(self, *others: "Tensor", dim: int = 0) -> "Tensor":
    """Concatenate Tensors along an axis."""
    tensors = (self, *others)
    dtype = max((t.dtype for t in tensors), key=ORDER.index)
    return apply(ops.Cat, *(t.cast(dtype) for t in tensors), axis=dim)

  def __getitem__(self, key: Any) -> "Tensor":
    """Return the elements at integers, slices, None, ... and Tensors of indices, as in numpy."""
    keys = key if isinstance(key, tuple) else (key,)
    arrays = tuple(k.data if isinstance(k, Tensor) else k for k in keys)
    return apply(ops.Index, self, key=arrays)


def sizes(shape: tuple) -> tuple[int, ...]:
  """Return the sizes given as f(2, 3) or as f((2, 3))."""
  return tuple(shape[0]) if shape and isinstance(shape[0], tuple | list) else shape


def broadcast(x: Any, y: Any) -> tuple[Tensor, Tensor]:
  """Return two Tensors or numbers as Tensors of one dtype and shape. A number has no axes."""
  if not isinstance(x, Tensor):
    x, y = broadcast(y if isinstance(y, Tensor) else Tensor(y).detach(), x)
    return y, x
  if not isinstance(y, Tensor):
    dtype = promote_number(x.dtype, y)
    return x.cast(dtype), wrap(np.array(y, dtype))
  dtype = promote(x.dtype, y.dtype)
  shape = np.broadcast_shapes(x.shape, y.shape)
  return x.cast(dtype).expand(shape), y.cast(dtype).expand(shape)
