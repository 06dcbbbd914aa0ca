"""Optional speed: faster parts for models, and compiled steps."""

from layers.parts import Parts
from tinyformer.backend import is_minigrad


def default_parts() -> Parts:
  """Return the fastest parts for the backend and its default device."""
  if is_minigrad():
    from tinyformer.kernels.numpy_parts import NUMPY

    return NUMPY
  from tinyformer.kernels import parts

  return parts.default_parts()
