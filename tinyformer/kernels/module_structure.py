"""What a module computes, apart from its weights: its classes, functions and settings.

Compiled steps replay the kernels of a module as it was when they were traced. A module that a user
has changed since then needs new steps, and steps of a user's own functions must not be cached for
later processes, because a function's name does not say what the function does.
"""

import dataclasses
import functools
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tinygrad
from tinygrad import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
# The digest of sources in compiled_step.py covers our files, and tinygrad's version covers its own.
KNOWN_SOURCES = (
  str(ROOT / "transformer.py"),
  *(str(ROOT / name) + os.sep for name in ("layers", "models", "tinyformer")),
  str(Path(tinygrad.__file__).parent) + os.sep,
)
# Types that are compared by value, and whose values are part of a description.
PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes)

# The path of a part within the module, such as ".blocks[0].attn.q", and the part.
Leaf = tuple[str, Any]


def leaves(value: Any, path: str = "", seen: dict[int, Leaf] | None = None) -> Iterator[Leaf]:
  """Yield the tensors, functions, classes and plain values that a module consists of.

  Functions include the values that they capture. For an object that is reached again, the path at
  which it was first reached is yielded.
  """
  seen = {} if seen is None else seen
  if isinstance(value, (Tensor, type, *PLAIN_TYPES)):
    yield path, value
  elif id(value) in seen:
    yield path, f"same as {seen[id(value)][0]}"
  else:
    # The reference to the value keeps its id from being reused.
    seen[id(value)] = path, value
    yield from parts_of(value, path, seen)


def parts_of(value: Any, path: str, seen: dict[int, Leaf]) -> Iterator[Leaf]:
  """Yield the leaves of an object that is reached for the first time."""
  if isinstance(value, types.FunctionType):
    yield path, value
    captured = [cell.cell_contents for cell in value.__closure__ or ()]
    yield from leaves([captured, value.__defaults__, value.__kwdefaults__], path, seen)
  elif isinstance(value, types.MethodType):
    yield from leaves([value.__func__, value.__self__], path, seen)
  elif isinstance(value, functools.partial):
    yield from leaves([value.func, value.args, value.keywords], path, seen)
  elif isinstance(value, (list, tuple)):
    for i, item in enumerate(value):
      yield from leaves(item, f"{path}[{i}]", seen)
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from leaves(item, f"{path}[{key!r}]", seen)
  elif hasattr(value, "__dict__"):
    yield path, type(value)
    for name, item in vars(value).items():
      yield from leaves(item, f"{path}.{name}", seen)
  else:
    yield path, value


def snapshot(module: Any) -> list[Leaf]:
  """Return the parts of a module, in which a tensor is replaced by its current value.

  `is_unchanged` compares the snapshot with the module later.
  """
  return [
    (path, current_value(leaf) if isinstance(leaf, Tensor) else leaf)
    for path, leaf in leaves(module)
  ]


def current_value(t: Tensor) -> Any:
  """Return an object that is replaced when a tensor gets a new value."""
  return t.uop if hasattr(t, "uop") else t.data  # minigrad's data is a numpy array


def is_unchanged(module: Any, earlier: list[Leaf]) -> bool:
  """Return whether a module has the parts of an earlier snapshot.

  What a function does with variables that it does not capture, such as global ones, is not seen.
  """
  now = snapshot(module)
  return len(now) == len(earlier) and all(
    path == earlier_path
    and (a is b or (isinstance(a, PLAIN_TYPES) and type(a) is type(b) and a == b))
    for (path, a), (earlier_path, b) in zip(now, earlier, strict=True)
  )


def describe(module: Any) -> str | None:
  """Return a text that differs if two modules compute different things with the same weights.

  Returns None if a part is defined outside this project and tinygrad.
  """
  lines = []
  for path, leaf in leaves(module):
    if isinstance(leaf, Tensor):
      continue
    if isinstance(leaf, PLAIN_TYPES):
      lines.append(f"{path} = {leaf!r}")
    elif isinstance(leaf, (type, types.FunctionType)):
      if not is_ours(leaf):
        return None
      line = leaf.__code__.co_firstlineno if isinstance(leaf, types.FunctionType) else ""
      lines.append(f"{path} = {leaf.__module__}.{leaf.__qualname__} {line}")
    elif type(leaf).__module__.split(".")[0] in ("builtins", "tinygrad"):
      lines.append(f"{path} = {leaf!r}")
    else:
      return None
  return "\n".join(lines)


def is_ours(leaf: Any) -> bool:
  """Return whether a function, or a class with all its methods, is defined in a known source."""
  if isinstance(leaf, types.FunctionType):
    return os.path.abspath(leaf.__code__.co_filename).startswith(KNOWN_SOURCES)
  methods = [
    (name, method)
    for base in leaf.__mro__
    if base.__module__.split(".")[0] not in ("builtins", "typing", "abc", "collections")
    for name, method in vars(base).items()
    if isinstance(method, types.FunctionType)
  ]
  # Python generates the special methods of a dataclass.
  generated = dataclasses.is_dataclass(leaf)
  return all((generated and name.startswith("__")) or is_ours(method) for name, method in methods)
