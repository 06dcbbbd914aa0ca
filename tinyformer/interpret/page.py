"""A scene as one page of HTML that needs nothing else: no network, no other file."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.interpret import attribution
from tinyformer.interpret.head_types import KINDS
from tinyformer.interpret.inspection import Scene, data_url, head_kinds
from tinyformer.interpret.labels import labels, safe
from tinyformer.interpret.logit_lens import Lens, lens

TITLES = {
  "previous": "Previous token",
  "first": "First token",
  "duplicate": "Duplicate token",
  "induction": "Induction",
}
CHOICES = 3  # predictions of a place whose parts are shown


def quantised(weights: np.ndarray) -> np.ndarray:
  """Rows (..., S) that sum to 1 -> 8-bit numbers that sum to 255: rounded down, and what is left given to those with the largest remainders. A row of zeros stays."""
  exact = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9) * 255
  whole = np.floor(exact)
  left = np.rint(exact.sum(-1, keepdims=True)) - whole.sum(-1, keepdims=True)
  rank = np.argsort(
    np.argsort(whole - exact, axis=-1, kind="stable"), axis=-1
  )  # 0 for the largest remainder
  return (whole + (rank < left)).astype(np.uint8)


def text64(array: np.ndarray) -> str:
  return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def predicted(scene: Scene) -> tuple[Lens | None, list[str], str]:
  """The lens, the names of what is predicted, and what is said of it in words."""
  model = scene.model
  if model.task == "feature-extraction" or model.head is None:
    return (
      None,
      [],
      "This model ends in vectors and predicts nothing: there is no lens to look through.",
    )
  if model.task == "question-answering":
    return (
      None,
      [],
      "This model tells where an answer begins and ends, and predicts no token: there is no lens to look through.",
    )
  if getattr(model.head, "problem", "single_label_classification") != "single_label_classification":
    return (
      None,
      [],
      "This model tells numbers, or several labels at once, that are no chances to compare: there is no lens to look through.",
    )
  seen = lens(model, scene.record, scene.places)
  where = {
    "text-generation": "after each token of the text",
    "text2text-generation": "after each token of the target",
    "fill-mask": "in the place of each token",
  }.get(model.task, "of each token")
  if scene.places != slice(None):
    where = (
      "at the first token, where this model’s head reads"
      if not scene.picture
      else "at the class token, where this model’s head reads"
    )
  names = labels_of(scene, np.unique(seen.best))
  return (
    seen,
    names,
    f"The model’s last norm and head on what stands behind each of its layers: the likeliest prediction {where}; the stronger the colour, the likelier (the “logit lens”).",
  )


def labels_of(scene: Scene, ids: np.ndarray) -> list[str]:
  """What predictions are called: those of a model with labels by these, others as tokens."""
  if scene.model.task in ("text-classification", "token-classification", "image-classification"):
    return [safe(str(scene.model.labels[i])) for i in ids]
  return [
    labels(scene.tokenizer, [int(i)])[0] if int(i) in scene.tokenizer.tokens else f"token {i}"
    for i in ids
  ]


def sharpest(weights: np.ndarray) -> tuple[int, int]:
  """Of maps (layers, H, T, S) the layer and head that look most at one token, the first one aside: to begin with."""
  layer, head = np.unravel_index(
    weights[..., 1:].max(-1, initial=0).mean(-1).argmax(), weights.shape[:2]
  )
  return int(layer), int(head)


def data(
  scene: Scene, title: str, about: str, layer: int | None = None, head: int | None = None
) -> dict[str, Any]:
  """All that the page shows, as JSON can hold it. layer, head: what is open at first, where they are given."""
  texts = {
    name: {"title": t.title, "labels": t.labels, "rtl": t.leftward}
    for name, t in scene.texts.items()
  }
  maps = [
    {
      "name": m.name,
      "title": m.title,
      "rows": m.rows,
      "columns": m.columns,
      "part": m.part,
      "layers": m.weights.shape[0],
      "heads": m.weights.shape[1],
      "T": m.weights.shape[2],
      "S": m.weights.shape[3],
      "data": text64(quantised(m.weights)),
    }
    for m in scene.maps
  ]
  seen, names, how = predicted(scene)
  found: dict[str, Any] = {
    "title": title,
    "about": about,
    "texts": texts,
    "maps": maps,
    "lens": None,
    "parts": None,
    "kinds": None,
    "picture": None,
    "how": {"lens": how, "parts": "", "kinds": ""},
  }
  if scene.picture:
    found["picture"] = {
      "text": scene.read,
      "src": data_url(scene.picture),
      "rows": scene.picture.rows,
      "columns": scene.picture.columns,
    }
  if seen:
    verb = {
      "text-generation": "After",
      "text2text-generation": "After",
      "fill-mask": "In the place of",
    }.get(scene.model.task, "At")
    found["lens"] = {
      "text": scene.read,
      "verb": verb,
      "count": seen.best.shape[1],
      "names": names,
      "best": np.searchsorted(np.unique(seen.best), seen.best).tolist(),
      "chances": np.round(seen.chances.astype(float), 4).tolist(),
    }
    chosen = seen.best[-1][:, :CHOICES]
    parts = attribution.attribute(scene.model, scene.record, chosen, scene.places)
    if isinstance(parts, str):
      found["how"]["parts"] = parts
    else:
      found["how"]["parts"] = (
        "What each part of the model adds to the logit of a prediction directly, every norm’s scale taken as it was; what it changes in later layers counts as theirs. "
        "Choose a token above, and one of its predictions."
      )
      found["parts"] = {
        "names": [{"kind": p.kind, "layer": p.layer, "head": p.head} for p in parts],
        "count": chosen.shape[1],
        "adds": text64(np.stack([p.adds for p in parts]).astype("<f4")),
        "logits": np.round(seen.logits[:, :CHOICES].astype(float), 5).tolist(),
      }
  if scene.picture:
    found["how"]["kinds"] = "Of patches there are none: the kinds are of heads that read words."
  else:
    found["kinds"] = {
      "names": KINDS,
      "titles": TITLES,
      "maps": {
        i: {k: np.round(s, 3).tolist() for k, s in scores.items()}
        for i, scores in head_kinds(scene).items()
      },
    }
    found["how"]["kinds"] = (
      "Mean attention, on random tokens that come twice, to the token before, to the first one, to the same token where it came first, and to what followed it there: "
      "a head that does nothing else scores 1. 3.2 is head 2 of layer 3."
    )
  best = sharpest(scene.maps[-1].weights)
  found["start"] = {
    "map": len(maps) - 1,
    "layer": best[0] if layer is None else layer,
    "head": best[1] if head is None else head,
    "chosen": {name: 0 if scene.picture else len(t.labels) - 1 for name, t in scene.texts.items()},
  }
  return found


def page(data: dict[str, Any]) -> str:
  """The page that shows it. Whatever its texts say, they are text: no `<` is left that could end the script they stand in."""
  folder = Path(__file__).parent
  html, css, js = (
    (folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
  )
  told = (
    json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    .replace("<", "\\u003c")
    .replace("\u2028", "\\u2028")
    .replace("\u2029", "\\u2029")
  )
  head, tail = html.split("/* data */")
  return head.replace("/* page.css */", css) + told + tail.replace("/* page.js */", js)
