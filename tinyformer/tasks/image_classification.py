"""Classify pictures (Dosovitskiy et al. 2021)."""

from pathlib import Path

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.tasks import Prediction
from tinyformer.tasks.encoder import best_predictions, softmax


class ImageClassifier:
  """An image model and the preprocessor of its checkpoint.

  key: identifies what determines the kernels, apart from the weights (see CompiledStep).
  Raises ValueError if Pillow, which reads picture files, is not installed.
  """

  def __init__(self, module, folder: Path, key: str | None = None):
    try:
      from tinyformer.vision import image_processor
    except ImportError as e:
      raise ValueError(e) from e
    self.module = module
    self.read = image_processor.read
    self.preprocessor = image_processor.Preprocessor.load(folder)
    parameters = nn.state.get_state_dict(module)
    Tensor.realize(*parameters.values())
    self.step = CompiledStep(self.forward, captured_buffers=parameters, key=key)

  def forward(self, pixels: Tensor) -> Tensor:
    """Return the logits in float32 for pictures that have the size of the model's input."""
    return self.module(pixels).float().realize()

  def __call__(self, path: str | Path, top_k: int | None = 5) -> list[Prediction]:
    """Return the top_k most probable labels of a picture file, or all if None."""
    pixels = np.ascontiguousarray(self.preprocessor(self.read(str(path))))
    probabilities = softmax(self.step(pixels)[0])
    return best_predictions(probabilities, lambda i: self.module.labels[i], top_k)
