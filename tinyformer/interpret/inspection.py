"""What there is to see of a model at work on a sentence or a picture: its attention, and what that needs to be read."""

import base64
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyformer.interpret import head_types
from tinyformer.interpret.activations import Record, run
from tinyformer.interpret.labels import labels, leftward
from tinyformer.interpret.recorder import Recorder

MOST = 256  # tokens, or patches, that are shown at once


class TooLong(ValueError):
  """More than can be shown."""


class Text(NamedTuple):
  """labels: of each token, or of the patches.  leftward: it runs from the right to the left."""

  title: str
  labels: list[str]
  leftward: bool = False


class Map(NamedTuple):
  """weights (layers, H, T, S): what each token of the text `rows` attends to in the text `columns`.  part: which part of attribution its heads are, None for an encoder's."""

  name: str
  title: str
  rows: str
  columns: str
  weights: np.ndarray
  part: str | None


class Picture(NamedTuple):
  """A PNG, as far as the model sees it, of `rows` by `columns` patches."""

  png: bytes
  rows: int
  columns: int


class Scene(NamedTuple):
  """record: of the stack that the head reads.  read: the text whose places it reads, of which `places`."""

  model: Any
  tokenizer: Any
  recorder: Recorder
  texts: dict[str, Text]
  maps: list[Map]
  record: Record
  read: str
  places: slice
  picture: Picture | None = None


def short(what: str, count: int, cure: str) -> None:
  if count > MOST:
    raise TooLong(
      f"the {what} has {count:,} {'patches' if what == 'picture' else 'tokens'}, {MOST} can be shown: {cure}"
    )


def of_text(model, tokenizer, recorder: Recorder, text: str, last: int | None = None) -> Scene:
  """A decoder or an encoder on a text, or on its last tokens. Raises TooLong, ValueError for more than the model reads."""
  special = [tokenizer.mask[1]] if model.task == "fill-mask" and tokenizer.mask else []
  for spelling in special:
    text = re.sub(r"\[MASK\]|<mask>", lambda _: spelling, text)
  ids = tokenizer.single(tokenizer.encode(text, special))
  ids = ids[-last:] if last else ids
  short("text", len(ids), f"--last {MOST} shows its end")
  record = run(model, recorder, ids)[""]
  maps = [Map("", "self-attention", "text", "text", record.maps(), "attn")]
  return Scene(
    model,
    tokenizer,
    recorder,
    {"text": Text("", labels(tokenizer, ids), leftward(text))},
    maps,
    record,
    "text",
    slice(0, 1) if model.task == "text-classification" else slice(None),
  )


def of_pair(
  model,
  tokenizer,
  recorder: Recorder,
  folder: Path,
  text: str,
  target: str | None,
  last: int | None = None,
) -> Scene:
  """An encoder-decoder on a text and its target; if there is none, on what it writes itself, always the likeliest token. Raises TooLong, ValueError as of_text."""
  from tinyformer.generation import generate_seq2seq
  from tinyformer.generation.generation_config import GenerationConfig

  settings, source = GenerationConfig.read(folder), tokenizer.single(tokenizer.encode(text))
  source = source[-last:] if last else source
  short("text", len(source), f"--last {MOST} shows its end")
  if target is None:
    ids = generate_seq2seq(model, source, settings._replace(num_beams=1), MOST - 1)
  else:
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(target)]
  ids = [settings.decoder_start_token_id, *ids]
  short("target", len(ids), "shorten it")
  records = run(model, recorder, source, ids)
  encoder, decoder = records["encoder"], records["decoder"]
  texts = {
    "source": Text("source", labels(tokenizer, source), leftward(text)),
    "target": Text("target", labels(tokenizer, ids), leftward(target or tokenizer.decode(ids))),
  }
  maps = [
    Map("encoder", "the encoder’s self-attention", "source", "source", encoder.maps(), None),
    Map("decoder", "the decoder’s self-attention", "target", "target", decoder.maps(), "attn"),
    Map(
      "cross",
      "cross-attention, from the target to the source",
      "target",
      "source",
      decoder.maps("cross"),
      "cross",
    ),
  ]
  return Scene(model, tokenizer, recorder, texts, maps, decoder, "target", slice(None))


def of_picture(model, recorder: Recorder, folder: Path, path: str) -> Scene:
  """A model for pictures on that in a file. Raises TooLong, ImportError without Pillow, OSError or ValueError for what is no picture."""
  from tinyformer.vision import image_processor

  preprocessor = image_processor.Preprocessor.load(folder)
  picture = image_processor.read(path)
  pixels = preprocessor(picture)
  rows, columns = (n // p for n, p in zip(pixels.shape[2:], model.patch))
  short("picture", rows * columns, "this model cuts it too small")
  seen = preprocessor.cropped(np.asarray(preprocessor.resized(picture)))[
    : rows * model.patch[0], : columns * model.patch[1]
  ]
  file = io.BytesIO()
  image_processor.Image.fromarray(seen).save(file, "PNG", optimize=True)
  record = run(model, recorder, pixels)[""]
  names = ["class token", *(f"{r + 1}, {c + 1}" for r in range(rows) for c in range(columns))]
  return Scene(
    model,
    None,
    recorder,
    {"picture": Text("patches", names)},
    [Map("", "self-attention", "picture", "picture", record.maps(), "attn")],
    record,
    "picture",
    slice(0, 1),
    Picture(file.getvalue(), rows, columns),
  )


def head_kinds(scene: Scene, most: int = 50) -> dict[int, dict[str, np.ndarray]]:
  """Of each map of a text's self-attention, by its number, the scores of its heads (layers, H): from a run over random tokens that come twice."""
  model, tokenizer = scene.model, scene.tokenizer
  if scene.picture:
    return {}
  before, after = tokenizer.prefix_ids, tokenizer.suffix_ids
  room = min(most, model.context - len(before) - len(after) - 1)
  ids = head_types.repeated(
    min(len(tokenizer), model.vocab_size), room, set(tokenizer.specials.values())
  )
  text = tokenizer.single(ids)
  if model.task != "text2text-generation":
    return {0: head_types.kinds(run(model, scene.recorder, text)[""].maps(), len(before), len(ids))}
  records = run(model, scene.recorder, text, [ids[-1], *ids])
  return {
    0: head_types.kinds(records["encoder"].maps(), len(before), len(ids)),
    1: head_types.kinds(records["decoder"].maps(), 1, len(ids)),
  }


def data_url(picture: Picture) -> str:
  return "data:image/png;base64," + base64.b64encode(picture.png).decode()
