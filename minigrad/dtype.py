"""Dtypes, which are numpy's, and tinygrad's rules for mixing them."""

import math
from typing import Any

import numpy as np

DType = np.dtype


class dtypes:  # noqa: N801 - tinygrad's name
  """The supported dtypes."""

  bool = np.dtype("bool")
  int32 = np.dtype("int32")
  int64 = np.dtype("int64")
  float16 = np.dtype("float16")
  float32 = np.dtype("float32")
  float64 = np.dtype("float64")


# In a mixed operation, the later dtype wins. Numpy would compute int32 + float32 in float64.
ORDER = [dtypes.bool, dtypes.int32, dtypes.int64, dtypes.float16, dtypes.float32, dtypes.float64]
# The dtype of Python's truth values, integers and floats, by numpy's letter for their kind.
BY_KIND = {"b": dtypes.bool, "i": dtypes.int32, "f": dtypes.float32}


def dtype_of(value: Any) -> DType:
  """Return the dtype of a Python number, or of nested lists of numbers."""
  return BY_KIND[np.asarray(value).dtype.kind]


def promote(x: DType, y: DType) -> DType:
  """Return the dtype of an operation on two Tensors."""
  return max(x, y, key=ORDER.index)


def promote_number(x: DType, number: float) -> DType:
  """Return the dtype of an operation on a Tensor and a Python number."""
  return x if is_float(x) else promote(x, dtype_of(number))


def is_float(dtype: DType) -> bool:
  """Return whether a dtype is floating point. Only Tensors of such a dtype have gradients."""
  return dtype.kind == "f"


def smallest(dtype: DType) -> float:
  """Return the smallest value of a dtype, which is the maximum of no elements."""
  if is_float(dtype):
    return -math.inf
  return 0 if dtype == dtypes.bool else int(np.iinfo(dtype).min)
