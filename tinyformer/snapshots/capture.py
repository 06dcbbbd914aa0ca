"""Save a snapshot of an engine. This file needs tinygrad."""

import contextlib
from typing import Any

import numpy as np

from tinyformer.generation import Engine
from tinyformer.kernels import step_cache
from tinyformer.kernels.compiled_step import memory_view, uses_graph_runner
from tinyformer.kernels.step_runner import Recording
from tinyformer.kernels.tinygrad_internals import num_cpu_threads, position_independent
from tinyformer.snapshots import storage
from tinyformer.snapshots.identity import Request, is_supported


def save(engine: Engine, request: Request, identity: Any, vocab_size: int) -> None:
  """Save a snapshot of an engine's steps, and its weights unless they have been saved.

  Nothing is saved if the machine or the engine is not supported, if the steps were traced in this
  process and there are no weights yet, or if the files do not fit. The first run of a model takes
  long enough, and may be the only one.
  """
  # Where steps are run by the graph runner, there are no buckets.
  runners = {n: s.graph_runner for (n, _), s in engine.steps.items() if s.graph_runner is not None}
  supported = is_supported() and uses_graph_runner() and engine.cache.window is None
  if not supported or not runners:
    return
  from tinyformer.kernels import graph_runner  # it needs internals that this tinygrad may lack

  recordings = {n: with_images(runner.recording) for n, runner in runners.items()}
  run = position_independent(graph_runner.step_code(False))
  work = position_independent(graph_runner.step_code(True))
  if run is None or work is None or None in recordings.values():
    return
  views = {name: memory_view(t) for name, t in engine.captured_buffers.items()}
  arrays = {n: a for n, a in views.items() if a is not None and not n.startswith("cache.")}
  if len(arrays) + 2 * len(engine.cache.k) != len(views):
    return
  header = {
    "identity": identity,
    "context": engine.context,
    "rows": engine.cache.rows,
    "vocab_size": vocab_size,
    "num_workers": num_cpu_threads() - 1,
    "sizes": list(recordings),
    "buffers": [[n, a.dtype.str, list(a.shape)] for n, a in views.items() if a is not None],
  }
  parts = [run, work, *(step_cache.to_bytes(r) for r in recordings.values() if r)]
  with contextlib.suppress(OSError):
    weights = storage.folder() / request.weights_name
    if not has_arrays(request, identity, arrays):
      if any(step.is_new for step in engine.steps.values()):
        return
      storage.write_arrays(weights, identity, arrays)
    storage.write(storage.folder() / request.name, [storage.pack(header, parts)])
    storage.delete_oldest()


def with_images(recording: Recording) -> Recording | None:
  """Return a recording whose programs are linked, or None if that depends on their address.

  It is also None if a step reads a buffer of its own before it writes to it.
  """
  images = [(name, position_independent(code)) for name, code in recording.programs]
  programs = [(name, image) for name, image in images if image is not None]
  if len(programs) < len(images) or not recording.self_contained():
    return None
  return recording._replace(programs=programs)


def has_arrays(request: Request, identity: Any, arrays: dict[str, np.ndarray]) -> bool:
  """Return whether the weights have been saved."""
  try:
    saved = storage.map_arrays(storage.folder() / request.weights_name, identity)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False
  return arrays.keys() <= saved.keys()
