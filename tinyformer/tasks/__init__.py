"""What a model does for a user: one file per task, from text or pictures to results."""

from typing import NamedTuple

# A text, or a pair of texts such as a premise and a hypothesis.
TextOrPair = str | tuple[str, str]


class InputError(ValueError):
  """The input does not fit the model or its task. The message says what to do."""


class Prediction(NamedTuple):
  """A label, such as a class or a token, and its probability.

  For a regression model, score is the predicted value.
  """

  label: str
  score: float


class RankedText(NamedTuple):
  """A text, its index in the list of texts, and how relevant it is to a query."""

  corpus_id: int
  text: str
  score: float


class Entity(NamedTuple):
  """A labelled span of a text: text[start:end]. score: the mean probability of its words."""

  label: str
  text: str
  start: int
  end: int
  score: float


class Answer(NamedTuple):
  """An answer to a question, and its probability.

  text: passage[start:end], without surrounding spaces.
  """

  text: str
  start: int
  end: int
  score: float
