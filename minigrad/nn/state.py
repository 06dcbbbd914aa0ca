"""The parameters of a module: all Tensors among its attributes."""

from minigrad.tensor import Tensor


def get_state_dict(module: object, prefix: str = "") -> dict[str, Tensor]:
  """Return the Tensors in a module, by their path, such as `blocks.0.attn.q.weight`."""
  if isinstance(module, Tensor):
    return {prefix.strip("."): module}
  if isinstance(module, list | tuple):
    items = dict(enumerate(module))
  else:
    items = module if isinstance(module, dict) else getattr(module, "__dict__", {})
  found: dict[str, Tensor] = {}
  for name, value in items.items():
    found |= get_state_dict(value, f"{prefix}{name}.")
  return found


def get_parameters(module: object) -> list[Tensor]:
  """Return the Tensors in a module."""
  return list(get_state_dict(module).values())
