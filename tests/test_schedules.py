"""Learning-rate schedules."""

import pytest

from tinyformer.training.schedules import cosine_schedule, linear_schedule


def test_the_cosine_schedule_warms_up_and_decays_to_a_tenth():
  rates = [cosine_schedule(s, 1000, 100, 2.0) for s in range(1000)]
  assert rates[0] == 0.02
  assert max(rates) == rates[99] == 2.0
  assert rates[-1] == pytest.approx(0.2, rel=0.01)
  assert rates[:100] == sorted(rates[:100])
  assert rates[99:] == sorted(rates[99:], reverse=True)


def test_the_linear_schedule_rises_for_a_tenth_of_the_steps_and_falls_to_zero():
  rates = [linear_schedule(s, 100, 2.0) for s in range(101)]
  assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
  assert rates[10:] == pytest.approx([2.0 * (100 - s) / 90 for s in range(10, 101)])
