"""Training mode, and other names of tinygrad.helpers."""

from collections.abc import Iterable
from typing import Any


def dedup(items: Iterable[Any]) -> list[Any]:
  """Return the items without repetitions, in the order of their first occurrence."""
  return list(dict.fromkeys(items))


class Context:
  """Set variables in a `with` block, as in tinygrad, which has more of them.

  TRAINING: 1 turns dropout on.  RECORD: 0 turns off the graph, except in training. Without a graph,
  an intermediate array is freed as soon as possible.
  """

  variables = {"TRAINING": 0, "RECORD": 1}  # noqa: RUF012

  def __init__(self, **variables: int):
    self.inside = variables

  def __enter__(self) -> None:
    self.outside = Context.variables
    Context.variables = self.outside | self.inside

  def __exit__(self, *_: Any) -> None:
    Context.variables = self.outside
