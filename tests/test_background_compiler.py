"""C kernels are compiled in other threads while a step is traced, and each one once."""

import secrets
import subprocess
import threading

import numpy as np
import pytest
from conftest import normal
from tinygrad import Context, Device, Tensor

from tinyformer.kernels.c_kernel import has_clang
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.gelu import gelu

pytestmark = pytest.mark.skipif(
  not has_clang(Device.DEFAULT), reason="the kernels run on the CPU only"
)


class Compilations:
  """The threads that compile a kernel of GELU. `fails`: all threads but the main one fail."""

  def __init__(self):
    self.threads: list[threading.Thread] = []
    self.fails = False

  def add(self, source: str) -> None:
    if "#define NAME gelu" in source:
      thread = threading.current_thread()
      self.threads.append(thread)
      if self.fails and thread is not threading.main_thread():
        raise subprocess.CalledProcessError(1, "clang")


@pytest.fixture
def compilations(monkeypatch):
  compiler = Device["CPU"].renderer.compiler
  compile_source = compiler.compile
  result = Compilations()

  def compile_and_record(source: str) -> bytes:
    result.add(source)
    return compile_source(source)

  monkeypatch.setattr(compiler, "compile", compile_and_record)
  return result


def check_step() -> None:
  """Check a step with a kernel that is compiled for a new size."""
  x = normal(1, 100_000 + secrets.randbelow(1_000_000))
  y = CompiledStep(lambda x: gelu(x).realize())(x)
  np.testing.assert_allclose(y, Tensor(x).gelu().numpy(), atol=1e-5)


def test_another_thread_compiles_a_kernel_and_tinygrad_uses_the_result(compilations):
  check_step()
  assert len(compilations.threads) == 1
  assert compilations.threads[0] is not threading.main_thread()


def test_tinygrad_compiles_a_kernel_that_another_thread_could_not_compile(compilations):
  compilations.fails = True
  check_step()
  assert len(compilations.threads) == 2
  assert compilations.threads[1] is threading.main_thread()


def test_without_a_cache_only_tinygrad_compiles(compilations):
  with Context(CACHELEVEL=0):
    check_step()
  assert compilations.threads == [threading.main_thread()]
