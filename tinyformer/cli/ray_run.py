"""Run a model on each row of a file over a Ray cluster: `--ray`.

This process reads the rows and writes the results, as it does without Ray. Ray Data's map_batches
distributes the rows over actors, each of which has loaded the model, and repeats the batches of an
actor that has died. Source: https://docs.ray.io/en/latest/data/transforming-data.html.
"""

import argparse
import contextlib
import functools
import importlib
import logging
import os
import pickle
import platform
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tinyformer.cli import file_run
from tinyformer.cli.errors import UsageError, describe
from tinyformer.cli.row_reader import Row
from tinyformer.files import check_regular, printable
from tinyformer.progress import note

# The actors load the model once per window. A window is in the memory of the cluster.
WINDOW_CHARACTERS = 100_000_000
WINDOW_BATCHES = 1024
# The largest number of rows per batch, of a task that is faster for many rows and of another task.
BATCH_ROWS = 256
SINGLE_BATCH_ROWS = 8
# How often a batch is repeated whose actor died: some rows may need more memory than there is.
RETRIES = 3
# Seconds to wait for a connection, and for the answer of a cluster.
CONNECT_TIMEOUT = 10
ANSWER_TIMEOUT = 20


class Cluster(NamedTuple):
  """A connected cluster. cpus: the number of cores of each actor.  workers: that of actors."""

  ray: Any
  cpus: int
  workers: int


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
  if args.device not in (None, "CPU", "NUMPY"):
    raise UsageError(
      f"--ray uses CPUs, not {args.device}: start a process for each GPU with --part instead"
    )
  with connected(args) as cluster:
    if not args.quiet:
      note(f"Ray: {cluster.workers} x {cluster.cpus} CPU cores")
    settings = WorkerSettings(module, args, os.getcwd(), cluster.cpus)
    with one_line_errors():
      # The worker ends after the call, so the memory of the model is free again.
      load = cluster.ray.remote(num_cpus=cluster.cpus, max_calls=1)(load_description)
      task = cluster.ray.get(load.remote(settings))
    settings = settings._replace(settings=task.settings)
    file_run.run(args, task, functools.partial(compute_windows, cluster, settings))


@contextlib.contextmanager
def connected(args: argparse.Namespace) -> Iterator[Cluster]:
  """Connect to the cluster of --ray, or start one on this machine. Disconnect at the end."""
  # Ray sends statistics of its use to its developers otherwise.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
  try:
    import ray
    import ray.data
  except ImportError as e:
    raise UsageError(f"--ray needs Ray ({e}): pip install -e '.[ray]'") from e
  logging.getLogger("ray.data").setLevel(logging.CRITICAL)
  context = ray.data.DataContext.get_current()
  context.enable_progress_bars = False
  context.execution_options.preserve_order = True
  address = args.ray or os.environ.get("RAY_ADDRESS", "")
  if address not in ("", "auto", "local"):
    check_address(address)
  initialize(ray, address)
  try:
    yield Cluster(ray, *divide(ray.nodes(), args.ray_cpus))
  finally:
    ray.shutdown(wait_for_processes=True)


def initialize(ray: Any, address: str) -> None:
  """Connect to a cluster. Without an address, use that of this machine, or start one."""
  try:
    with silent_stderr():
      ray.init(
        address=address or None,
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
      )
  except (OSError, RuntimeError, ValueError) as e:
    raise UsageError(f"cannot use the Ray cluster {address}: {printable(e, 300)}") from e


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
  """Discard what C++ code prints to standard error: Ray announces its level of logging there."""
  sys.stderr.flush()
  saved = os.dup(2)
  try:
    with open(os.devnull, "wb") as null:
      os.dup2(null.fileno(), 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)


def divide(nodes: Sequence[dict[str, Any]], cpus: int | None) -> tuple[int, int]:
  """Return the number of cores of each actor, and the number of actors.

  cpus: the number of cores; None is that of the smallest machine, so each has at least one actor.
  Raises UsageError if no machine has as many cores.
  """
  sizes = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
  sizes = [size for size in sizes if size]
  cpus = cpus or min(sizes, default=1)
  workers = sum(size // cpus for size in sizes)
  if not workers:
    raise UsageError(
      f"no machine of the Ray cluster has {cpus} CPU cores; the largest has "
      f"{max(sizes, default=0)}: use a smaller number of --ray-cpus"
    )
  return cpus, workers


def check_address(address: str) -> None:
  """Raise UsageError if no cluster answers at an address HOST:PORT in a short time.

  ray.init would try for minutes, and then end the process.
  """
  host, _, port = address.rpartition(":")
  if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
    raise UsageError(f"{printable(address)!r} is not an address of a Ray cluster, HOST:PORT")
  hint = "check the address, and that `ray start --head` runs there"
  try:
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
  except OSError as e:
    raise UsageError(f"cannot reach the Ray cluster {address}: {e.strerror or e}; {hint}") from e
  command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
  try:
    answered = not subprocess.run(command, capture_output=True, timeout=ANSWER_TIMEOUT).returncode
  except subprocess.TimeoutExpired:
    answered = False
  if not answered:
    raise UsageError(f"no Ray cluster answers at {address}: {hint}")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Raise the exception of a worker as if it had been raised here.

  Raises RuntimeError for a failure of the cluster, such as a worker that dies again and again.
  """
  from ray.exceptions import RayError

  try:
    yield
  except RayError as e:
    cause: BaseException = e
    while next_cause := getattr(cause, "cause", None) or cause.__cause__:
      cause = next_cause
    if not type(cause).__module__.startswith("ray."):
      raise cause from None
    first_line = next(iter(str(e).strip().splitlines()), type(e).__name__)
    raise RuntimeError(
      f"the Ray cluster failed: {printable(first_line, 300)} Run the same command again to continue"
    ) from e


def not_on_this_machine(_: Sequence[tuple[str, ...]]) -> list[Any]:
  raise AssertionError("the model is loaded by the actors only")


def load_task(settings: WorkerSettings) -> file_run.RowTask:
  """Load the model in a worker, and return its task. Raises UsageError if it is another task."""
  # tinygrad reads the number of threads when it is imported.
  os.environ["NUM_CPU_THREADS"] = str(settings.cpus)
  # No processes that compile kernels: they would use other actors' cores, and outlive the actor.
  os.environ["PARALLEL"] = "0"
  with contextlib.suppress(OSError):  # Relative names of files then mean what they mean here.
    os.chdir(settings.folder)
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
      max_task_retries=RETRIES,
    )
  yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
