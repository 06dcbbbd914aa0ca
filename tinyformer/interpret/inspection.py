"""Run a model on a text, a source and target, or an image, and return what can be displayed."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyformer.interpret import head_types
from tinyformer.interpret.activations import Activations, run
from tinyformer.interpret.labels import right_to_left, token_labels

MAX_TOKENS = 256  # tokens or patches that can be displayed
# --last is an option of attend.py, last= an argument of tinyformer.inspect.
LAST_REMEDY = f"display its end with --last {MAX_TOKENS} (in Python: last={MAX_TOKENS})"


class TooLongError(ValueError):
  """A text or image has more tokens or patches than can be displayed."""


class RecordedModel(NamedTuple):
  """The model that was run, and its tokenizer."""

  model: Any
  tokenizer: Any = None


class Text(NamedTuple):
  """The labels of a text's tokens or an image's patches. title: "" if there is only one text."""

  title: str
  labels: list[str]
  right_to_left: bool = False


class AttentionMap(NamedTuple):
  """The attention weights (layers, H, T, S) from one text to another or to itself.

  rows, columns: the names of the texts with the queries and the keys.
  kind: the kind of Contribution of these heads, or None for an encoder in front of a decoder.
  """

  name: str
  title: str
  rows: str
  columns: str
  weights: np.ndarray
  kind: str | None


class InputImage(NamedTuple):
  """The part of an image that the model reads, as PNG. rows, columns: the numbers of patches."""

  png: bytes
  rows: int
  columns: int


class Inspection(NamedTuple):
  """The result of running a model once.

  activations: of the stack whose output the head reads.
  output_text: the name of the text for which predictions are made.
  output_positions: the positions of that text for which predictions are made.
  """

  recorded: RecordedModel
  texts: dict[str, Text]
  maps: list[AttentionMap]
  activations: Activations
  output_text: str
  output_positions: slice
  image: InputImage | None = None


def check_length(name: str, count: int, remedy: str) -> None:
  """Raise TooLongError if count is more than MAX_TOKENS."""
  unit = "patches" if name == "image" else "tokens"
  if count > MAX_TOKENS:
    raise TooLongError(
      f"the {name} has {count:,} {unit}, but at most {MAX_TOKENS} can be displayed: {remedy}"
    )


def inspect_text(recorded: RecordedModel, text: str, last: int | None = None) -> Inspection:
  """Run a decoder or an encoder on a text, or only on its last tokens.

  Raises TooLongError, and ValueError if the text is longer than the model's context.
  """
  model, tokenizer = recorded
  special_tokens = []
  if model.task == "fill-mask" and tokenizer.mask:
    mask_token = tokenizer.mask[1]
    special_tokens.append(mask_token)
    text = re.sub(r"\[MASK\]|<mask>", lambda _: mask_token, text)
  ids = tokenizer.single(tokenizer.encode(text, special_tokens))
  ids = ids[-last:] if last else ids
  check_length("text", len(ids), LAST_REMEDY)
  activations = run(model, ids)[""]
  weights = activations.attention_weights()
  return Inspection(
    recorded,
    texts={"text": Text("", token_labels(tokenizer, ids), right_to_left(text))},
    maps=[AttentionMap("", "self-attention", "text", "text", weights, "attn")],
    activations=activations,
    output_text="text",
    output_positions=slice(0, 1) if model.task == "text-classification" else slice(None),
  )


def inspect_pair(
  recorded: RecordedModel,
  text: str,
  target: str | None,
  start_token: int,
  generate: Callable[[list[int]], list[int]],
  last: int | None = None,
) -> Inspection:
  """Run an encoder-decoder on a text, or only on its last tokens, and on a target.

  target: None means what `generate` returns for the token ids of the text.
  start_token: the decoder start token, which precedes the target.
  Raises TooLongError, and ValueError if a text is longer than the model's context.
  """
  model, tokenizer = recorded
  source_ids = tokenizer.single(tokenizer.encode(text))
  source_ids = source_ids[-last:] if last else source_ids
  check_length("text", len(source_ids), LAST_REMEDY)
  if target is None:
    target_ids = generate(source_ids)
  else:
    target_ids = [*tokenizer.prefix_ids, *tokenizer.encode(target)]
  target_ids = [start_token, *target_ids]
  check_length("target", len(target_ids), "use a shorter target")
  stacks = run(model, source_ids, target_ids)
  target_text = target or tokenizer.decode(target_ids)
  texts = {
    "source": Text("source", token_labels(tokenizer, source_ids), right_to_left(text)),
    "target": Text("target", token_labels(tokenizer, target_ids), right_to_left(target_text)),
  }
  return Inspection(
    recorded,
    texts,
    maps=encoder_decoder_maps(stacks["encoder"], stacks["decoder"]),
    activations=stacks["decoder"],
    output_text="target",
    output_positions=slice(None),
  )


def encoder_decoder_maps(encoder: Activations, decoder: Activations) -> list[AttentionMap]:
  """Return the three attention maps of an encoder-decoder."""
  encoder_weights = encoder.attention_weights()
  decoder_weights = decoder.attention_weights()
  cross_weights = decoder.attention_weights("cross")
  cross_title = "cross-attention, from the target to the source"
  return [
    AttentionMap("encoder", "encoder self-attention", "source", "source", encoder_weights, None),
    AttentionMap("decoder", "decoder self-attention", "target", "target", decoder_weights, "attn"),
    AttentionMap("cross", cross_title, "target", "source", cross_weights, "cross"),
  ]


def inspect_image(recorded: RecordedModel, pixels: np.ndarray, image: np.ndarray) -> Inspection:
  """Run an image model on preprocessed pixels (1, C, height, width).

  image (height, width, 3): the same pixels before normalization, as 8-bit RGB.
  Raises TooLongError.
  """
  from PIL import Image

  model, _ = recorded
  rows, columns = (n // p for n, p in zip(pixels.shape[2:], model.patch, strict=True))
  check_length("image", rows * columns, "use a model with larger patches")
  patched_area = image[: rows * model.patch[0], : columns * model.patch[1]]
  file = io.BytesIO()
  Image.fromarray(patched_area).save(file, "PNG", optimize=True)
  activations = run(model, pixels)[""]
  weights = activations.attention_weights()
  patch_labels = [f"{r + 1}, {c + 1}" for r in range(rows) for c in range(columns)]
  return Inspection(
    recorded,
    texts={"picture": Text("patches", ["class token", *patch_labels])},
    maps=[AttentionMap("", "self-attention", "picture", "picture", weights, "attn")],
    activations=activations,
    output_text="picture",
    output_positions=slice(0, 1),
    image=InputImage(file.getvalue(), rows, columns),
  )


def head_type_scores(
  inspection: Inspection, max_length: int = 50
) -> dict[int, dict[str, np.ndarray]]:
  """Return the head-type scores (layers, H) of each self-attention map, by its index.

  The model runs on a random sequence of at most max_length tokens, repetition included.
  The result is empty for an image model.
  """
  if inspection.image:
    return {}
  model, tokenizer = inspection.recorded
  num_prefix = len(tokenizer.prefix_ids)
  # One position is for the token that an encoder-decoder's target starts with.
  available = model.context - num_prefix - len(tokenizer.suffix_ids) - 1
  ids = head_types.repeated_random_ids(
    min(len(tokenizer), model.vocab_size),
    min(max_length, available),
    exclude=set(tokenizer.specials.values()),
  )
  text = tokenizer.single(ids)
  if model.task != "text2text-generation":
    weights = run(model, text)[""].attention_weights()
    return {0: head_types.scores(weights, num_prefix, len(ids))}
  stacks = run(model, text, [ids[-1], *ids])
  encoder_weights = stacks["encoder"].attention_weights()
  decoder_weights = stacks["decoder"].attention_weights()
  return {
    0: head_types.scores(encoder_weights, num_prefix, len(ids)),
    1: head_types.scores(decoder_weights, 1, len(ids)),
  }


def data_url(image: InputImage) -> str:
  """Return the image as a data: URL."""
  return "data:image/png;base64," + base64.b64encode(image.png).decode()
