"""The primitives: each has its forward pass beside its backward pass.

`forward` computes z from arrays. `backward` receives dz, the gradient of the loss with respect to
z, and returns the gradient with respect to each input: the chain rule for one operation. Everything
else is composed of these (functions.py), so nothing else needs a backward pass.

The inputs of an elementwise primitive have equal shapes, except that a number may be an array
without axes: tensor.py broadcasts with Expand.
"""

from typing import Any

import numpy as np

from minigrad.dtype import DType, smallest

Gradient = np.ndarray | None


class Function:
  """A node of the graph: one use of a primitive, with what its backward pass needs.

  inputs: the Tensors that it was applied to.
  needs: for each input, whether its gradient is wanted. If not, the gradient may be None.
  """

  inputs: tuple[Any, ...] = ()
  needs: tuple[bool, ...] = ()
  forward: Any
  backward: Any


# **************** elementwise ****************


class Add(Function):
  """z = x + y.  dx = dz,  dy = dz."""

  def forward(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x + y

  def backward(self, dz: np.ndarray) -> tuple[Gradient, Gradient]:
    return dz, dz


class Multiply(Function):
  """z = x y.  dx = dz y,  dy = dz x."""

  def forward(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    self.x, self.y = x, y
    return x * y

  def backward(self, dz: np.ndarray) -> tuple[Gradient, Gradient]:
    dx = dz * self.y if self.needs[0] else None
    dy = dz * self.x if self.needs[1] else None
    return dx, dy


class Divide(Function):
  """z = x / y.  dx = dz / y,  dy = -dz z / y."""

  def forward(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    self.y, self.z = y, x / y
    return self.z

  def backward(self, dz: np.ndarray) -> tuple[Gradient, Gradient]:
    dx = dz / self.y if self.needs[0] else None
    dy = -dz * self.z / self.y if self.needs[1] else None
    return dx, dy


class Power(Function):
  """z = x^y.  dx = dz y x^(y - 1),  dy = dz z ln(x).

  dx is 0 if y is 0, also at x = 0. dy is 0 at x = 0.
  """

  def forward(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    self.x, self.y, self.z = x, y, x**y
    return self.z

  def backward(self, dz: np.ndarray) -> tuple[Gradient, Gradient]:
    dx = dz * np.where(self.y == 0, 0, self.y * self.x ** (self.y - 1)) if self.needs[0] else None
    dy = dz * np.where(self.x == 0, 0, self.z * np.log(self.x)) if self.needs[1] else None
    return dx, dy


class Exp(Function):
  """z = exp(x).  dx = dz z."""

  def forward(self, x: np.ndarray) -> np.ndarray:
    self.z = np.exp(x)
    return self.z

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (dz * self.z,)


class Log(Function):
  """z = ln(x).  dx = dz / x."""

  def forward(self, x: np.ndarray) -> np.ndarray:
    self.x = x
    return np.log(x)

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (dz / self.x,)


class Sin(Function):
  """z = sin(x).  dx = dz cos(x)."""

  def forward(self, x: np.ndarray) -> np.ndarray:
    self.x = x
    return np.sin(x)

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (dz * np.cos(self.x),)


class Where(Function):
  """z = x where the condition holds, else y.  dx = dz or 0,  dy = 0 or dz."""

  def forward(self, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    self.condition = condition
    return np.where(condition, x, y)

  def backward(self, dz: np.ndarray) -> tuple[Gradient, Gradient, Gradient]:
    dx = np.where(self.condition, dz, 0) if self.needs[1] else None
    dy = np.where(self.condition, 0, dz) if self.needs[2] else None
    return None, dx, dy


class Cast(Function):
  """z = x in another dtype.  dx = dz in the dtype of x."""

  def forward(self, x: np.ndarray, dtype: DType) -> np.ndarray:
    self.dtype_of_x = x.dtype
    return x.astype(dtype)

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (dz.astype(self.dtype_of_x),)


# **************** products and reductions ****************


class MatMul(Function):
  """Z = X Y.  dX = dZ Y^T,  dY = X^T dZ.

  X (..., M, K), Y (..., K, N) -> (..., M, N). If Y has no batch axes, those of X are rows, so that
  numpy's BLAS computes a single product.
  """

  def forward(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    self.x, self.y = x, y
    return product(x, y)

  def backward(self, dz: np.ndarray) -> tuple[Gradient, Gradient]:
    x, y = self.x, self.y
    dx = product(dz, y.swapaxes(-1, -2)) if self.needs[0] else None
    if y.ndim == 2:
      x, dz = rows(x), rows(dz)
    dy = product(x.swapaxes(-1, -2), dz) if self.needs[1] else None
    return dx, dy


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return X Y."""
  if y.ndim == 2 and x.ndim > 2:
    return (rows(x) @ y).reshape(*x.shape[:-1], y.shape[-1])
  return x @ y


def rows(x: np.ndarray) -> np.ndarray:
  """Return x (..., K) as a matrix (product of ..., K)."""
  return x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])


class Sum(Function):
  """z = the sum over some axes, which remain with length 1.  dx = dz, repeated along them."""

  def forward(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    self.shape = x.shape
    dtype = np.int32 if x.dtype == bool else x.dtype
    accumulator = np.float32 if x.dtype == np.float16 else dtype
    return x.sum(axes, keepdims=True, dtype=accumulator).astype(dtype, copy=False)

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (np.broadcast_to(dz, self.shape),)


class Max(Function):
  """z = the maximum over some axes, which remain with length 1.  dx = dz at the maximum, else 0.

  If n elements are equal to the maximum, each receives dz / n.
  """

  def forward(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    self.x, self.axes = x, axes
    self.z = x.max(axes, keepdims=True, initial=smallest(x.dtype))
    return self.z

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    is_max = (self.x == self.z).astype(dz.dtype)
    return (dz * is_max / is_max.sum(self.axes, keepdims=True),)


# **************** movement ****************


class Reshape(Function):
  """z = x in another shape, with the elements in the same order.  dx = dz in the shape of x."""

  def forward(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    self.shape = x.shape
    return x.reshape(shape)

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (dz.reshape(self.shape),)


class Permute(Function):
  """z = x with its axes in another order.  dx = dz with its axes in the original order."""

  def forward(self, x: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    self.order = order
    return x.transpose(order)

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (dz.transpose(np.argsort(self.order)),)


class Expand(Function):
  """z = x repeated along axes of length 1.  dx = the sum of dz over these axes.

  Every broadcast is an Expand. A parameter that is used at many positions therefore receives the
  sum of their gradients.
  """

  def forward(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    self.axes = tuple(i for i, n in enumerate(x.shape) if n != shape[i])
    return np.broadcast_to(x, shape)

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    return (dz.sum(self.axes, keepdims=True),)


class Cat(Function):
  """z = the inputs, one after another along an axis.  dx = the corresponding slice of dz."""

  def forward(self, *xs: np.ndarray, axis: int) -> np.ndarray:
    self.axis = axis
    self.ends = np.cumsum([x.shape[axis] for x in xs])
    return np.concatenate(xs, axis)

  def backward(self, dz: np.ndarray) -> tuple[Gradient, ...]:
    return tuple(np.split(dz, self.ends[:-1], self.axis))


class Index(Function):
  """z = x[key].  dx = 0, to which each element of dz is added at the index from which it was read.

  key: integers, slices and arrays of indices, as in numpy. An element that is read n times, such as
  the embedding of a frequent token, receives the sum of n gradients.
  """

  def forward(self, x: np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
    self.shape, self.key = x.shape, key
    return x[key]

  def backward(self, dz: np.ndarray) -> tuple[Gradient]:
    dx = np.zeros(self.shape, dz.dtype)
    if any(isinstance(k, np.ndarray) for k in self.key):
      np.add.at(dx, self.key, dz)
    else:
      dx[self.key] = dz  # slices read no element twice
    return (dx,)
