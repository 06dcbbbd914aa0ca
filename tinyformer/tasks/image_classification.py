"""Classify pictures (Dosovitskiy et al. 2021)."""

from pathlib import Path

from tinygrad import Tensor

from tinyformer.tasks import Prediction
from tinyformer.tasks.encoder import best_predictions, softmax


class ImageClassifier:
  """An image model and the preprocessor of its checkpoint.

  Raises ValueError if Pillow, which reads picture files, is not installed.
  """

  def __init__(self, module, folder: Path):
    try:
      from tinyformer.vision import image_processor
    except ImportError as e:
      raise ValueError(e) from e
    self.module = module
    self.read = image_processor.read
    self.preprocessor = image_processor.Preprocessor.load(folder)

  def __call__(self, path: str | Path, top_k: int | None = 5) -> list[Prediction]:
    """Return the top_k most probable labels of a picture file, or all if None."""
    pixels = self.preprocessor(self.read(str(path)))
    probabilities = softmax(self.module(Tensor(pixels)).numpy()[0])
    return best_predictions(probabilities, lambda i: self.module.labels[i], top_k)
