"""Weights are side by side in huge pages, which are freed with the last of them."""

import gc
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import normal
from tinygrad import Device, Tensor, dtypes

from tinyformer.kernels import huge_pages
from tinyformer.kernels.compiled_step import memory_view

on_cpu = pytest.mark.skipif(Device.DEFAULT != "CPU", reason="the memory is the CPU's")
SHAPES = [((3, 5), dtypes.float32), ((7, 11), dtypes.int8), ((), dtypes.float32)]
SHAPES += [((0, 4), dtypes.float32), ((2, 3), dtypes.bfloat16)]
MEGABYTE = 1 << 20


def resident_megabytes() -> float:
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * 4096 / MEGABYTE


def view_of(tensor: Tensor) -> np.ndarray:
  view = memory_view(tensor)
  assert view is not None
  return view


def filled(megabytes: int, count: int) -> list:
  """Return tensors of one block of memory, whose pages are in use."""
  shape = (megabytes * MEGABYTE,)
  allocate = huge_pages.allocator(count * huge_pages.padded_size(shape, dtypes.uint8))
  tensors = [allocate(*shape, dtype=dtypes.uint8) for _ in range(count)]
  for tensor in tensors:
    view_of(tensor)[:] = 1
  return tensors


@on_cpu
def test_tensors_have_their_shapes_and_do_not_overlap():
  allocate = huge_pages.allocator(sum(huge_pages.padded_size(*pair) for pair in SHAPES))
  tensors = [allocate(*shape, dtype=dtype) for shape, dtype in SHAPES]
  views = [view_of(t) for t, (shape, _) in zip(tensors, SHAPES, strict=True) if 0 not in shape]
  for number, view in enumerate(views):
    view[...] = number + 1
  for number, view in enumerate(views):
    assert (view == number + 1).all()
    assert view.ctypes.data % 64 == 0
  assert [(t.shape, t.dtype) for t in tensors] == SHAPES
  assert views[0].ctypes.data % huge_pages.HUGE_PAGE == 0 or sys.platform != "linux"


@on_cpu
def test_a_tensor_is_read_and_assigned_as_any_other():
  allocate = huge_pages.allocator(huge_pages.padded_size((4, 6), dtypes.float32))
  tensor = allocate(4, 6, dtype=dtypes.float32)
  values = normal(4, 6)
  view_of(tensor)[...] = values
  np.testing.assert_allclose((tensor.T @ tensor).numpy(), values.T @ values, rtol=1e-5, atol=1e-5)
  tensor.assign(tensor * 2).realize()
  np.testing.assert_array_equal(view_of(tensor), values * 2)


@on_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_the_memory_is_freed_with_the_last_tensor():
  before = resident_megabytes()
  first, second = filled(16, 2)
  assert resident_megabytes() > before + 30
  del first
  gc.collect()
  assert (view_of(second) == 1).all()
  del second
  gc.collect()
  assert resident_megabytes() < before + 8


@on_cpu
def test_the_pages_are_huge_if_the_system_allows_it():
  setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
  if not setting.exists() or "[never]" in setting.read_text():
    pytest.skip("this system has no huge pages")
  [tensor] = filled(16, 1)
  address = view_of(tensor).ctypes.data
  for area in re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]:
    first, last = (int(number, 16) for number in area.split()[0].split("-"))
    if first <= address < last:
      # The system may be out of huge pages, but this memory must be eligible for them.
      assert re.search(r"^THPeligible:\s+1", area, re.M)
