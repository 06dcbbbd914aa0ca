"""Write an inspection as a single HTML page that needs no network and no other file."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.interpret import attribution
from tinyformer.interpret.head_types import HEAD_TYPES
from tinyformer.interpret.inspection import AttentionMap, Inspection, data_url, head_type_scores
from tinyformer.interpret.labels import printable, token_labels
from tinyformer.interpret.logit_lens import LogitLens, lens
from tinyformer.interpret.scale import LINEAR, PATCH_DARKENING, SCALES, Scale

HEAD_TYPE_TITLES = {
  "previous": "Previous token",
  "first": "First token",
  "duplicate": "Duplicate token",
  "induction": "Induction",
}
NUM_ATTRIBUTED = 3  # predictions per position whose contributions the page shows
CLASSIFICATION = ("text-classification", "token-classification", "image-classification")

LENS_NEEDS_PREDICTIONS = "The logit lens needs predictions, but this model returns vectors."
LENS_NEEDS_TOKENS = (
  "The logit lens needs predicted tokens or labels, "
  "but this model predicts where an answer begins and ends."
)
LENS_NEEDS_DISTRIBUTION = (
  "The logit lens needs a probability distribution, "
  "but this model predicts numbers or several independent labels."
)
LENS_EXPLANATION = (
  "The most probable prediction {positions}, according to each layer. "
  "The final norm and the head are applied to the residual stream after that layer. "
  "The strength of a color is proportional to the probability. "
  "This method is called the logit lens."
)
ATTRIBUTION_EXPLANATION = (
  "The direct contribution of each part of the model to the logit of a prediction. "
  "Norm scales are fixed at their computed values. "
  "Effects through later layers count as contributions of those layers. "
  "Choose a token above, and one of its predictions."
)
HEAD_TYPES_EXPLANATION = (
  "Each score is a mean attention weight, measured on random tokens that are repeated once. "
  "The weight is that of the previous token, the first token, an earlier occurrence of the token, "
  "or the token after that occurrence. "
  "A head that attends to nothing else scores 1. 3.2 is head 2 of layer 3."
)
HEAD_TYPES_NEED_TEXT = "Head types are defined for text only, not for images."


def quantize_rows(weights: np.ndarray) -> np.ndarray:
  """Return rows (..., S) that sum to 1 as 8-bit numbers that sum to 255.

  Numbers are rounded down, except those with the largest remainders. A row of zeros stays zero.
  """
  exact = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9) * 255
  rounded_down = np.floor(exact)
  missing = np.rint(exact.sum(-1, keepdims=True)) - rounded_down.sum(-1, keepdims=True)
  by_remainder = np.argsort(rounded_down - exact, axis=-1, kind="stable")
  rank = np.argsort(by_remainder, axis=-1)  # 0 for the largest remainder
  return (rounded_down + (rank < missing)).astype(np.uint8)


def to_base64(array: np.ndarray) -> str:
  """Return the bytes of an array as base64."""
  return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def run_logit_lens(inspection: Inspection) -> tuple[LogitLens | None, str]:
  """Return the logit lens and its explanation, or None and the reason."""
  model = inspection.recorded.model
  if model.task == "feature-extraction" or model.head is None:
    return None, LENS_NEEDS_PREDICTIONS
  if model.task == "question-answering":
    return None, LENS_NEEDS_TOKENS
  single_label = "single_label_classification"
  if getattr(model.head, "problem", single_label) != single_label:
    return None, LENS_NEEDS_DISTRIBUTION
  if inspection.image:
    positions = "at the class token, which the head reads"
  elif inspection.output_positions != slice(None):
    positions = "at the first token, which the head reads"
  elif model.task == "text-generation":
    positions = "after each token of the text"
  elif model.task == "text2text-generation":
    positions = "after each token of the target"
  else:
    positions = "for each token"
  result = lens(model, inspection.activations, inspection.output_positions)
  return result, LENS_EXPLANATION.format(positions=positions)


def prediction_labels(inspection: Inspection, ids: np.ndarray) -> list[str]:
  """Return the names of predicted classes, or the labels of predicted tokens."""
  model = inspection.recorded.model
  tokenizer = inspection.recorded.tokenizer
  if model.task in CLASSIFICATION:
    return [printable(str(model.labels[i])) for i in ids]
  return [
    token_labels(tokenizer, [int(i)])[0] if int(i) in tokenizer.tokens else f"token {i}"
    for i in ids
  ]


def most_focused_head(weights: np.ndarray) -> tuple[int, int]:
  """Return the layer and head with the highest mean of each query's largest attention weight.

  weights (layers, H, T, S). Weights of the first token do not count.
  """
  largest = weights[..., 1:].max(-1, initial=0)
  layer, head = np.unravel_index(largest.mean(-1).argmax(), weights.shape[:2])
  return int(layer), int(head)


def map_data(attention_map: AttentionMap) -> dict[str, Any]:
  """Return what the page needs of an attention map."""
  num_layers, num_heads, num_queries, num_keys = attention_map.weights.shape
  return {
    "name": attention_map.name,
    "title": attention_map.title,
    "rows": attention_map.rows,
    "columns": attention_map.columns,
    "part": attention_map.kind,
    "layers": num_layers,
    "heads": num_heads,
    "T": num_queries,
    "S": num_keys,
    "data": to_base64(quantize_rows(attention_map.weights)),
  }


def lens_data(inspection: Inspection, logit_lens: LogitLens) -> dict[str, Any]:
  """Return what the page needs of the logit lens."""
  is_generation = inspection.recorded.model.task in ("text-generation", "text2text-generation")
  ids = np.unique(logit_lens.top_ids)
  return {
    "text": inspection.output_text,
    "verb": "After" if is_generation else "At",
    "count": logit_lens.top_ids.shape[1],
    "names": prediction_labels(inspection, ids),
    "best": np.searchsorted(ids, logit_lens.top_ids).tolist(),
    "chances": np.round(logit_lens.probabilities.astype(float), 4).tolist(),
  }


def attribution_data(
  inspection: Inspection, logit_lens: LogitLens
) -> tuple[dict[str, Any] | None, str]:
  """Return what the page needs of contributions and their explanation, or None and the reason."""
  logit_ids = logit_lens.top_ids[-1][:, :NUM_ATTRIBUTED]
  contributions = attribution.attribute(
    inspection.recorded.model, inspection.activations, logit_ids, inspection.output_positions
  )
  if isinstance(contributions, str):
    return None, contributions
  values = np.stack([c.values for c in contributions])
  data = {
    "names": [{"kind": c.kind, "layer": c.layer, "head": c.head} for c in contributions],
    "count": logit_ids.shape[1],
    "adds": to_base64(values.astype("<f4")),
    "logits": np.round(logit_lens.logits[:, :NUM_ATTRIBUTED].astype(float), 5).tolist(),
  }
  return data, ATTRIBUTION_EXPLANATION


def head_type_data(inspection: Inspection) -> tuple[dict[str, Any] | None, str]:
  """Return what the page needs of head types and their explanation, or None and the reason."""
  if inspection.image:
    return None, HEAD_TYPES_NEED_TEXT
  scores = {
    index: {head_type: np.round(s, 3).tolist() for head_type, s in by_type.items()}
    for index, by_type in head_type_scores(inspection).items()
  }
  data = {"names": HEAD_TYPES, "titles": HEAD_TYPE_TITLES, "maps": scores}
  return data, HEAD_TYPES_EXPLANATION


def page_data(
  inspection: Inspection,
  title: str,
  about: str,
  layer: int | None = None,
  head: int | None = None,
  scale: Scale = LINEAR,
) -> dict[str, Any]:
  """Return the data of the page as a JSON object.

  layer, head: those that are selected at first, or None for the most focused head.
  scale: the one that is selected at first.
  """
  image = inspection.image
  texts = {
    name: {"title": text.title, "labels": text.labels, "rtl": text.right_to_left}
    for name, text in inspection.texts.items()
  }
  logit_lens, lens_explanation = run_logit_lens(inspection)
  parts, parts_explanation = attribution_data(inspection, logit_lens) if logit_lens else (None, "")
  head_types, head_types_explanation = head_type_data(inspection)
  focused_layer, focused_head = most_focused_head(inspection.maps[-1].weights)
  return {
    "title": title,
    "about": about,
    "texts": texts,
    "maps": [map_data(m) for m in inspection.maps],
    "lens": lens_data(inspection, logit_lens) if logit_lens else None,
    "parts": parts,
    "kinds": head_types,
    "picture": image
    and {
      "text": inspection.output_text,
      "src": data_url(image),
      "rows": image.rows,
      "columns": image.columns,
    },
    "how": {
      "lens": lens_explanation,
      "parts": parts_explanation,
      "kinds": head_types_explanation,
    },
    "start": {
      "map": len(inspection.maps) - 1,
      "layer": focused_layer if layer is None else layer,
      "head": focused_head if head is None else head,
      "scale": scale.name,
      "chosen": {
        name: 0 if image else len(text.labels) - 1 for name, text in inspection.texts.items()
      },
    },
  }


def shading_data() -> dict[str, Any]:
  """Return what the page needs to draw weights as the other views do."""
  scales = [
    {**scale._asdict(), "label": scale.label(), "imageLabel": scale.label(is_image=True)}
    for scale in SCALES.values()
  ]
  return {"scales": scales, "patchDarkening": PATCH_DARKENING}


def render_page(data: dict[str, Any]) -> str:
  """Return the HTML page with this data.

  Texts stay texts: no `<` is left in the JSON, which could end the script element around it.
  """
  folder = Path(__file__).parent
  html = (folder / "page.html").read_text(encoding="utf-8")
  css = (folder / "page.css").read_text(encoding="utf-8")
  js = (folder / "page.js").read_text(encoding="utf-8")
  json_text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
  json_text = (
    json_text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
  )
  html = html.replace("/* shading */", json.dumps(shading_data()))
  head, tail = html.split("/* data */")
  return head.replace("/* page.css */", css) + json_text + tail.replace("/* page.js */", js)
