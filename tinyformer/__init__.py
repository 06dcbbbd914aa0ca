"""The library: everything that makes the reference code useful and fast.

>>> import tinyformer
>>> model = tinyformer.load("tiny")
>>> model.generate("He shook his", max_new_tokens=2, temperature=0)
' head.'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tinyformer.inspected_run import InspectedRun, inspect
  from tinyformer.model import Model, load
  from tinyformer.tasks import Answer, Entity, InputError, Prediction, RankedText

__version__ = "0.1.0"
# The public names, and the modules that are imported when a name is first used.
MODULES = {
  "Answer": "tinyformer.tasks",
  "Entity": "tinyformer.tasks",
  "InputError": "tinyformer.tasks",
  "InspectedRun": "tinyformer.inspected_run",
  "Model": "tinyformer.model",
  "Prediction": "tinyformer.tasks",
  "RankedText": "tinyformer.tasks",
  "inspect": "tinyformer.inspected_run",
  "load": "tinyformer.model",
}
__all__ = ["Answer", "Entity", "InputError", "InspectedRun", "Model", "Prediction"]
__all__ += ["RankedText", "inspect", "load"]


def __getattr__(name: str) -> Any:
  if name not in MODULES:
    raise AttributeError(f"module 'tinyformer' has no attribute {name!r}")
  return getattr(importlib.import_module(MODULES[name]), name)


def __dir__() -> list[str]:
  return [*globals(), *__all__]
