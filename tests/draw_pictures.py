"""Draw docs/page.png and docs/attention.png: `python tests/draw_pictures.py [FOLDER]`.

They show what attend.py writes for the README's sentence: the page and the PNG. The picture of the
page shows the head and the row with the largest weight of a token other than the query itself.
"""

import json
import sys
import tempfile
from pathlib import Path

import browser
import numpy as np
from conftest import ROOT
from test_attend import page_weights
from test_page import read_data

import attend

SENTENCE = "The man took his hat and the woman took her coat."
WIDTH = 800  # CSS pixels; the picture has twice as many
PADDING = 16


def sharpest_off_diagonal(weights: np.ndarray) -> tuple[int, int, int]:
  """Return the layer, head and query of the largest weight (layers, H, T, T) off the diagonal."""
  off_diagonal = np.where(np.eye(weights.shape[-1], dtype=bool), 0, weights)
  layer, head, query, _ = np.unravel_index(off_diagonal.argmax(), weights.shape)
  return int(layer), int(head), int(query)


def compress(png: Path) -> None:
  """Reduce a PNG to 256 colors, each at most a few of 255 steps from the original color."""
  from PIL import Image

  image = Image.open(png).convert("RGB")
  image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(png, optimize=True)


def draw_page(chrome: browser.Browser, page: Path, png: Path) -> None:
  """Draw the page from its title to the end of the section with the attention maps."""
  layer, head, query = sharpest_off_diagonal(page_weights(read_data(page.read_text())))
  chrome.open(page, width=WIDTH, height=1200, pixel_ratio=2)
  text = json.dumps(read_data(page.read_text())["maps"][0]["rows"])
  chrome.run(f"selectHead({layer}, {head}), selectToken({text}, {query})")
  chrome.run("document.activeElement.blur()")
  chrome.run("new Promise(done => setTimeout(done, 300))")  # transitions of colors end
  bottom = chrome.run("element('attention').getBoundingClientRect().bottom")
  chrome.screenshot(png, height=int(bottom) + PADDING)
  compress(png)


def main(folder: Path) -> None:
  with tempfile.TemporaryDirectory() as temporary:
    page = Path(temporary) / "page.html"
    png = folder / "attention.png"
    attend.main(["-p", SENTENCE, "--png", str(png), "--html", str(page), "-q"])
    compress(png)
    chrome = browser.Browser()
    draw_page(chrome, page, folder / "page.png")
    chrome.close()


if __name__ == "__main__":
  main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
