"""What an encoder's vectors are read as: words for masked places, labels for a text or for each place, the ends of an answer, or themselves.

A head has a `task`, by which a command knows what to do with what it says, and `labels`, the names of the classes where it has any.
"""

import re
from collections.abc import Callable

from tinygrad import Tensor, nn

from tinyformer.checkpoints.config import Config
from transformer import Linear

KEY_MAP = {
  r"head\.dense": "cls.predictions.transform.dense",
  r"head\.norm": "cls.predictions.transform.LayerNorm",
  r"head\.bias": "cls.predictions.bias",
  r"head\.decoder": "cls.predictions.decoder",
  r"head\.(classes|tags)": "classifier",
  r"head\.ends": "qa_outputs",
}
LEFT = {
  r"(cls\.predictions|lm_head)\.(decoder\.|bias$)": "of a tied decoder, the embeddings and the bias again; of another, the bias of a tied one",
  r"cls\.seq_relationship\.": "whether two sentences follow each other: a task of pre-training alone",
  r"(.*\.)?pooler\.|cls\.|lm_head\.|classifier\.|qa_outputs\.": "a head for another task than the one that config.json names",
}


class Fill:
  """Which word a masked token is: a layer and a norm, then how well each token's embedding fits, plus a bias (Devlin et al. 2019, sec. 3.1).

  norm: makes a norm.  tokens: the embeddings, where the decoder is tied to them; None where it is a matrix of its own.
  """

  task = "fill-mask"
  labels: list[str] = []

  def __init__(
    self,
    dim: int,
    vocab_size: int,
    activation: Callable,
    norm: Callable,
    linear: type[Linear] = Linear,
    tokens: nn.Embedding | None = None,
  ):
    self.dense, self.norm, self.activation = linear(dim, dim), norm(), activation
    if tokens:
      self.bias = Tensor.zeros(vocab_size)
    self.decoder: Callable = (
      (lambda x: linear.product(x, tokens.weight) + self.bias)
      if tokens
      else linear(dim, vocab_size)
    )

  def __call__(self, x: Tensor) -> Tensor:
    """(B, T, D) -> logits (B, T, V)."""
    return self.decoder(self.norm(self.activation(self.dense(x))))


class Classify:
  """Which of the labels a text has, read at its first token, through a layer (Devlin et al. 2019, sec. 4.1). Padding has to be behind it.

  problem: single_label_classification, of whose logits a softmax makes chances; multi_label_classification, where a sigmoid of each does; or
  regression, where they are the numbers themselves.
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
    self.pool, self.classes, self.activation, self.labels, self.problem = (
      linear(dim, dim),
      linear(dim, len(labels)),
      activation,
      labels,
      problem,
    )

  def __call__(self, x: Tensor) -> Tensor:
    """(B, T, D) -> logits (B, labels)."""
    return self.classes(self.activation(self.pool(x[:, 0])))


class Tag:
  """Which of the labels each token has (Devlin et al. 2019, sec. 5.3)."""

  task = "token-classification"

  def __init__(self, dim: int, labels: list[str], linear: type[Linear] = Linear):
    self.tags, self.labels = linear(dim, len(labels)), labels

  def __call__(self, x: Tensor) -> Tensor:
    """(B, T, D) -> logits (B, T, labels)."""
    return self.tags(x)


class Answer:
  """How well each token does as the first of the answer and as its last (Devlin et al. 2019, sec. 4.2)."""

  task = "question-answering"
  labels: list[str] = []

  def __init__(self, dim: int, linear: type[Linear] = Linear):
    self.ends = linear(dim, 2)

  def __call__(self, x: Tensor) -> Tensor:
    """(B, T, D) -> logits (B, T, 2): of the start, of the end."""
    return self.ends(x)


class Vectors:
  """No head: the vectors themselves, (B, T, D)."""

  task = "feature-extraction"
  labels: list[str] = []

  def __call__(self, x: Tensor) -> Tensor:
    return x


def mean(x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
  """x (B, T, D) -> (B, D): one vector for a text, the mean over its tokens (Reimers & Gurevych 2019, sec. 3). keep (B, T): false for padding."""
  if attention_mask is None:
    return x.mean(1)
  kept = attention_mask.bool().unsqueeze(-1)
  return kept.where(x, 0).sum(1) / kept.sum(1).maximum(1)


def labels(config: Config) -> list[str]:
  """The names of a model's classes, in the order of its logits."""
  if names := config.get("id2label"):
    return [names[i] for i in sorted(names, key=int)]
  return [f"LABEL_{i}" for i in range(config.size("num_labels", 2))]


def for_config(
  config: Config,
  norm: Callable,
  fill: Callable,
  pool: Callable,
  linear: type[Linear] = Linear,
  tied: bool = True,
) -> Callable:
  """What makes, of a model's token embeddings, the head that config.json's `architectures` names; where none is named, Vectors.

  fill, pool: the activations of Fill and Classify.  tied: Fill's decoder is the embeddings.  Raises ValueError for a head that is not built here.
  """
  dim, vocab_size, names = config.size("hidden_size"), config.size("vocab_size"), labels(config)
  problem = config.get("problem_type") or (
    "regression" if len(names) == 1 else "single_label_classification"
  )

  def words(tokens: nn.Embedding) -> Fill:
    return Fill(dim, vocab_size, fill, norm, linear, tokens if tied else None)

  heads: dict[str, Callable] = {
    "ForMaskedLM": words,
    "ForPreTraining": words,
    "ForSequenceClassification": lambda tokens: Classify(dim, names, pool, problem, linear),
    "ForTokenClassification": lambda tokens: Tag(dim, names, linear),
    "ForQuestionAnswering": lambda tokens: Answer(dim, linear),
    "Model": lambda tokens: Vectors(),
  }
  name = (config.get("architectures") or ["Model"])[0]
  kind = re.search(r"(For[A-Z]\w*|LMHeadModel|Model)$", name)
  if kind and kind[0] in heads:
    return heads[kind[0]]
  raise ValueError(
    f"{config.source}: the architecture {name} is not built here, only those whose names end in {', '.join(heads)}"
  )
