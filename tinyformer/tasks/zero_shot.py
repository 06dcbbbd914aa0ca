"""Classify texts into labels for which a model was not trained, by entailment (Yin et al. 2019).

A model for natural-language inference estimates whether the text entails the hypothesis "This
example is LABEL."
"""

from collections.abc import Sequence

import numpy as np

from tinyformer.tasks import InputError, Prediction
from tinyformer.tasks.encoder import Encoder, best_predictions, softmax
from tinyformer.tasks.text_classification import logits_of

HYPOTHESIS_TEMPLATE = "This example is {}."


class EntailmentClassifier:
  """Classify texts into labels.

  hypothesis_template: a hypothesis with {} for the label.
  multi_label: whether several labels may fit a text. Each has a probability of its own then.
  max_length: the number of tokens to which a text and a hypothesis together are truncated; None
    means the context. Only the text is truncated.
  Raises InputError if the model does not judge entailment, there is no label, or the template has
  no {}.
  """

  def __init__(
    self,
    encoder: Encoder,
    labels: Sequence[str],
    hypothesis_template: str = HYPOTHESIS_TEMPLATE,
    multi_label: bool = False,
    max_length: int | None = None,
  ):
    if isinstance(labels, str) or not labels:
      raise InputError("zero-shot classification needs a list of labels: pass at least one")
    self.encoder = encoder
    self.labels = labels
    self.multi_label = multi_label or len(labels) == 1
    self.max_length = min(max_length or encoder.context, encoder.context)
    self.entailment = entailment_index(encoder.module.labels)
    # As in transformers: the label at the other end of the list. A label between them is neutral.
    self.contradiction = -1 if self.entailment == 0 else 0
    self.hypotheses = [fill_template(hypothesis_template, label) for label in labels]

  def __call__(self, text: str) -> list[Prediction]:
    """Return the labels of a text and their probabilities, most probable first."""
    [predictions] = self.classify_many([text])
    return predictions

  def classify_many(self, texts: Sequence[str]) -> list[list[Prediction]]:
    """Return what __call__ returns for each text. Pairs of similar length form batches."""
    encode = self.encoder.tokenizer.encode
    hypotheses = [encode(hypothesis) for hypothesis in self.hypotheses]
    inputs = [self.pair(ids, hypothesis) for ids in map(encode, texts) for hypothesis in hypotheses]
    logits = logits_of(self.encoder, inputs)
    count = len(hypotheses)
    return [self.predictions(np.stack(logits[i : i + count])) for i in range(0, len(logits), count)]

  def predictions(self, logits: np.ndarray) -> list[Prediction]:
    """Return the predictions for a text from the logits of its pairs (labels, classes)."""
    if self.multi_label:
      probabilities = softmax(logits[:, [self.contradiction, self.entailment]])[:, 1]
    else:
      probabilities = softmax(logits[:, self.entailment])
    return best_predictions(probabilities, lambda i: self.labels[i], None)

  def pair(self, text: list[int], hypothesis: list[int]) -> tuple[list[int], list[int]]:
    """Return the input for a text and a hypothesis, and its segments. Truncate the text only."""
    pair = self.encoder.tokenizer.pair
    ids, segments = pair(text, hypothesis)
    length = len(text) - max(0, len(ids) - self.max_length)
    return (ids, segments) if length < 1 else pair(text[:length], hypothesis)


def entailment_index(labels: Sequence[str]) -> int:
  """Return the index of the label for entailment. Raises InputError if there is none."""
  for index, label in enumerate(labels):
    if label.lower().startswith("entail"):
      return index
  raise InputError(
    f"this model has no label for entailment (its labels are: {', '.join(labels)[:80]}): use a "
    "model for natural-language inference (NLI)"
  )


def fill_template(template: str, label: str) -> str:
  """Return a hypothesis. Raises InputError if the template does not contain {}."""
  try:
    hypothesis = template.format(label)
  except (ValueError, LookupError, AttributeError):
    hypothesis = template
  if hypothesis == template:
    raise InputError(f"the template {template!r:.80} has no place for the label: add {{}}")
  return hypothesis
