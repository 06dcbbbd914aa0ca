"""Compile C kernels in other threads while a step is traced.

tinygrad compiles the kernels of a step one at a time, after it has traced them. The source of a C
kernel is known as soon as the step uses it.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from tinygrad import Device

from tinyformer.kernels import c_kernel
from tinyformer.kernels.tinygrad_internals import CACHELEVEL, diskcache_get, diskcache_put


@contextlib.contextmanager
def background_compiler() -> Iterator[None]:
  """Compile the C kernels that are used in this context, and wait for them at its end.

  The machine code is stored in tinygrad's cache, where tinygrad finds it. A kernel that does not
  compile is left to tinygrad, which raises the error.
  """
  codes: dict[tuple[str, str], Future[bytes]] = {}  # by tinygrad's key of the compiler, and source
  with ThreadPoolExecutor(os.cpu_count()) as pool:

    def compile_once(source: str) -> None:
      compiler = Device["CPU"].renderer.compiler
      if not compiler.cachekey or not CACHELEVEL.value:  # there is no cache
        return
      key = compiler.cachekey, source
      if key not in codes and diskcache_get(*key) is None:
        codes[key] = pool.submit(compiler.compile, source)

    c_kernel.listeners.append(compile_once)
    try:
      yield
    finally:
      c_kernel.listeners.remove(compile_once)
  for key, code in codes.items():
    if not code.exception():
      diskcache_put(*key, code.result())
