"""Draw attention weights as a PNG with matplotlib: many heads as small panels, or a large one."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyformer.files import atomic_write
from tinyformer.interpret.inspection import AttentionMap, InputImage, Inspection, Text
from tinyformer.interpret.scale import LINEAR, PATCH_DARKENING, Scale

try:
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import LinearSegmentedColormap, PowerNorm
  from matplotlib.figure import Figure
except ImportError as e:
  raise ImportError("--png needs matplotlib: run pip install -e '.[plot]'") from e

COLORS = LinearSegmentedColormap.from_list("weights", ["#ffffff", "#1c4a80"])
DARKEST_PATCH = (1 - PATCH_DARKENING,) * 3  # what remains of white
PATCH_COLORS = LinearSegmentedColormap.from_list("patches", [DARKEST_PATCH, (1, 1, 1)])
COLOR_BAR_HEIGHT = 0.6  # inches, with its numbers and label
DPI = 260  # twice the resolution of a usual screen
BORDER_COLOR = "#e3ddd2"
TEXT_STYLE = {"color": "#736c62", "family": "serif"}


class Panels(NamedTuple):
  """The layers and heads of an attention map that are drawn. size: inches per panel."""

  attention_map: AttentionMap
  layers: Sequence[int]
  heads: Sequence[int]
  size: float = 0.0


def draw_image_attention(axes, image: InputImage, weights: np.ndarray, scale: Scale) -> None:
  """Draw the attention weights (T, S) from the class token: patches without attention are dark."""
  from PIL import Image

  pixels = Image.open(io.BytesIO(image.png))
  width, height = pixels.size
  axes.imshow(pixels)
  patch_weights = weights[0, 1:].reshape(image.rows, image.columns)
  overlay = np.zeros((*patch_weights.shape, 4))
  overlay[..., 3] = PATCH_DARKENING * (1 - scale.shade(patch_weights, patch_weights.max()))
  extent = (-0.5, width - 0.5, height - 0.5, -0.5)
  axes.imshow(overlay, extent=extent, interpolation="nearest")


def draw_labels(axes, rows: Text, columns: Text) -> None:
  """Label the rows and columns of a panel with their tokens."""
  size = min(9.0, 260 / max(len(rows.labels), len(columns.labels)))
  for axis, text in ((axes.yaxis, rows), (axes.xaxis, columns)):
    axis.set_ticks(
      range(len(text.labels)),
      [label.strip() or "␣" for label in text.labels],
      fontsize=size,
      family="serif",
      parse_math=False,
    )
  axes.tick_params(length=0, pad=2, labelrotation=0)
  axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
  axes.tick_params(axis="x", labelrotation=90)


def draw_head(
  axes,
  inspection: Inspection,
  attention_map: AttentionMap,
  weights: np.ndarray,
  is_large: bool,
  scale: Scale,
) -> None:
  """Draw one head with attention weights (T, S). is_large: with the tokens at its sides."""
  if inspection.image:
    draw_image_attention(axes, inspection.image, weights, scale=scale)
  else:
    interpolation = "nearest" if is_large or len(weights) < 100 else "antialiased"
    norm = PowerNorm(scale.exponent, 0, 1)
    axes.imshow(weights, cmap=COLORS, norm=norm, interpolation=interpolation, aspect="equal")
  axes.set_xticks([])
  axes.set_yticks([])
  if is_large and not inspection.image:
    texts = inspection.texts
    draw_labels(axes, texts[attention_map.rows], texts[attention_map.columns])
  for side in axes.spines.values():
    side.set(color=BORDER_COLOR, linewidth=0.6)


def select(count: int, index: int | None) -> Sequence[int]:
  """Return all indices below count, or only the given one if it exists."""
  if index is None:
    return range(count)
  return [index] if index < count else []


def panel_size(panels: Panels, is_image: bool, is_large: bool) -> float:
  """Return the width and height of a panel in inches."""
  if not is_large:
    return min(1.3, 11 / len(panels.heads))
  if is_image:
    return 4.5
  return min(9.0, 1.6 + 0.2 * max(panels.attention_map.weights.shape[2:]))


def draw_panels(
  figure, inspection: Inspection, panels: Panels, is_large: bool, scale: Scale
) -> None:
  """Draw heads as a grid, with a row per layer and a column per head."""
  first_layer = panels.layers[0]
  first_head = panels.heads[0]
  weights = panels.attention_map.weights
  grid = figure.subplots(len(panels.layers), len(panels.heads), squeeze=False)
  for row, layer in zip(grid, panels.layers, strict=True):
    for axes, head in zip(row, panels.heads, strict=True):
      draw_head(
        axes,
        inspection,
        panels.attention_map,
        weights=weights[layer, head],
        is_large=is_large,
        scale=scale,
      )
      if is_large:
        axes.set_xlabel(f"layer {layer}, head {head}", fontsize=9, **TEXT_STYLE)
        continue
      if layer == first_layer:
        title = f"head {head}" if head == first_head else f"{head}"
        axes.set_title(title, fontsize=8, pad=2, **TEXT_STYLE)
      if head == first_head:
        label = f"layer {layer}" if layer == first_layer else f"{layer}"
        axes.set_ylabel(label, fontsize=8, labelpad=2, **TEXT_STYLE)


def draw_color_bar(figure, scale: Scale, is_image: bool) -> None:
  """Draw a horizontal color bar that fills a figure."""
  colors = PATCH_COLORS if is_image else COLORS
  mappable = ScalarMappable(PowerNorm(scale.exponent, 0, 1), colors)
  axes = figure.subplots()
  bar = figure.colorbar(mappable, cax=axes, orientation="horizontal")
  bar.set_ticks(scale.ticks, labels=[f"{tick:g}" for tick in scale.ticks])
  bar.ax.minorticks_off()
  bar.ax.tick_params(length=2, pad=2, labelsize=8, color=BORDER_COLOR)
  for label in bar.ax.get_xticklabels():
    label.set(**TEXT_STYLE)
  bar.set_label(scale.label(is_image), fontsize=8, labelpad=2, **TEXT_STYLE)
  bar.outline.set(color=BORDER_COLOR, linewidth=0.6)


def make_figure(
  inspection: Inspection,
  layer: int | None = None,
  head: int | None = None,
  scale: Scale = LINEAR,
) -> Figure:
  """Return a figure with the selected heads and a color bar. layer, head: None means all."""
  selected = []
  for m in inspection.maps:
    num_layers, num_heads = m.weights.shape[:2]
    panels = Panels(m, select(num_layers, layer), select(num_heads, head))
    if panels.layers and panels.heads:
      selected.append(panels)
  is_large = all(len(panels.layers) * len(panels.heads) <= 2 for panels in selected)
  is_image = inspection.image is not None
  selected = [p._replace(size=panel_size(p, is_image, is_large)) for p in selected]
  width = max(len(panels.heads) * panels.size for panels in selected) + 0.4
  heights = [len(panels.layers) * panels.size + 0.45 for panels in selected]
  heights.append(COLOR_BAR_HEIGHT)
  figure = Figure(figsize=(width, sum(heights)), layout="constrained")
  subfigures = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
  for subfigure, panels in zip(subfigures[:-1], selected, strict=True):
    if len(selected) > 1:
      subfigure.suptitle(panels.attention_map.title, fontsize=9, **TEXT_STYLE)
    draw_panels(subfigure, inspection, panels, is_large=is_large, scale=scale)
  draw_color_bar(subfigures[-1], scale, is_image)
  return figure


def draw(
  inspection: Inspection,
  path: Path,
  layer: int | None = None,
  head: int | None = None,
  scale: Scale = LINEAR,
) -> None:
  """Write the PNG atomically. layer, head: None means all."""
  figure = make_figure(inspection, layer, head, scale=scale)
  with warnings.catch_warnings(), atomic_write(path) as file:
    warnings.simplefilter("ignore")  # matplotlib draws a box for a letter that the font lacks
    figure.savefig(file, format="png", dpi=DPI)
