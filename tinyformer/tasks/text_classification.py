"""Classify texts, or pairs of texts (Devlin et al. 2019, sec. 4.1)."""

from collections.abc import Callable, Sequence

import numpy as np

from models.hf_config import HFConfig
from tinyformer.checkpoints.sentence_modules import sigmoid
from tinyformer.tasks import InputError, Prediction, TextOrPair
from tinyformer.tasks.encoder import Encoder, best_predictions, softmax

ScoreFunction = Callable[[np.ndarray], np.ndarray]


def identity(logits: np.ndarray) -> np.ndarray:
  """Return the logits of a regression model, which are the predicted values."""
  return logits


def score_function(
  config: HFConfig, num_labels: int, activation: ScoreFunction | None
) -> ScoreFunction:
  """Return the function from logits (labels) to scores, as transformers' pipeline chooses it.

  config: the model's config.json.  activation: the function that the checkpoint of a CrossEncoder
  names. It has precedence for a model with one label, such as a reranker, as in
  sentence-transformers.
  """
  problem = config.text("problem_type", "")
  if num_labels == 1 and activation is not None:
    return activation
  if problem == "regression":
    return identity
  if problem == "multi_label_classification" or num_labels == 1:
    return sigmoid
  return softmax


def is_probability(function: ScoreFunction) -> bool:
  """Return whether a score function returns probabilities."""
  return function in (softmax, sigmoid)


def encode(tokenizer, text: TextOrPair) -> tuple[list[int], list[int]]:
  """Return the token IDs of a text or a pair with its special tokens, and the segment of each."""
  if isinstance(text, str):
    ids = tokenizer.single(tokenizer.encode(text))
    return ids, [0] * len(ids)
  if len(text) != 2 or not all(isinstance(part, str) for part in text):
    raise InputError(f"a pair must be two texts, not {text!r:.80}")
  first, second = text
  return tokenizer.pair(tokenizer.encode(first), tokenizer.encode(second))


def logits_of(encoder: Encoder, inputs: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray]:
  """Return the logits (labels) of each input, which is a list of token IDs and their segments."""
  outputs = dict(encoder.run_many([ids for ids, _ in inputs], [s for _, s in inputs]))
  return [outputs[i] for i in range(len(inputs))]


def classify_texts(
  encoder: Encoder, texts: Sequence[TextOrPair], top_k: int | None, function: ScoreFunction
) -> list[list[Prediction]]:
  """Return the top_k most probable labels of each text, or all if None.

  function: the result of score_function. Unless it returns probabilities, each text has all its
  values, in the order of the labels. Texts are processed in batches.
  """
  labels = encoder.module.labels

  def predictions(logits: np.ndarray) -> list[Prediction]:
    scores = function(logits)
    if not is_probability(function):
      return [Prediction(label, float(x)) for label, x in zip(labels, scores, strict=True)]
    return best_predictions(scores, lambda i: labels[i], top_k)

  inputs = [encode(encoder.tokenizer, text) for text in texts]
  return [predictions(logits) for logits in logits_of(encoder, inputs)]
