"""Heads of the encoders: masked language modelling, classification, question answering, or none.

A head's `task` tells a command how to use its output. Its `labels` are the class names, if any.
"""

import re
from collections.abc import Callable
from typing import ClassVar

from tinygrad import Tensor, nn

from tinyformer.checkpoints.config import Config
from transformer import Linear

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


class MaskedLMHead:
  """Predict masked tokens: a linear layer, an activation, a norm, then the decoder.

  norm: function that returns a norm.
  tokens: the embedding whose weights the decoder shares, or None for a decoder of its own.
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
    linear: type[Linear] = Linear,
    tokens: nn.Embedding | None = None,
  ):
    self.dense = linear(dim, dim)
    self.norm = norm()
    self.activation = activation
    self.decoder: Callable
    if tokens:
      self.bias = Tensor.zeros(vocab_size)
      self.decoder = lambda x: linear.product(x, tokens.weight) + self.bias
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
    linear: type[Linear] = Linear,
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

  def __init__(self, dim: int, labels: list[str], linear: type[Linear] = Linear):
    self.token_classifier = linear(dim, len(labels))
    self.labels = labels

  def __call__(self, x: Tensor) -> Tensor:
    """Return logits (B, T, number of labels) for x (B, T, D)."""
    return self.token_classifier(x)


class QuestionAnsweringHead:
  """Score each token as the start and as the end of the answer (Devlin et al. 2019, sec. 4.2)."""

  task = "question-answering"
  labels: ClassVar[list[str]] = []

  def __init__(self, dim: int, linear: type[Linear] = Linear):
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


def labels(config: Config) -> list[str]:
  """Return the class names in the order of the logits."""
  if names := config.get("id2label"):
    return [names[i] for i in sorted(names, key=int)]
  return [f"LABEL_{i}" for i in range(config.size("num_labels", 2))]


def head_builder(
  config: Config,
  norm: Callable,
  lm_activation: Callable,
  pooler_activation: Callable,
  linear: type[Linear] = Linear,
  tied: bool = True,
) -> Callable:
  """Return a function from the token embeddings to the head named in config.json's `architectures`.

  The function returns an IdentityHead if config.json names no architecture.
  lm_activation, pooler_activation: of MaskedLMHead and of SequenceClassificationHead.
  tied: whether MaskedLMHead's decoder shares the weights of the token embeddings.
  Raises ValueError if the head is not supported.
  """
  dim = config.size("hidden_size")
  vocab_size = config.size("vocab_size")
  names = labels(config)
  default_problem = "regression" if len(names) == 1 else "single_label_classification"
  problem = config.get("problem_type") or default_problem

  def masked_lm(tokens: nn.Embedding) -> MaskedLMHead:
    shared_tokens = tokens if tied else None
    return MaskedLMHead(dim, vocab_size, lm_activation, norm, linear=linear, tokens=shared_tokens)

  def sequence_classification(tokens: nn.Embedding) -> SequenceClassificationHead:
    return SequenceClassificationHead(dim, names, pooler_activation, problem, linear=linear)

  heads: dict[str, Callable] = {
    "ForMaskedLM": masked_lm,
    "ForPreTraining": masked_lm,
    "ForSequenceClassification": sequence_classification,
    "ForTokenClassification": lambda tokens: TokenClassificationHead(dim, names, linear),
    "ForQuestionAnswering": lambda tokens: QuestionAnsweringHead(dim, linear),
    "Model": lambda tokens: IdentityHead(),
  }
  architecture = (config.get("architectures") or ["Model"])[0]
  suffix = re.search(r"(For[A-Z]\w*|LMHeadModel|Model)$", architecture)
  if suffix and suffix[0] in heads:
    return heads[suffix[0]]
  raise ValueError(
    f"{config.source}: the architecture {architecture} is not supported; "
    f"use one whose name ends in {', '.join(heads)}"
  )
