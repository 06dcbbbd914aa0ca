"""The PNG of attend.py."""

import io

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plot`")
from matplotlib.colors import to_rgb

from tinyformer.interpret import figure
from tinyformer.interpret.inspection import AttentionMap, InputImage, Inspection, Text
from tinyformer.interpret.scale import PATCH_DARKENING, SCALES

STRONGEST = np.array(to_rgb("#1c4a80"))


def text_inspection():
  """Return an inspection of 2 layers with 3 heads on 4 tokens, with random weights."""
  weights = np.random.default_rng(0).dirichlet(np.full(4, 0.3), (2, 3, 4)).astype(np.float32)
  attention_map = AttentionMap("", "self-attention", "text", "text", weights, "attn")
  return Inspection(
    recorded=None,
    texts={"text": Text("", ["a", "b", "c", "d"])},
    maps=[attention_map],
    activations=None,
    output_text="text",
    output_positions=slice(None),
  )


def image_inspection():
  """Return an inspection of a layer with a head on an image of 2 x 3 patches."""
  Image = pytest.importorskip("PIL.Image")
  file = io.BytesIO()
  Image.new("RGB", (12, 8), "white").save(file, "PNG")
  weights = np.random.default_rng(0).dirichlet(np.full(7, 0.3), (1, 1, 7)).astype(np.float32)
  attention_map = AttentionMap("", "self-attention", "picture", "picture", weights, "attn")
  return Inspection(
    recorded=None,
    texts={"picture": Text("patches", [str(i) for i in range(7)])},
    maps=[attention_map],
    activations=None,
    output_text="picture",
    output_positions=slice(0, 1),
    image=InputImage(file.getvalue(), 2, 3),
  )


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("layer, head", [(None, None), (1, 2)], ids=["all heads", "one head"])
def test_the_strength_of_a_color_is_the_shade_of_the_weight(scale, layer, head):
  inspection = text_inspection()
  weights = inspection.maps[0].weights
  if layer is not None:
    weights = weights[layer, head]
  *panels, _ = figure.make_figure(inspection, layer, head, scale=scale).axes
  assert len(panels) == weights.size // 16
  for axes, expected in zip(panels, weights.reshape(-1, 4, 4), strict=True):
    [image] = axes.images
    np.testing.assert_array_equal(image.get_array(), expected)
    colors = image.to_rgba(image.get_array())[..., :3]
    strength = ((1 - colors) / (1 - STRONGEST)).mean(-1)
    np.testing.assert_allclose(strength, scale.shade(expected), atol=0.01)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_a_patch_is_darkened_relative_to_the_largest_weight_of_its_head(scale):
  inspection = image_inspection()
  weights = inspection.maps[0].weights[0, 0, 0, 1:].reshape(2, 3)
  axes, _ = figure.make_figure(inspection, scale=scale).axes
  _, overlay = axes.images
  expected = PATCH_DARKENING * (1 - scale.shade(weights, weights.max()))
  np.testing.assert_allclose(overlay.get_array()[..., 3], expected, rtol=1e-5)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("inspection", [text_inspection, image_inspection])
def test_the_color_bar_names_the_scale_and_has_a_number_at_each_tick(scale, inspection):
  inspection = inspection()
  result = figure.make_figure(inspection, scale=scale)
  result.draw_without_rendering()
  axes = result.axes[-1]
  assert axes.get_xlabel() == scale.label(is_image=bool(inspection.image))
  labels = [label.get_text() for label in axes.get_xticklabels()]
  assert labels == [f"{tick:g}" for tick in scale.ticks]
  ticks = np.stack([axes.get_xticks(), np.zeros(len(labels))], -1)
  positions = axes.transAxes.inverted().transform(axes.transData.transform(ticks))[:, 0]
  np.testing.assert_allclose(positions, scale.shade(np.array(scale.ticks)), atol=1e-6)
