"""Save what TinyJit captured, and load it in a later process, without tracing the function again.

The kernels are pickled as tinygrad represents them: their programs are compiled already. Buffers
are not pickled. A captured tensor's buffer is saved by the tensor's name, and other buffers are
allocated again.
"""

import io
import pickle
from collections.abc import Container, Sequence
from typing import Any

from tinygrad import Device, Tensor, UOp

from tinyformer.kernels.tinygrad_internals import Buffer, CapturedJit, Ops, buffers


def live_buffers() -> dict[UOp, Any]:
  """Return all buffers that exist now. A step that is traced later must not read their contents."""
  return dict(buffers)


def is_any_of(candidates: Sequence[Buffer], existing: dict[UOp, Any]) -> bool:
  """Return whether one of these buffers, or a part of one, is among those of live_buffers."""
  bases = {id(b.base) for b in existing.values() if isinstance(b, Buffer)}
  return any(id(b.base) in bases for b in candidates)


class Pickler(pickle.Pickler):
  """Pickles UOps, and references to the buffers among them.

  names: the captured buffers.  existing: what live_buffers returned before the step was traced.
  """

  def __init__(self, file: io.BytesIO, names: dict[UOp, str], existing: Container[UOp]):
    super().__init__(file, protocol=5)
    self.names = names
    self.existing = existing
    self.workspace: dict[UOp, int] = {}

  def persistent_id(self, obj: Any) -> tuple | None:
    """Return what Unpickler.persistent_load needs to find or make a buffer.

    Raises ValueError for a buffer with contents of its own, which a later process would lack.
    """
    # A buffer without a device is a part of a kernel: its registers or its local memory.
    if not isinstance(obj, UOp) or obj.op is not Ops.BUFFER or obj.device is None:
      return None
    if obj in self.names:
      return "captured", self.names[obj]
    if obj in self.existing or obj.device != Device.DEFAULT:
      raise ValueError(f"a buffer on {obj.device} is not among the captured buffers")
    index = self.workspace.setdefault(obj, len(self.workspace))
    return "workspace", index, int(obj.shape[0]), obj.dtype


class Unpickler(pickle.Unpickler):
  """Loads what Pickler pickled, with this process's buffers."""

  def __init__(self, file: io.BytesIO, captured_buffers: dict[str, Tensor]):
    super().__init__(file)
    self.captured_buffers = captured_buffers
    self.workspace: dict[int, UOp] = {}

  def persistent_load(self, pid: tuple) -> UOp:
    """Return a buffer: a captured one, or a new one for the first reference to an index."""
    if pid[0] == "captured":
      return self.captured_buffers[pid[1]].uop.base
    _, index, size, dtype = pid
    if index not in self.workspace:
      self.workspace[index] = UOp.new_buffer(Device.DEFAULT, size, dtype)
    return self.workspace[index]

  def find_class(self, module: str, name: str) -> Any:
    """Return a class or function of tinygrad."""
    if module.split(".")[0] != "tinygrad":
      raise pickle.UnpicklingError(f"{module}.{name} is not tinygrad's")
    return super().find_class(module, name)


def to_bytes(
  captured: CapturedJit, captured_buffers: dict[str, Tensor], existing: Container[UOp]
) -> bytes | None:
  """Return the contents of a cache file, or None if the step reads other buffers than these.

  existing: what live_buffers returned before the step was traced.
  """
  names = {tensor.uop.base: name for name, tensor in captured_buffers.items()}
  file = io.BytesIO()
  kernels = captured._linear  # the kernels before their programs are loaded
  contents = captured.ret.uop, kernels, captured.expected_names, captured.expected_input_info
  try:
    Pickler(file, names, existing).dump(contents)
  except (ValueError, TypeError, AttributeError, pickle.PicklingError):
    return None
  return file.getvalue()


def from_bytes(data: bytes, captured_buffers: dict[str, Tensor]) -> CapturedJit:
  """Return what TinyJit captured. Raises ValueError if it cannot be restored."""
  try:
    result, kernels, *expected = Unpickler(io.BytesIO(data), captured_buffers).load()
  except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError) as e:
    raise ValueError(f"the kernels cannot be restored: {e}") from e
  return CapturedJit(Tensor(result), kernels, *expected)
