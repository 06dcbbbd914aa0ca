"""Activation functions, by the names that the models' configs use."""

from collections.abc import Callable

from tinygrad import Tensor


def gelu(x: Tensor) -> Tensor:
  """Return x times the standard normal distribution function of x (Hendrycks & Gimpel 2016)."""
  return x.gelu(approximate="none")


def gelu_tanh(x: Tensor) -> Tensor:
  """Return the tanh approximation of GELU (Hendrycks & Gimpel 2016, sec. 2)."""
  return x.gelu(approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
  "gelu": gelu,
  "gelu_tanh": gelu_tanh,
  "relu": Tensor.relu,
  "silu": Tensor.silu,
  "tanh": Tensor.tanh,
}
