"""Run an encoder with a head on one text at a time, in compiled steps."""

from collections.abc import Callable, Sequence

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.tasks import InputError, Prediction


class Encoder:
  """An encoder with a head, and its tokenizer.

  key: identifies what determines the kernels, apart from the weights (see CompiledStep).
  """

  # Texts are padded to multiples of this length, so that different texts use the same kernels.
  LENGTH_MULTIPLE = 32

  def __init__(self, module, tokenizer, key: str | None = None):
    self.module = module
    self.tokenizer = tokenizer
    self.context = module.context
    self.key = key
    self.parameters = nn.state.get_state_dict(module)
    Tensor.realize(*self.parameters.values())
    self.steps: dict[int, CompiledStep] = {}  # by padded length

  def forward(self, ids: Tensor, attention_mask: Tensor, segments: Tensor) -> Tensor:
    """Return the head's output in float32."""
    return self.module(ids, attention_mask, segments).float().realize()

  def __call__(self, ids: list[int], segments: list[int] | None = None) -> np.ndarray:
    """Return the model's output for one text of T tokens, without the batch axis.

    The output of a token-level head has a row per token, and more rows for the padding.
    segments: T segment IDs, all 0 if None. Raises InputError if T exceeds the context.
    """
    if len(ids) > self.context:
      raise InputError(
        f"the text has {len(ids):,} tokens, more than this model's context of {self.context:,}: "
        "shorten the text"
      )
    multiple = self.LENGTH_MULTIPLE
    length = min(self.context, -(-len(ids) // multiple) * multiple)

    def pad(row: list[int], value: int) -> np.ndarray:
      return np.array([row + [value] * (length - len(row))], dtype=np.int32)

    if length not in self.steps:
      self.steps[length] = CompiledStep(
        self.forward, captured_buffers=self.parameters, key=self.key
      )
    output = self.steps[length](
      pad(ids, self.tokenizer.pad or 0),
      pad([1] * len(ids), 0).astype(bool),
      pad(segments or [0] * len(ids), 0),
    )
    return output[0].copy()


def softmax(logits: np.ndarray) -> np.ndarray:
  """Return the softmax over the last axis."""
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def best_predictions(
  probabilities: np.ndarray, label: Callable[[int], str], top_k: int | None
) -> list[Prediction]:
  """Return the top_k most probable classes, or all if None, most probable first."""
  order: Sequence[int] = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
  return [Prediction(label(i), float(probabilities[i])) for i in order]
