"""Optional speed: faster parts for models, and compiled steps."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tinyformer.backend import is_minigrad

if TYPE_CHECKING:
  from layers.parts import Parts


def default_parts() -> "Parts":
  """Return the fastest parts for the backend and its default device."""
  if is_minigrad():
    from tinyformer.kernels.numpy_parts import NUMPY

    return NUMPY
  from tinyformer.kernels import parts

  return parts.default_parts()


def training_parts(precision: str) -> "Parts":
  """Return the fastest parts for training with matrix products in float32 or bfloat16."""
  if precision == "float32":
    return default_parts()
  from tinyformer.kernels.mixed_precision import MIXED

  return MIXED


def loss_function() -> Callable:
  """Return transformer.loss, or a faster function with the same arguments and result."""
  if is_minigrad():
    import transformer

    return transformer.loss
  from tinyformer.kernels import cross_entropy

  return cross_entropy.loss


def language_model_loss(model, smoothing: float = 0) -> Callable:
  """Return the loss of a language model as a function of token ids and targets, both (B, T).

  smoothing: the label smoothing.
  """
  loss = loss_function()
  return lambda ids, targets: loss(model(ids), targets, smoothing)
