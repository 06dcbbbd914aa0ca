"""Classify texts (Devlin et al. 2019, sec. 4.1)."""

import numpy as np

from tinyformer.tasks import Prediction
from tinyformer.tasks.encoder import Encoder, best_predictions, softmax


def classify_text(encoder: Encoder, text: str, top_k: int | None = None) -> list[Prediction]:
  """Return the top_k most probable labels of a text, or all if None.

  A regression model returns all its values, in the order of the labels.
  """
  tokenizer = encoder.tokenizer
  labels = encoder.module.labels
  problem = encoder.module.head.problem
  logits = encoder(tokenizer.single(tokenizer.encode(text)))
  if problem == "regression":
    return [Prediction(label, float(value)) for label, value in zip(labels, logits, strict=False)]
  if problem == "multi_label_classification":
    probabilities = 1 / (1 + np.exp(-logits))
  else:
    probabilities = softmax(logits)
  return best_predictions(probabilities, lambda i: labels[i], top_k)
