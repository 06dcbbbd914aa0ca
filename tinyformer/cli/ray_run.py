"""Run a model on each row of a file over a Ray cluster: `--ray`.

This process reads the rows and writes the results, as it does without Ray. Ray Data's map_batches
distributes the rows over actors, each of which has loaded the model, and repeats the batches of an
actor that has died. Source: https://docs.ray.io/en/latest/data/transforming-data.html.
"""

import argparse
import functools
import importlib
import os
import pickle
import platform
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tinyformer.cli import file_run, ray_cluster
from tinyformer.cli.errors import UsageError, describe
from tinyformer.cli.ray_cluster import Cluster, one_line_errors
from tinyformer.cli.row_reader import Row
from tinyformer.files import check_regular, printable
from tinyformer.progress import note

# The actors load the model once per window. A window is in the memory of the cluster.
WINDOW_CHARACTERS = 100_000_000
WINDOW_BATCHES = 1024
# The largest number of rows per batch, of a task that is faster for many rows and of another task.
BATCH_ROWS = 256
SINGLE_BATCH_ROWS = 8


class WorkerSettings(NamedTuple):
  """What an actor needs to load the model.

  module: the module of the command, which has a function load_task.
  settings: what the task of the command must have; None if it is not known yet.
  """

  module: str
  args: argparse.Namespace
  folder: str
  cpus: int
  settings: dict[str, Any] | None = None


def run(args: argparse.Namespace, module: str) -> None:
  """Write the result of each row of --input to --output, with the actors of a cluster.

  module: the command's module, whose function load_task(args) loads the model and returns the task.
  Raises UsageError if Ray is not installed, or if the cluster cannot be reached.
  """
  check_regular(args.input)
  with ray_cluster.connected(args) as cluster:
    if not args.quiet:
      note(str(cluster))
    settings = WorkerSettings(module, args, os.getcwd(), cluster.cpus)
    with one_line_errors():
      # The worker ends after the call, so the memory of the model is free again.
      load = cluster.ray.remote(num_cpus=cluster.cpus, max_calls=1)(load_description)
      task = cluster.ray.get(load.remote(settings))
    settings = settings._replace(settings=task.settings)
    file_run.run(args, task, functools.partial(compute_windows, cluster, settings))


def not_on_this_machine(_: Sequence[tuple[str, ...]]) -> list[Any]:
  raise AssertionError("the model is loaded by the actors only")


def load_task(settings: WorkerSettings) -> file_run.RowTask:
  """Load the model in a worker, and return its task. Raises UsageError if it is another task."""
  ray_cluster.prepare_worker(settings.cpus, settings.folder)
  task = importlib.import_module(settings.module).load_task(settings.args)
  if settings.settings not in (None, task.settings):
    raise UsageError(f"another model or other options were found: {printable(task.settings, 300)}")
  return task


def load_description(settings: WorkerSettings) -> file_run.RowTask:
  """Return the task of a model without the model."""
  return load_task(settings)._replace(function=not_on_this_machine)


class Worker:
  """An actor of Ray Data: it loads the model once, and computes the results of batches of rows."""

  def __init__(self, settings: WorkerSettings):
    # Ray Data calls an actor in several threads, but tinygrad's cache of kernels needs one.
    self.thread = ThreadPoolExecutor(1)
    self.problem = ""
    self.thread.submit(self.load, settings).result()

  def __call__(self, batch: Any) -> Any:
    return self.thread.submit(self.compute, batch).result()

  def load(self, settings: WorkerSettings) -> None:
    try:
      self.task = load_task(settings)
    except Exception as e:
      # An exception would be printed as the end of an actor, with a long traceback.
      self.problem = f"{platform.node()} cannot load the model: {describe(e)}"

  def compute(self, batch: Any) -> Any:
    """Return the results of the rows of a table, or of those before an invalid row."""
    import pyarrow

    if self.problem:
      first = batch["number"][:1]
      return pyarrow.table(
        {"number": first, "result": [b""], "problem": [self.problem], "failed": [True]}
      )
    rows = [Row(row["number"], row["line"], tuple(row["values"]), 0) for row in batch.to_pylist()]
    results: list[Any] = []
    problems = [""] * len(rows)
    try:
      for _, part in file_run.compute(rows, self.task.function):
        results += part
    except file_run.InvalidRowError as e:
      problems = [""] * len(results) + [e.problem]
      results.append(None)
    return pyarrow.table(
      {
        "number": batch["number"][: len(results)],
        "result": [pickle.dumps(result) for result in results],
        "problem": problems,
        "failed": [False] * len(results),
      }
    )


def compute_windows(
  cluster: Cluster, settings: WorkerSettings, rows: Iterable[Row], task: file_run.RowTask
) -> Iterator[tuple[list[Row], Sequence[Any]]]:
  """Yield some rows and their results, in order.

  Raises InvalidRowError for a row without a result.
  """
  batch_rows = BATCH_ROWS if task.is_batched else SINGLE_BATCH_ROWS
  for window in file_run.chunks(rows, WINDOW_BATCHES * batch_rows, WINDOW_CHARACTERS):
    # A short file is divided too.
    size = max(1, min(batch_rows, len(window) // (4 * cluster.workers)))
    count = 0
    with one_line_errors():
      for table in map_batches(cluster, settings, window, size):
        results = read_results(window[count:], table)
        computed = window[count : count + len(results)]
        count += len(computed)
        yield computed, results
        if (problem := table["problem"][-1].as_py()) != "":
          raise file_run.InvalidRowError(window[count], problem)
    if count != len(window):
      raise RuntimeError(f"Ray returned {count:,} results for {len(window):,} rows")


def read_results(rows: Sequence[Row], table: Any) -> list[Any]:
  """Return the results in a table, without that of an invalid row at its end."""
  if table["failed"][0].as_py():
    raise UsageError(table["problem"][0].as_py())
  valid = len(table) - (table["problem"][-1].as_py() != "")
  numbers = table["number"].to_pylist()
  if numbers != [row.number for row in rows[: len(numbers)]]:
    raise RuntimeError(f"Ray returned results of other rows than {rows[0].number:,} and the next")
  return [pickle.loads(data) for data in table["result"].to_pylist()[:valid]]


def map_batches(
  cluster: Cluster, settings: WorkerSettings, rows: Sequence[Row], size: int
) -> Iterator[Any]:
  """Yield the tables that Worker returns for `size` rows each, in the order of the rows."""
  data = cluster.ray.data
  items = [{"number": row.number, "line": row.line, "values": list(row.values)} for row in rows]
  batches = -(-len(items) // size)
  rows_in_blocks = data.from_items(items, override_num_blocks=batches)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray 2.64 will have another name for max_task_retries.
    dataset = rows_in_blocks.map_batches(
      Worker,
      fn_constructor_args=(settings,),
      batch_size=None,
      batch_format="pyarrow",
      compute=data.ActorPoolStrategy(size=min(cluster.workers, batches)),
      num_cpus=cluster.cpus,
      max_task_retries=ray_cluster.RETRIES,
    )
  yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
