"""A scene as a PNG, with matplotlib: every head small and beside the others, or one large with its tokens."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyformer.checkpoints.safetensors import atomic_write
from tinyformer.interpret.inspection import Map, Scene

try:
  from matplotlib.colors import LinearSegmentedColormap, PowerNorm
  from matplotlib.figure import Figure
except ImportError as e:
  raise ImportError(
    "a PNG is drawn with matplotlib, which is not installed: pip install -e '.[plot]'"
  ) from e

INK, QUIET = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#1c4a80"]), "#736c62"
SCALE = PowerNorm(
  0.5, 0, 1
)  # as on the page: ink grows as the root of the weight, or small ones would not be seen


def panel(axes, scene: Scene, map: Map, weights: np.ndarray, named: bool) -> None:
  """One head, weights (T, S). named: with its tokens at the sides."""
  if scene.picture:
    from PIL import Image

    image = Image.open(io.BytesIO(scene.picture.png))
    axes.imshow(image)
    seen, (width, height) = (
      weights[0, 1:].reshape(scene.picture.rows, scene.picture.columns),
      image.size,
    )
    veil = np.zeros((*seen.shape, 4))
    veil[..., 3] = 0.86 * (
      1 - np.sqrt(seen / max(seen.max(), 1e-9))
    )  # black where nothing is looked at
    axes.imshow(veil, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
  else:
    axes.imshow(
      weights,
      cmap=INK,
      norm=SCALE,
      interpolation="nearest" if named or len(weights) < 100 else "antialiased",
      aspect="equal",
    )
  axes.set_xticks([])
  axes.set_yticks([])
  if named and not scene.picture:
    size = min(9.0, 260 / max(weights.shape))
    for axis, text in ((axes.yaxis, map.rows), (axes.xaxis, map.columns)):
      axis.set_ticks(
        range(len(scene.texts[text].labels)),
        [name.strip() or "␣" for name in scene.texts[text].labels],
        fontsize=size,
        family="serif",
        parse_math=False,
      )
    axes.tick_params(
      length=0, pad=2, top=True, labeltop=True, bottom=False, labelbottom=False, labelrotation=0
    )
    axes.tick_params(axis="x", labelrotation=90)
  for side in axes.spines.values():
    side.set(color="#e3ddd2", linewidth=0.6)


def draw(scene: Scene, path: Path, layer: int | None = None, head: int | None = None) -> None:
  """Writes the PNG, whole or not at all. layer, head: only these."""

  def chosen(count: int, only: int | None) -> Sequence[int]:
    return range(count) if only is None else [only] if only < count else []

  shown = [
    (m, chosen(m.weights.shape[0], layer), chosen(m.weights.shape[1], head)) for m in scene.maps
  ]
  shown = [(m, layers, heads) for m, layers, heads in shown if layers and heads]
  large = all(len(layers) * len(heads) <= 2 for _, layers, heads in shown)
  each = [
    (min(9.0, 1.6 + 0.2 * max(m.weights.shape[2:])) if not scene.picture else 4.5)
    if large
    else min(1.3, 11 / len(heads))
    for m, _, heads in shown
  ]
  width, heights = (
    max(len(heads) * side for side, (_, _, heads) in zip(each, shown)) + 0.4,
    [len(layers) * side + 0.45 for side, (_, layers, _) in zip(each, shown)],
  )
  figure = Figure(figsize=(width, sum(heights)), layout="constrained")
  figures = figure.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)
  for part, (m, layers, heads) in zip(figures[:, 0], shown):
    if len(shown) > 1:
      part.suptitle(m.title, fontsize=9, color=QUIET, family="serif")
    grid = part.subplots(len(layers), len(heads), squeeze=False)
    for row, i in zip(grid, layers):
      for axes, h in zip(row, heads):
        panel(axes, scene, m, m.weights[i, h], large)
        if large:
          axes.set_xlabel(f"layer {i}, head {h}", fontsize=9, color=QUIET, family="serif")
        else:
          if i == layers[0]:
            axes.set_title(
              f"head {h}" if h == heads[0] else f"{h}",
              fontsize=7,
              color=QUIET,
              family="serif",
              pad=2,
            )
          if h == heads[0]:
            axes.set_ylabel(
              f"layer {i}" if i == layers[0] else f"{i}",
              fontsize=7,
              color=QUIET,
              family="serif",
              labelpad=2,
            )
  with warnings.catch_warnings(), atomic_write(path) as file:
    warnings.simplefilter("ignore")  # of letters that the font lacks: they become boxes
    figure.savefig(file, format="png", dpi=130)
