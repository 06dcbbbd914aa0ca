"""Choose the backend: what the name `tinygrad` means in this process.

transformer.py, layers/ and models/ import Tensor and nn from tinygrad. If the device is NUMPY, this
module makes that name mean minigrad, our own Tensor on numpy, before they are imported. The files
are the same, and tinygrad itself is not imported.
"""

import importlib
import sys

# The modules that stand for each other.
STANDS_FOR = {
  "tinygrad": "minigrad",
  "tinygrad.dtype": "minigrad.dtype",
  "tinygrad.helpers": "minigrad.helpers",
  "tinygrad.nn": "minigrad.nn",
  "tinygrad.nn.optim": "minigrad.nn.optim",
  "tinygrad.nn.state": "minigrad.nn.state",
}


class BackendError(RuntimeError):
  """The other backend is in use. The message gives the reason and the remedy."""


def is_numpy(device: str | None) -> bool:
  """Return whether a name of a device, such as "numpy", selects minigrad."""
  return device is not None and device.upper() == "NUMPY"


def is_minigrad() -> bool:
  """Return whether the name tinygrad means minigrad in this process."""
  return "minigrad" in sys.modules and sys.modules.get("tinygrad") is sys.modules["minigrad"]


def use_minigrad() -> None:
  """Make the name tinygrad mean minigrad.

  Raises BackendError if tinygrad has been imported, because Tensors of two backends do not mix.
  """
  if is_minigrad():
    return
  if "tinygrad" in sys.modules:
    raise BackendError(
      "the device NUMPY cannot be selected, because tinygrad is already in use in this process.\n"
      "Select NUMPY in a new process, before anything else is loaded."
    )
  for name, ours in STANDS_FOR.items():
    sys.modules[name] = importlib.import_module(ours)


def require_tinygrad(device: str) -> None:
  """Raise BackendError if the name tinygrad means minigrad, which has no other device."""
  if is_minigrad():
    raise BackendError(
      f"the device {device} cannot be selected, because NUMPY is already in use in this process.\n"
      f"Start another process for {device}."
    )


def replace_tinygrad(*modules: str) -> None:
  """Forget tinygrad and what has been imported on it, and make its name mean minigrad.

  Objects that exist already keep the old modules: call this function before there are Tensors.
  modules: more modules of ours to import again.
  """
  outdated = ("tinygrad", "transformer", "layers", "models", "tinyformer.kernels", *modules)
  for name in list(sys.modules):
    if any(name == package or name.startswith(f"{package}.") for package in outdated):
      del sys.modules[name]
  use_minigrad()
