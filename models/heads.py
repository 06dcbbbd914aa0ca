"""Heads of the encoders: masked language modelling, classification, question answering, or none.

A head's `task` tells a command how to use its output. Its `labels` are the class names, if any.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from tinygrad import Tensor

from layers.parts import PLAIN, Parts
from models.hf_config import HFConfig, shown
from transformer import Linear


@dataclass(frozen=True)
class HeadConfig:
  """A head and its settings.

  task: fill-mask, text-classification, token-classification, question-answering or
    feature-extraction (no head).
  labels: the class names in the order of the logits.
  problem: as in SequenceClassificationHead.
  activation, pooler_activation: of MaskedLMHead and of SequenceClassificationHead.
  tied: whether MaskedLMHead's decoder shares the weights of the token embeddings.
  """

  task: str = "feature-extraction"
  labels: tuple[str, ...] = ()
  problem: str = "single_label_classification"
  activation: str = "gelu"
  pooler_activation: str = "tanh"
  tied: bool = True


NO_HEAD = HeadConfig()


class MaskedLMHead:
  """Predict masked tokens: a linear layer, an activation, a norm, then the decoder.

  norm: function that returns a norm.
  tokens: the token embeddings, with which the decoder shares its weights, or None.
  Source: Devlin et al. 2019, sec. 3.1.
  """

  task = "fill-mask"
  labels: ClassVar[list[str]] = []

  def __init__(
    self,
    dim: int,
    vocab_size: int,
    activation: Callable,
    norm: Callable,
    linear: Callable = Linear,
    tokens=None,
  ):
    self.dense = linear(dim, dim)
    self.norm = norm()
    self.activation = activation
    self.decoder: Callable
    if tokens:
      self.bias = Tensor.zeros(vocab_size)
      self.decoder = lambda x: tokens.as_linear(x) + self.bias
    else:
      self.decoder = linear(dim, vocab_size)

  def __call__(self, x: Tensor) -> Tensor:
    """Return logits (B, T, V) for x (B, T, D)."""
    return self.decoder(self.norm(self.activation(self.dense(x))))


class SequenceClassificationHead:
  """Classify a text by the vector of its first token, after a linear layer and an activation.

  Padding must be on the right.
  problem: how to read the logits. The value is one of
    "single_label_classification" (a softmax gives the probabilities),
    "multi_label_classification" (a sigmoid of each logit gives its probability),
    "regression" (the logits are the predicted values).
  Source: Devlin et al. 2019, sec. 4.1.
  """

  task = "text-classification"

  def __init__(
    self,
    dim: int,
    labels: list[str],
    activation: Callable = Tensor.tanh,
    problem: str = "single_label_classification",
    linear: Callable = Linear,
  ):
    self.pooler = linear(dim, dim)
    self.classifier = linear(dim, len(labels))
    self.activation = activation
    self.labels = labels
    self.problem = problem

  def __call__(self, x: Tensor) -> Tensor:
    """Return logits (B, number of labels) for x (B, T, D)."""
    return self.classifier(self.activation(self.pooler(x[:, 0])))


class TokenClassificationHead:
  """Classify each token (Devlin et al. 2019, sec. 5.3)."""

  task = "token-classification"

  def __init__(self, dim: int, labels: list[str], linear: Callable = Linear):
    self.token_classifier = linear(dim, len(labels))
    self.labels = labels

  def __call__(self, x: Tensor) -> Tensor:
    """Return logits (B, T, number of labels) for x (B, T, D)."""
    return self.token_classifier(x)


class QuestionAnsweringHead:
  """Score each token as the start and as the end of the answer (Devlin et al. 2019, sec. 4.2)."""

  task = "question-answering"
  labels: ClassVar[list[str]] = []

  def __init__(self, dim: int, linear: Callable = Linear):
    self.qa_outputs = linear(dim, 2)

  def __call__(self, x: Tensor) -> Tensor:
    """Return logits (B, T, 2), of the start and of the end, for x (B, T, D)."""
    return self.qa_outputs(x)


class IdentityHead:
  """Return the vectors (B, T, D) unchanged."""

  task = "feature-extraction"
  labels: ClassVar[list[str]] = []

  def __call__(self, x: Tensor) -> Tensor:
    return x


def mean(x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
  """Return one vector per text (B, D): the mean of x (B, T, D) over the tokens.

  attention_mask (B, T): 1 for a token, 0 for padding, which is left out of the mean.
  Source: Reimers & Gurevych 2019, sec. 3.
  """
  if attention_mask is None:
    return x.mean(1)
  is_token = attention_mask.bool().unsqueeze(-1)
  return is_token.where(x, 0).sum(1) / is_token.sum(1).maximum(1)


def make_head(config, tokens, norm: Callable, parts: Parts = PLAIN):
  """Return the head of an encoder.

  config: the encoder's; `config.head` is a HeadConfig.  tokens: the encoder's token embeddings.
  norm: function that returns a norm.
  """
  head, dim, linear = config.head, config.dim, parts.linear
  labels = list(head.labels)
  if head.task == "fill-mask":
    activation = parts.activations[head.activation]
    shared = tokens if head.tied else None
    return MaskedLMHead(dim, config.vocab_size, activation, norm, linear, shared)
  if head.task == "text-classification":
    activation = parts.activations[head.pooler_activation]
    return SequenceClassificationHead(dim, labels, activation, head.problem, linear)
  if head.task == "token-classification":
    return TokenClassificationHead(dim, labels, linear)
  if head.task == "question-answering":
    return QuestionAnsweringHead(dim, linear)
  return IdentityHead()


MAX_LABELS = 1_000_000
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
TASKS = {
  "ForMaskedLM": "fill-mask",
  "ForPreTraining": "fill-mask",
  "ForSequenceClassification": "text-classification",
  "ForTokenClassification": "token-classification",
  "ForQuestionAnswering": "question-answering",
  "Model": "feature-extraction",
}


def labels_from_hf(hf: HFConfig) -> tuple[str, ...]:
  """Return the class names of a config.json in the order of the logits.

  Raises ValueError if the IDs of the labels are not 0, 1, 2, ...
  """
  names = hf.section("id2label")
  if names.values:
    return tuple(names.text(str(i)) for i in range(len(names.values)))
  return tuple(f"LABEL_{i}" for i in range(hf.integer("num_labels", 2, 1, MAX_LABELS)))


def head_from_hf(hf: HFConfig, activation: str, pooler_activation: str, tied: bool) -> HeadConfig:
  """Return the head named in config.json's `architectures`, or none if it names no architecture.

  The other arguments are those of HeadConfig. Raises ValueError if the head is not supported.
  """
  architecture = (hf.texts("architectures") or ["Model"])[0]
  suffix = re.search(r"(For[A-Z]\w*|LMHeadModel|Model)$", architecture)
  if not suffix or suffix[0] not in TASKS:
    raise ValueError(
      f"{hf.source}: the architecture {shown(architecture)} is not supported; "
      f"use one whose name ends in {', '.join(TASKS)}"
    )
  task = TASKS[suffix[0]]
  labels = labels_from_hf(hf) if task.endswith("classification") else ()
  default_problem = "regression" if len(labels) == 1 else "single_label_classification"
  problem = hf.choice("problem_type", PROBLEMS, default_problem)
  return HeadConfig(task, labels, problem, activation, pooler_activation, tied)


HEAD_RULES = {
  r"head\.dense": "cls.predictions.transform.dense",
  r"head\.norm": "cls.predictions.transform.LayerNorm",
  r"head\.bias": "cls.predictions.bias",
  r"head\.decoder": "cls.predictions.decoder",
  r"head\.(classifier|token_classifier)": "classifier",
  r"head\.qa_outputs": "qa_outputs",
}
IGNORED_HEADS = {
  r"(cls\.predictions|lm_head)\.(decoder\.|bias$)": (
    "tied decoder: a copy of the embeddings and the bias; untied decoder: the tied one's bias"
  ),
  r"cls\.seq_relationship\.": "next-sentence prediction, which only pre-training uses",
  r"(.*\.)?pooler\.|cls\.|lm_head\.|classifier\.|qa_outputs\.": (
    "a head for another task than the one named in config.json"
  ),
}
