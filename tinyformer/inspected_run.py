"""Look inside a model: run it once on an input, and show what its attention heads attend to."""

from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.interpret.scale import SCALES
from tinyformer.model import Model
from tinyformer.tasks import InputError


class InspectedRun:
  """One run of a model, with its activations.

  inspection: the interpret.inspection.Inspection, which has all activations.
  name: the model's name in titles.
  """

  def __init__(self, model: Model, inspection: Any):
    self.model = model
    self.inspection = inspection
    self.name = model.folder.name

  def __repr__(self) -> str:
    sizes = ", ".join(f"{name or 'self-attention'} {a.shape}" for name, a in self.maps.items())
    return f"InspectedRun({self.model.folder.name}: {sizes})"

  @property
  def maps(self) -> dict[str, np.ndarray]:
    """Return the attention weights (layers, H, T, S) of each attention map.

    The only map of most models has the name "". An encoder-decoder has the maps "encoder",
    "decoder" and "cross".
    """
    return {m.name: m.weights for m in self.inspection.maps}

  @property
  def attention(self) -> np.ndarray:
    """Return the self-attention weights (layers, H, T, T), of the decoder if there are two stacks.

    A row has the weights of one query, and sums to 1.
    """
    maps = self.maps
    return maps.get("decoder", next(iter(maps.values())))

  @property
  def tokens(self) -> list[str]:
    """Return the labels of the T positions of `attention`."""
    return self.inspection.texts[self.inspection.output_text].labels

  @property
  def activations(self) -> Any:
    """Return all activations of the run: an interpret.activations.Activations of numpy arrays.

    They are those of the decoder if there are two stacks.
    """
    return self.inspection.activations

  def head_types(self) -> dict[str, np.ndarray]:
    """Run the model on random tokens that repeat, and return scores (layers, H) from 0 to 1.

    The keys are "previous", "first", "duplicate" and "induction": the mean weight to the previous
    token, to the first token, to an earlier occurrence of the same token, and to the token after
    that occurrence. Of an encoder-decoder, the decoder's heads are scored. Source: Olsson et al.
    2022. Raises InputError for an image model.
    """
    from tinyformer.interpret.inspection import head_type_scores

    scores = head_type_scores(self.inspection)
    if not scores:
      raise InputError(f"{self.name} is an image model: only models of text have head types")
    return scores[max(scores)]

  def save(
    self,
    path: str | Path,
    layer: int | None = None,
    head: int | None = None,
    scale: str = "linear",
  ) -> None:
    """Save the run as a page (.html) or as a picture (.png).

    layer, head: show only these in the picture, and first on the page; None means all.
    scale: "linear" shows weights as shades proportional to them, "sqrt" to their square roots.
    Raises ValueError for another suffix.
    """
    path = Path(path)
    if path.suffix == ".html":
      from tinyformer.files import write_text

      write_text(path, self.page(layer, head, scale))
    elif path.suffix == ".png":
      self.save_picture(path, layer, head, scale)
    else:
      raise ValueError(f"{path}: the suffix must be .html or .png")

  def save_picture(
    self,
    path: Path,
    layer: int | None = None,
    head: int | None = None,
    scale: str = "linear",
  ) -> None:
    """Write a PNG, whatever the suffix of the path. The arguments are those of `save`."""
    from tinyformer.interpret import figure

    figure.draw(self.inspection, path, layer, head=head, scale=SCALES[scale])

  def page(self, layer: int | None = None, head: int | None = None, scale: str = "linear") -> str:
    """Return the page as HTML. The arguments are those of `save`."""
    from tinyformer.interpret.labels import printable
    from tinyformer.interpret.page import page_data, render_page

    name = printable(self.name)
    sizes = []
    for m in self.inspection.maps:
      num_layers, num_heads = m.weights.shape[:2]
      prefix = f"{m.name}: " if m.name else ""
      sizes.append(f"{prefix}{num_layers} layers with {num_heads} heads each")
    about = f"{name} · {', '.join(sizes)}"
    title = f"Attention weights of {name}"
    data = page_data(self.inspection, title, about, layer=layer, head=head, scale=SCALES[scale])
    return render_page(data)


def inspect(
  model: Model, text: str | Path, target: str | None = None, last: int | None = None
) -> InspectedRun:
  """Run a model on a text, or an image model on a picture file, and return its activations.

  target: the target text of an encoder-decoder; None means its own greedy output.
  last: read only the last tokens of the text; at most 256 can be displayed.

  The run follows changes of `model.module`, such as a replaced function. The attention weights are
  computed from queries and keys, even if a replaced attention function uses other weights.

  >>> import tinyformer
  >>> model = tinyformer.load("tiny")
  >>> run = tinyformer.inspect(model, "The man took his hat.")
  >>> run.tokens
  ['The', ' man', ' took', ' his', ' hat', '.']
  >>> run.attention.shape  # layers, heads, queries, keys
  (4, 4, 6, 6)

  Raises InputError if an argument does not fit the model, or if the input cannot be displayed.
  """
  from tinyformer.interpret import inspection

  recorded = inspection.RecordedModel(model.module, model.tokenizer)
  if target is not None and model.task != "text2text-generation":
    raise InputError(f"{model.folder.name} is not an encoder-decoder: omit the target")
  if not hasattr(model.module, "blocks"):  # a classifier that has an encoder and a decoder
    raise InputError(
      f"{model.folder.name} is a {type(model.module).__name__}, whose attention cannot be shown yet"
    )
  try:
    if model.task == "image-classification":
      return InspectedRun(model, inspect_image(model, recorded, str(text), last))
    if model.task == "text2text-generation":
      return InspectedRun(model, inspect_pair(model, recorded, str(text), target, last))
    return InspectedRun(model, inspection.inspect_text(recorded, str(text), last))
  except inspection.TooLongError as e:
    raise InputError(str(e)) from e


def inspect_image(model: Model, recorded, path: str, last: int | None):
  """Run an image model on a picture file. Raises what vision.image_processor raises."""
  from tinyformer.interpret import inspection
  from tinyformer.vision import image_processor

  if last:
    raise InputError("only a text has last tokens, but this model reads images")
  if not Path(path).is_file():
    raise InputError(f"the file {path} does not exist: this model reads an image file")
  preprocessor = image_processor.Preprocessor.load(model.folder)
  image = image_processor.read(path)
  cropped = preprocessor.cropped(np.asarray(preprocessor.resized(image)))
  return inspection.inspect_image(recorded, preprocessor(image), cropped)


def inspect_pair(model: Model, recorded, text: str, target: str | None, last: int | None):
  """Run an encoder-decoder on a text and on a target or its own greedy output."""
  from tinyformer.generation import GenerationConfig, generate_seq2seq
  from tinyformer.interpret import inspection

  config = GenerationConfig.read(model.folder, model.module.vocab_size)._replace(num_beams=1)

  def generate(source_ids: list[int]) -> list[int]:
    return generate_seq2seq(model.module, source_ids, config, inspection.MAX_TOKENS - 1)

  start_token = config.decoder_start_token_id
  return inspection.inspect_pair(recorded, text, target, start_token, generate, last)
