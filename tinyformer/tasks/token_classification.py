"""Label the words of a text, such as names of persons (Devlin et al. 2019, sec. 5.3)."""

import re
from typing import NamedTuple

import numpy as np

from tinyformer.tasks import Entity
from tinyformer.tasks.encoder import Encoder, softmax


class LabelledSpan(NamedTuple):
  """A span text[start:end], its label, and the probability of the label for each of its words."""

  start: int
  end: int
  label: str
  probabilities: list[float]


def tag_words(encoder: Encoder, text: str) -> list[Entity]:
  """Return the entities of a text: its words whose label is not O.

  A word has the label of its first token. Words labelled B-X, I-X, I-X... form one entity X.
  """
  labels = encoder.module.labels
  spans: list[LabelledSpan] = []
  for (start, end), probabilities in first_token_probabilities(encoder, text).items():
    best = int(probabilities.argmax())
    match = re.fullmatch(r"(?:([BI])-)?(.*)", labels[best])
    assert match
    prefix, label = match.groups()
    probability = float(probabilities[best])
    last = spans[-1] if spans else None
    continues_last = (
      prefix == "I"
      and last is not None
      and last.label == label
      and not re.search(r"\w", text[last.end : start])
    )
    if last is not None and continues_last:
      spans[-1] = LabelledSpan(last.start, end, label, [*last.probabilities, probability])
    else:
      spans.append(LabelledSpan(start, end, label, [probability]))
  return [
    Entity(span.label, text[span.start : span.end], span.start, span.end, mean(span.probabilities))
    for span in spans
    if span.label != "O"
  ]


def mean(values: list[float]) -> float:
  return float(np.mean(values))


def first_token_probabilities(encoder: Encoder, text: str) -> dict[tuple[int, int], np.ndarray]:
  """Return the label probabilities of each word's first token, by the word's (start, end)."""
  tokenizer = encoder.tokenizer
  tokens = tokenizer.encode_with_offsets(text)
  output = softmax(encoder(tokenizer.single([i for i, *_ in tokens])))
  words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
  result: dict[tuple[int, int], np.ndarray] = {}
  rows = output[len(tokenizer.prefix_ids) :]
  for (_id, start, end), probabilities in zip(tokens, rows, strict=False):
    word = next((word for word in words if word[0] < end and start < word[1]), None)
    if word:
      result.setdefault(word, probabilities)
  return result
