"""A step that is traced once and replayed: the kernels of a TinyJit, without its silence about a wrong shape."""
from collections.abc import Callable
from tinygrad import Tensor, TinyJit

class Jitted:
  """TinyJit for inputs of the shapes of its first call. Given others, TinyJit would compute a wrong number; this raises ValueError.

  The function must realize what it returns, and what it reads must be realized before: it is traced at once, TinyJit's first call
  without a trace left out. Read a result before the next call, which writes over it.
  """
  def __init__(self, function:Callable[..., Tensor]):
    self.jit = TinyJit(function)
    self.jit.cnt = 1
    self.shapes:list[tuple]|None = None

  def __call__(self, *args) -> Tensor:
    shapes = [a.shape for a in args if isinstance(a, Tensor)]
    if self.shapes not in (None, shapes): raise ValueError(f"this step was traced for inputs of shapes {self.shapes}, not {shapes}")
    self.shapes = shapes
    return self.jit(*args)
