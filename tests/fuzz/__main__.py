"""Run the fuzzer from the command line."""

import argparse
import shlex
import sys
import time

from tinyformer.device import compile_in_this_process, select_device

from .runner import ALLOWED, failures, run, table
from .targets import TARGETS, import_references


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog="python -m tests.fuzz", description="Read damaged files, and count the outcomes."
  )
  p.add_argument("--cases", type=int, default=2000, help="number of cases (default: %(default)s)")
  p.add_argument("--first", type=int, default=0, help="number of the first case")
  p.add_argument("--seed", type=int, default=1, help="seed (default: %(default)s)")
  p.add_argument("--target", choices=TARGETS, action="append", help="only these (default: all)")
  p.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
  p.add_argument("--no-reference", action="store_true", help="do not compare with Hugging Face")
  args = p.parse_args(argv)
  names = args.target or list(TARGETS)
  compare = not args.no_reference and import_references()
  select_device("CPU")  # finds the compiler of the extra `cpu`
  compile_in_this_process()
  start = time.monotonic()
  cases = []
  for case in run(
    list(range(args.first, args.first + args.cases)), args.seed, names, args.workers, compare
  ):
    cases.append(case)
    if case.outcome not in ALLOWED:
      targets = " ".join(f"--target {shlex.quote(name)}" for name in args.target or [])
      print(f"{case.target} {case.number}: {case.outcome}: {case.details}")
      print(f"  python -m tests.fuzz --seed {args.seed} --first {case.number} --cases 1 {targets}")
  print("\n".join(table(cases)))
  seconds = time.monotonic() - start
  print(f"{len(cases):,} cases, {len(failures(cases)):,} failures, {seconds:.0f} s")
  return 1 if failures(cases) else 0


if __name__ == "__main__":
  sys.exit(main())
