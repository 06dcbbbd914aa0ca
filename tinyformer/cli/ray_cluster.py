"""Connect to a Ray cluster, or start one on this machine: `--ray` and `--ray-cpus`."""

import argparse
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tinyformer.cli.arguments import number
from tinyformer.cli.errors import UsageError
from tinyformer.files import printable

# Seconds to wait for a connection, for the answer of a cluster, and for the end of stopped tasks.
CONNECT_TIMEOUT = 10
ANSWER_TIMEOUT = 20
STOP_TIMEOUT = 60
# How often the work of a worker that died is repeated: it may need more memory than there is.
RETRIES = 3


class Cluster(NamedTuple):
  """A connected cluster. cpus: the number of cores of each worker.  workers: that of workers."""

  ray: Any
  cpus: int
  workers: int

  def __str__(self) -> str:
    return f"Ray: {self.workers} x {self.cpus} CPU cores"


def add_arguments(group: argparse._ArgumentGroup, what: str) -> None:
  """Add --ray and --ray-cpus. what: a noun for the things that are distributed."""
  group.add_argument(
    "--ray",
    metavar="ADDRESS",
    nargs="?",
    const="",
    help=f"distribute the {what} over the Ray cluster at HOST:PORT; without an address, over one "
    "that runs on this machine, or over a new one with all its cores",
  )
  group.add_argument(
    "--ray-cpus",
    metavar="N",
    type=number(int, 1, 10_000),
    help="CPU cores per copy of the model (default: those of the cluster's smallest machine)",
  )


def check_arguments(args: argparse.Namespace) -> None:
  """Raise UsageError if the options do not fit together."""
  if args.ray_cpus and args.ray is None:
    raise UsageError("--ray-cpus needs --ray")
  if args.ray is not None and args.device not in (None, "CPU", "NUMPY"):
    raise UsageError(f"--ray uses CPUs, not {args.device}: start a process for each GPU instead")


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
  address = args.ray or os.environ.get("RAY_ADDRESS", "")
  if address not in ("", "auto", "local"):
    check_address(address)
  elif address != "local":
    use_no_token_unless_required()
  logging.getLogger("ray.data").setLevel(logging.CRITICAL)
  context = ray.data.DataContext.get_current()
  context.enable_progress_bars = False
  context.execution_options.preserve_order = True
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
  """Return the number of cores of each worker, and the number of workers.

  cpus: the number of cores; None is that of the smallest machine, so each has at least one worker.
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
  status, errors = health_check("--address", address)
  # Ray sends a token to a given address only if the variable is set.
  if status and b"InvalidAuthToken" in errors:
    raise UsageError(
      f"the Ray cluster at {address} requires its token: set RAY_AUTH_MODE=token, and copy its "
      "~/.ray/auth_token to this machine"
    )
  if status:
    raise UsageError(f"no Ray cluster answers at {address}: {hint}")


def use_no_token_unless_required() -> None:
  """Let this process use no token if the cluster that runs on this machine requires none.

  If a token exists, Ray uses it for a cluster that it finds itself. Such a cluster could not send
  the results then: its actors would seem to die.
  """
  if "RAY_AUTH_MODE" not in os.environ and health_check()[0] == 0:
    os.environ["RAY_AUTH_MODE"] = "disabled"


def health_check(*options: str) -> tuple[int, bytes]:
  """Return the status of `ray health-check` and its messages. The status of a cluster is 0."""
  command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *options]
  try:
    done = subprocess.run(command, capture_output=True, timeout=ANSWER_TIMEOUT)
  except subprocess.TimeoutExpired:
    return 1, b""
  return done.returncode, done.stderr


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


def prepare_worker(cpus: int, folder: str) -> None:
  """Set up a worker process, before it imports tinygrad.

  cpus: its number of cores.  folder: the folder in which the command runs.
  """
  # tinygrad reads the number of threads when it is imported.
  os.environ["NUM_CPU_THREADS"] = str(cpus)
  # No processes that compile kernels: they would use other workers' cores, and outlive theirs.
  os.environ["PARALLEL"] = "0"
  with contextlib.suppress(OSError):  # Relative names of files then mean what they mean here.
    os.chdir(folder)


def finished(
  cluster: Cluster, tasks: Iterable[Any], interrupted: Callable[[], int]
) -> Iterator[Any]:
  """Yield the tasks in the order in which they end, until a signal is received.

  interrupted: returns the number of the signal, or 0.
  """
  remaining = list(tasks)
  while remaining and not interrupted():
    done, remaining = cluster.ray.wait(remaining, timeout=0.2)
    yield from done


@contextlib.contextmanager
def stopping(cluster: Cluster, tasks: Iterable[Any]) -> Iterator[None]:
  """Stop the tasks that are still running at the end of the context.

  They are interrupted as by Ctrl-C, and may take STOP_TIMEOUT seconds to end.
  """
  remaining = list(tasks)
  try:
    yield
  finally:
    for task in remaining:
      cluster.ray.cancel(task)
    cluster.ray.wait(remaining, num_returns=len(remaining), timeout=STOP_TIMEOUT)
