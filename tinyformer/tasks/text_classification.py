"""Classify texts (Devlin et al. 2019, sec. 4.1)."""

from collections.abc import Sequence

import numpy as np

from tinyformer.tasks import Prediction
from tinyformer.tasks.encoder import Encoder, best_predictions, softmax


def classify_text(encoder: Encoder, text: str, top_k: int | None = None) -> list[Prediction]:
  """Return the top_k most probable labels of a text, or all if None.

  A regression model returns all its values, in the order of the labels.
  """
  tokenizer = encoder.tokenizer
  return predictions(encoder, encoder(tokenizer.single(tokenizer.encode(text))), top_k)


def classify_texts(
  encoder: Encoder, texts: Sequence[str], top_k: int | None = None
) -> list[list[Prediction]]:
  """Return what classify_text returns for each text. Texts are processed in batches."""
  tokenizer = encoder.tokenizer
  outputs = dict(encoder.run_many([tokenizer.single(tokenizer.encode(text)) for text in texts]))
  return [predictions(encoder, outputs[i], top_k) for i in range(len(texts))]


def predictions(encoder: Encoder, logits: np.ndarray, top_k: int | None) -> list[Prediction]:
  """Return the top_k most probable labels for the logits (labels) of a text."""
  labels = encoder.module.labels
  problem = encoder.module.head.problem
  if problem == "regression":
    return [Prediction(label, float(value)) for label, value in zip(labels, logits, strict=False)]
  if problem == "multi_label_classification":
    probabilities = 1 / (1 + np.exp(-logits))
  else:
    probabilities = softmax(logits)
  return best_predictions(probabilities, lambda i: labels[i], top_k)
