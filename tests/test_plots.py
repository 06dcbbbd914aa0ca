"""The plots of losses and experiments: direct labels that are legible and do not overlap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyformer.training import plots

DISTANCE = 0.1


@given(st.lists(st.floats(0, 1), max_size=8))
def test_labels_keep_their_order_and_their_distance(heights):
  labels = plots.spread(sorted(heights), DISTANCE)
  assert len(labels) == len(heights)
  assert all(np.diff(labels) > DISTANCE - 1e-9)
  assert np.isclose(sum(labels), sum(heights))


def test_labels_that_are_far_apart_stay_at_the_ends_of_their_lines():
  heights = [0.0, 0.2, 0.5]
  assert plots.spread(heights, DISTANCE) == pytest.approx(heights)


def luminance(color) -> float:
  """Return the relative luminance of a color, from 0 to 1 (WCAG 2.2)."""
  channels = np.array(color)
  linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
  return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("color", plots.COLORS)
def test_a_label_has_the_contrast_that_wcag_demands_of_text(color):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  assert (1 + 0.05) / (luminance(plots.darker(color)) + 0.05) >= 4.5


def test_each_line_has_a_label_beside_its_right_end_on_a_logarithmic_scale_too():
  figure = pytest.importorskip("matplotlib.figure", reason="needs the extra `plot`").Figure()
  axes = figure.add_subplot(yscale="log", ylim=(1, 100))
  axes.plot([0, 1], [3, 10], label="a")
  axes.plot([0, 1], [3, 100], label="b")
  axes.axhline(50)
  plots.label_lines(axes)
  labels = {text.get_text(): text.xy for text in axes.texts}
  assert labels.keys() == {"a", "b"}
  assert labels["a"][1] == pytest.approx(0.5)
  assert labels["b"][1] == pytest.approx(1)
  assert all(x > 1 for x, _ in labels.values())
