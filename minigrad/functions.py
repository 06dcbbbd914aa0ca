"""Functions composed of the primitives, which therefore need no backward pass of their own.

The names and their meaning are tinygrad's.
"""

import math
import re

import numpy as np

from minigrad.dtype import dtypes, is_float
from minigrad.helpers import Context


class Functions:
  """The methods of Tensor that only call other methods of Tensor."""

  # **************** dtypes ****************

  def float(self):
    return self.cast(dtypes.float32)

  def int(self):
    return self.cast(dtypes.int32)

  def bool(self):
    return self != 0

  def as_float(self):
    """Return this Tensor, in float32 if it is not floating point."""
    return self if is_float(self.dtype) else self.float()

  # **************** arithmetic ****************

  def __neg__(self):
    return self * -1

  def __sub__(self, y):
    return self + -y

  def __rsub__(self, y):
    return -self + y

  def square(self):
    return self * self

  def sqrt(self):
    return self.as_float() ** 0.5

  def rsqrt(self):
    return 1 / self.sqrt()

  def cos(self):
    return (math.pi / 2 - self.as_float()).sin()

  def sign(self):
    """Return -1, 0 or 1. The gradient is 0."""
    return (self > 0).cast(self.dtype) - (self < 0).cast(self.dtype)

  def abs(self):
    return self * self.sign()

  def zeros_like(self, **kwargs):
    return self.full(self.shape, 0, **{"dtype": self.dtype} | kwargs)

  def minimum(self, y):
    return -(-self).maximum(-y)

  # **************** activations ****************

  def relu(self):
    return (self > 0).where(self, 0)

  def sigmoid(self):
    """Return 1 / (1 + exp(-x)), without overflow: exp is computed of negative numbers only."""
    x = self.as_float()
    e = (x < 0).where(x, -x).exp()
    return (x < 0).where(e, 1) / (1 + e)

  def tanh(self):
    return 2 * (2 * self).sigmoid() - 1

  def silu(self):
    return self * self.sigmoid()

  def erf(self):
    """Approximate the error function within 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26)."""
    t = 1 / (1 + 0.3275911 * self.abs())
    polynomial = t * 1.061405429 - 1.453152027
    for coefficient in (1.421413741, -0.284496736, 0.254829592):
      polynomial = polynomial * t + coefficient
    return self.sign() * (1 - polynomial * t * (-self.square()).exp())

  def gelu(self, approximate="tanh"):
    """Return GELU, or its tanh approximation (Hendrycks & Gimpel 2016, sec. 2)."""
    if approximate == "none":
      return 0.5 * self * (1 + (self / math.sqrt(2)).erf())
    u = math.sqrt(2 / math.pi) * (self + 0.044715 * self * self * self)
    return 0.5 * self * (1 + u.tanh())

  # **************** along an axis ****************

  def mean(self, axis=None, keepdim=False):
    x = self.as_float()
    total = x.sum(axis, keepdim)
    return total / (x.numel() / max(1, total.numel()))

  def softmax(self, axis=-1):
    """Return exp(x) / sum(exp(x)). Subtracting the maximum changes nothing but avoids overflow."""
    e = (self - self.max(axis, keepdim=True).detach()).exp()
    return e / e.sum(axis, keepdim=True)

  def log_softmax(self, axis=-1):
    x = self - self.max(axis, keepdim=True).detach()
    return x - x.exp().sum(axis, keepdim=True).log()

  def cumsum(self, axis=0):
    """Return the sums of the elements up to each position: a product with a triangle of ones."""
    x = self.int() if self.dtype == dtypes.bool else self
    ones = self.full((x.shape[axis], x.shape[axis]), 1, dtype=x.dtype).triu()
    return (x.transpose(axis, -1) @ ones).transpose(axis, -1)

  def triu(self, diagonal=0):
    """Set the elements below a diagonal of the last two axes to 0."""
    row = self.arange(self.shape[-2]).reshape(-1, 1)
    column = self.arange(self.shape[-1])
    return (column - row >= diagonal).where(self, 0)

  def topk(self, k, dim=-1):
    """Return the k largest elements and their indices, largest first."""
    indices = type(self)((-self).data.argsort(dim, kind="stable")).int()
    indices = indices.transpose(dim, -1)[..., :k].transpose(dim, -1)
    return self.gather(dim, indices), indices

  def gather(self, dim, index):
    """Return z with z[.., i, ..] = x[.., index[.., i, ..], ..] along an axis."""
    key = list(np.indices(index.shape, sparse=True))
    key[dim] = index
    return self[tuple(key)]

  # **************** shapes ****************

  T = property(lambda self: self.transpose())

  def transpose(self, dim0=1, dim1=0):
    order = list(range(self.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return self.permute(order)

  def unsqueeze(self, dim):
    """Insert an axis of length 1."""
    dim %= self.ndim + 1
    return self.reshape((*self.shape[:dim], 1, *self.shape[dim:]))

  def squeeze(self, dim):
    """Remove an axis if its length is 1."""
    return self.reshape([n for i, n in enumerate(self.shape) if i != dim % self.ndim or n != 1])

  def flatten(self, start_dim=0):
    start = start_dim % max(1, self.ndim)
    return self.reshape((*self.shape[:start], math.prod(self.shape[start:])))

  def stack(self, *others, dim=0):
    """Concatenate Tensors along a new axis."""
    first, *rest = (t.unsqueeze(dim) for t in (self, *others))
    return first.cat(*rest, dim=dim)

  def chunk(self, chunks, dim=0):
    """Return equal parts along an axis. The last part is shorter if the axis is not a multiple."""
    x = self.transpose(dim, 0)
    size = -(-x.shape[0] // chunks)
    return [x[i : i + size].transpose(dim, 0) for i in range(0, x.shape[0], size)]

  def repeat_interleave(self, repeats, dim):
    """Repeat each element along an axis, next to itself."""
    dim %= self.ndim
    shape = self.shape
    x = self.unsqueeze(dim + 1).expand(*shape[: dim + 1], repeats, *shape[dim + 1 :])
    return x.reshape(*shape[:dim], shape[dim] * repeats, *shape[dim + 1 :])

  def rearrange(self, formula, **sizes):
    """Split, permute and merge axes, as in "b t (h k) -> b h t k" with k=64 (Rogozhnikov 2022).

    In each pair of parentheses on the left, the size of at most one axis may be omitted.
    """
    left, right = (re.findall(r"\([^)]*\)|\w+", side) for side in formula.split("->"))
    for group, size in zip(left, self.shape, strict=True):
      names = group.strip("()").split()
      known = math.prod(sizes.get(name, 1) for name in names)
      for name in names:
        sizes.setdefault(name, size // known)
    names = " ".join(left).replace("(", "").replace(")", "").split()
    order = " ".join(right).replace("(", "").replace(")", "").split()
    x = self.reshape([sizes[name] for name in names]).permute([names.index(n) for n in order])
    return x.reshape([math.prod(sizes[n] for n in group.strip("()").split()) for group in right])

  # **************** regularization ****************

  def dropout(self, p=0.5):
    """In training, set each element to 0 with probability p, and scale the rest by 1 / (1 - p)."""
    if not Context.variables["TRAINING"] or p == 0:
      return self
    return (self.uniform(*self.shape) >= p).where(self, 0) / (1 - p)
