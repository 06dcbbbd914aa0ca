"""Our own Tensor on numpy, with reverse-mode automatic differentiation.

It offers the part of tinygrad's API that transformer.py, layers/ and models/ use, so that they run
on it unchanged. Read ops.py (the primitives), tensor.py (the graph), functions.py (everything that
is composed of the primitives), then nn/. docs/minigrad.md explains the design.

>>> from minigrad import Tensor
>>> x = Tensor([1.0, 2.0, 3.0])
>>> (x * x).sum().backward().item()
14.0
>>> x.grad.tolist()
[2.0, 4.0, 6.0]
"""

from minigrad import nn
from minigrad.dtype import dtypes
from minigrad.helpers import Context
from minigrad.tensor import Tensor

__all__ = ["Context", "Device", "Tensor", "dtypes", "nn"]


class Device:
  """The device, under the name that tinygrad has for it."""

  DEFAULT = "NUMPY"
