"""The memory of a process does not grow with the number of texts that it processes."""

import sys

import pytest
from chaos import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.slow
@pytest.mark.parametrize("name", memory.WORKLOADS)
def test_the_memory_of_a_long_run_does_not_grow(name):
  _, half, end = memory.measure(name, scale=0.1)
  assert end < half + memory.MAX_GROWTH
