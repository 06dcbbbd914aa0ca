"""A small BERT classifies sentences far better than chance, and about as well as a bag of words.

Pretraining on masked words of the same sentences makes no measurable difference.
"""

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tinygrad import Tensor, nn

from experiments import common
from models.bert import Bert, BertConfig
from models.heads import HeadConfig
from tinyformer import cli
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.layer_norm import LayerNorm
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.training.schedules import linear_schedule
from transformer import loss

DIM = 128
HEADS = 4
NUM_LAYERS = 2
FF_DIM = 512
DROPOUT = 0.2
BATCH_SIZE = 32
NUM_MASKED = 6  # tokens per sentence in pretraining, about 15% as in Devlin et al. 2019

LARGEST_CLASS = "largest class"
SHUFFLED_LABELS = "shuffled labels"
BAG_OF_WORDS = "bag of words"
FROM_SCRATCH = "BERT from scratch"
PRETRAINED = "BERT after masked words"


class Task(NamedTuple):
  """A classification task: training and test sentences with labels, and the model's size.

  length: tokens per sentence; longer sentences are truncated.
  vocab_size: size of the tokenizer's vocabulary.
  """

  train: list[str]
  train_labels: np.ndarray
  test: list[str]
  test_labels: np.ndarray
  length: int
  vocab_size: int


def read_lines(path: Path) -> list[str]:
  """Return the nonempty lines of a UTF-8 or Latin-1 file in lower case.

  Raises cli.UsageError if the file does not exist.
  """
  if not path.exists():
    raise cli.UsageError(
      f"{path} does not exist: --data must be a folder with "
      "rt-polarity/ (Pang & Lee 2005: rt-polarity.pos, rt-polarity.neg) and "
      "trec/ (Li & Roth 2002: TREC.train.all, TREC.test.all)"
    )
  data = path.read_bytes()
  try:
    text = data.decode()
  except UnicodeDecodeError:
    text = data.decode("latin-1")
  return [line.strip().lower() for line in text.split("\n") if line.strip()]


def load_reviews(folder: Path) -> Task:
  """Load movie reviews with labels 0 (negative) and 1 (positive) (Pang & Lee 2005).

  There is no official split: a random tenth of each class is the test set. Its seed is always 0.
  """
  train: list[tuple[str, int]] = []
  test: list[tuple[str, int]] = []
  for label, name in enumerate(("neg", "pos")):
    texts = read_lines(folder / "rt-polarity" / f"rt-polarity.{name}")
    order = np.random.default_rng(0).permutation(len(texts))
    for n, i in enumerate(order):
      (test if n < len(texts) // 10 else train).append((texts[i], label))
  return make_task(train, test, 48, 4096)


def load_questions(folder: Path) -> Task:
  """Load questions labeled with one of six answer types, with the official test set (TREC)."""

  def read_examples(name: str) -> list[tuple[str, int]]:
    fields = [line.split(" ", 1) for line in read_lines(folder / "trec" / name)]
    return [(text, int(label)) for label, text in fields]

  return make_task(read_examples("TREC.train.all"), read_examples("TREC.test.all"), 32, 2048)


def make_task(
  train: list[tuple[str, int]], test: list[tuple[str, int]], length: int, vocab_size: int
) -> Task:
  return Task(
    [text for text, _ in train],
    np.array([label for _, label in train]),
    [text for text, _ in test],
    np.array([label for _, label in test]),
    length,
    vocab_size,
  )


def encode(tokenizer: BytePairEncoding, texts: Sequence[str], length: int) -> np.ndarray:
  """Tokenize texts -> ids (N, length), truncated or padded at the end.

  With a vocabulary of V tokens, each row begins with id V - 1, at whose position the class is
  predicted. Id V is the mask token and V + 1 is padding.
  """
  ids = np.full((len(texts), length), len(tokenizer) + 1, np.int32)
  for row, text in zip(ids, texts, strict=True):
    tokens = [len(tokenizer) - 1, *tokenizer.encode(" " + text)][:length]
    row[: len(tokens)] = tokens
  return ids


def mask_tokens(
  ids: np.ndarray, vocab_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mask random tokens for masked language modeling (Devlin et al. 2019, sec. 3.1).

  ids (B, T) -> masked ids (B, T), positions (B, NUM_MASKED), targets (B, NUM_MASKED). The target
  is -1 if a sentence has fewer tokens. Of the selected tokens, 80% become the mask token, 10% a
  random token, and 10% stay unchanged.
  """
  # Tokens sort before the class token and padding, whose keys are at least 1.
  order = np.argsort(rng.random(ids.shape) + (ids >= vocab_size - 1), axis=1)
  positions = order[:, :NUM_MASKED]
  original = np.take_along_axis(ids, positions, 1)
  is_token = original < vocab_size - 1
  p = rng.random(original.shape)
  random_tokens = rng.integers(0, vocab_size - 1, original.shape)
  replacement = np.where(p < 0.8, vocab_size, np.where(p < 0.9, random_tokens, original))
  masked_ids = ids.copy()
  new_ids = np.where(is_token, replacement, original).astype(np.int32)
  np.put_along_axis(masked_ids, positions, new_ids, 1)
  targets = np.where(is_token, original, -1)
  return masked_ids, positions.astype(np.int32), targets.astype(np.int32)


def word_features(
  texts: Sequence[str], vocabulary: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Return the feature indices of all texts, concatenated, and where each text begins.

  The features of a text are its words in the vocabulary, then the bias.
  """
  bias = len(vocabulary)
  features = []
  for text in texts:
    words = set(text.split()) & vocabulary.keys()
    features.append([*sorted(vocabulary[w] for w in words), bias])
  starts = np.cumsum([0, *map(len, features)])[:-1]
  return np.concatenate(features), starts


def predict_bag_of_words(task: Task, steps: int = 300) -> np.ndarray:
  """Return the test labels that logistic regression on a bag of words predicts.

  The vocabulary is the words of at least two training sentences. The penalty is half the squared
  norm of the weights, divided by the number of sentences.
  """
  word_counts = Counter(w for text in task.train for w in set(text.split()))
  vocabulary = {w: i for i, w in enumerate(w for w, n in word_counts.items() if n > 1)}
  num_classes = int(task.train_labels.max()) + 1
  columns, starts = word_features(task.train, vocabulary)
  num_texts = len(starts)
  num_features = len(vocabulary) + 1
  text_indices = np.repeat(np.arange(num_texts), np.diff([*starts, len(columns)]))
  targets = np.eye(num_classes)[task.train_labels]
  # The bias is not penalized.
  penalty = (np.arange(num_features) < len(vocabulary))[:, None] / num_texts
  weights, m, v = (np.zeros((num_features, num_classes)) for _ in range(3))
  # Adam. The loss is convex, so any optimizer finds the same minimum.
  for step in range(1, steps + 1):
    logits = np.add.reduceat(weights[columns], starts)
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - targets) / num_texts
    class_gradients = [
      np.bincount(columns, error[text_indices, c], num_features) for c in range(num_classes)
    ]
    gradient = np.stack(class_gradients, 1) + weights * penalty
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient**2
    weights -= 0.05 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
  columns, starts = word_features(task.test, vocabulary)
  return np.add.reduceat(weights[columns], starts).argmax(1)


# A trainer, and a compiled step from ids to the logits of its model.
TrainerAndForward = tuple[common.MultiRunTrainer, CompiledStep]


class Study:
  """All methods on one task. Each returns the number of test sentences it classifies correctly.

  steps: training steps of each classifier.
  pretraining_steps: steps of masked language modeling; 0 for no pretraining.
  """

  def __init__(
    self,
    experiment: common.Experiment,
    name: str,
    task: Task,
    steps: int,
    pretraining_steps: int,
  ):
    self.experiment = experiment
    self.name = name
    self.task = task
    self.steps = steps
    self.pretraining_steps = pretraining_steps
    tokenizer = BytePairEncoding.train([f" {text}" for text in task.train], task.vocab_size)
    self.vocab_size = len(tokenizer)
    self.padding = self.vocab_size + 1
    self.classes = [str(i) for i in range(int(task.train_labels.max()) + 1)]
    self.train_ids = encode(tokenizer, task.train, task.length)
    self.test_ids = encode(tokenizer, task.test, task.length)

  def bert(self, head: HeadConfig) -> Bert:
    # BERT's GELU would take longer than the rest of the model, so the activation is ReLU.
    config = BertConfig(
      vocab_size=self.vocab_size + 2,
      context=self.task.length,
      dim=DIM,
      heads=HEADS,
      num_layers=NUM_LAYERS,
      ff_dim=FF_DIM,
      segments=1,
      activation="relu",
      dropout=DROPOUT,
      head=head,
    )
    return Bert(config, CPU_KERNELS)

  def make_classifier(self, trunk: dict[str, Tensor]) -> Bert:
    """Return a classifier whose parameters are those in `trunk`, or random."""
    model = self.bert(HeadConfig("text-classification", labels=tuple(self.classes)))
    for name, t in nn.state.get_state_dict(model).items():
      if name in trunk:
        t.replace(trunk[name].clone())
    return model

  def make_masked_lm(self) -> Bert:
    model = self.bert(HeadConfig("fill-mask", activation="relu"))
    model.head.norm = LayerNorm(DIM)
    return model

  def classify(self, model: Bert, ids: Tensor) -> Tensor:
    """Return logits (B, C) of the classes for ids (B, T)."""
    return model(ids, ids != self.padding)

  def masked_lm_loss(self, model: Bert, ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss at the masked positions (B, N)."""
    x = model.last_hidden_state(ids, ids != self.padding)
    x = x.gather(1, positions.unsqueeze(-1).expand(-1, -1, DIM))
    return loss(model.head(x), targets, smoothing=0)

  def batch_indices(self, step: int) -> np.ndarray:
    """Return the sentences of a batch; each epoch is a new permutation without its remainder."""
    size = len(self.train_ids)
    epoch, start = divmod(step * BATCH_SIZE, size // BATCH_SIZE * BATCH_SIZE)
    order = np.random.default_rng([self.experiment.seed, epoch]).permutation(size)
    return order[start : start + BATCH_SIZE]

  def classifier_trainer(self, trunk: dict[str, Tensor]) -> TrainerAndForward:
    """Return a trainer of classifiers that start from `trunk`."""
    trainer = common.MultiRunTrainer(
      functools.partial(self.make_classifier, trunk),
      lambda model, ids, y: loss(self.classify(model, ids).unsqueeze(1), y, smoothing=0),
    )
    return trainer, CompiledStep(lambda ids: self.classify(trainer.model, ids).realize())

  @functools.cached_property
  def scratch_trainer(self) -> TrainerAndForward:
    """A trainer of classifiers that start from random parameters."""
    return self.classifier_trainer({})

  def train_classifier(
    self, trainer_and_forward: TrainerAndForward, run: str, labels: np.ndarray
  ) -> int:
    """Train a classifier on the labels of the training sentences."""
    trainer, forward = trainer_and_forward

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
      i = self.batch_indices(step)
      return self.train_ids[i], labels[i, None].astype(np.int32)

    config = common.RunConfig(
      self.steps,
      learning_rate=lambda step: linear_schedule(step, self.steps, 5e-4),
      batch=batch,
    )
    trainer.train(self.experiment, run, self.experiment.seed, config)
    # Batches of 100 sentences; the last one is filled up with the first sentences.
    size = len(self.test_ids)
    batches = [self.test_ids[np.arange(i, i + 100) % size] for i in range(0, size, 100)]
    predictions = np.concatenate([forward(b).argmax(1) for b in batches])[:size]
    return int((predictions == self.task.test_labels).sum())

  def train_shuffled(self) -> int:
    labels = np.random.default_rng(self.experiment.seed).permutation(self.task.train_labels)
    return self.train_classifier(self.scratch_trainer, f"{self.name}, shuffled", labels)

  def train_bag_of_words(self) -> int:
    return int((predict_bag_of_words(self.task) == self.task.test_labels).sum())

  def train_from_scratch(self) -> int:
    run = f"{self.name}, scratch"
    return self.train_classifier(self.scratch_trainer, run, self.task.train_labels)

  def pretrain_and_train(self) -> int:
    """Train on masked words, then train a classifier that starts from the result."""
    pretraining = f"{self.name}, masked words"
    fine_tuning = f"{self.name}, then classes"
    trainer = common.MultiRunTrainer(self.make_masked_lm, self.masked_lm_loss)

    def batch(step: int) -> tuple[np.ndarray, ...]:
      rng = np.random.default_rng([self.experiment.seed, 1, step])
      return mask_tokens(self.train_ids[self.batch_indices(step)], self.vocab_size, rng)

    config = common.RunConfig(
      self.pretraining_steps,
      learning_rate=lambda step: linear_schedule(step, self.pretraining_steps, 1e-3),
      batch=batch,
    )
    trainer.train(self.experiment, pretraining, self.experiment.seed, config)
    trunk = {
      name: Tensor(t.numpy()).realize()
      for name, t in nn.state.get_state_dict(trainer.model).items()
      if not name.startswith("head.")
    }
    # The compiled initialization of `scratch_trainer` does not read the trunk.
    classifier = self.classifier_trainer(trunk)
    correct = self.train_classifier(classifier, fine_tuning, self.task.train_labels)
    for run in (pretraining, fine_tuning):
      (self.experiment.out / f"{run}.safetensors").unlink(missing_ok=True)
    return correct

  def run(self) -> dict[str, int]:
    """Return the number of correct test sentences of each method."""
    run_once = self.experiment.run_once
    correct = {
      LARGEST_CLASS: int(np.bincount(self.task.test_labels).max()),
      SHUFFLED_LABELS: run_once(f"{self.name}, shuffled", self.train_shuffled),
      BAG_OF_WORDS: run_once(f"{self.name}, bag of words", self.train_bag_of_words),
      FROM_SCRATCH: run_once(f"{self.name}, scratch", self.train_from_scratch),
    }
    if self.pretraining_steps:
      correct[PRETRAINED] = run_once(f"{self.name}, pretrained", self.pretrain_and_train)
    return correct


def draw(tasks: dict[str, Task], correct: dict[str, dict[str, int]], figure) -> None:
  all_axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
  for axes, (name, task) in zip(all_axes, tasks.items(), strict=True):
    total = len(task.test)
    common.accuracy_bars(axes, correct[name], total, (LARGEST_CLASS, SHUFFLED_LABELS))
    axes.set_xlabel(f"test accuracy on {total:,} {name}, with its 95% interval")
  figure.suptitle(
    "A small BERT is far better than chance, and about as good as a bag of words",
    fontsize=10,
    fontweight="bold",
  )


def check_claims(tasks: dict[str, Task], correct: dict[str, dict[str, int]]) -> dict[str, bool]:
  claims = {}
  for name, task in tasks.items():
    accuracy = {method: n / len(task.test) for method, n in correct[name].items()}
    threshold = accuracy[LARGEST_CLASS] + 0.05
    for method in (FROM_SCRATCH, PRETRAINED):
      if method in accuracy:
        claim = f"{name}: {method} is at least 5 points above the largest class"
        claims[claim] = accuracy[method] > threshold
    claims[f"{name}: control: with shuffled labels it is not"] = (
      accuracy[SHUFFLED_LABELS] < threshold
    )
  return claims


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = common.argument_parser("classify", __doc__)
  p.add_argument(
    "--data",
    type=Path,
    default=Path("../shared/data"),
    help="folder that contains rt-polarity/ and trec/ (default: %(default)s)",
  )
  return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  tasks = {} if args.quick else {"reviews": load_reviews(args.data)}
  tasks["questions"] = load_questions(args.data)
  experiment = common.Experiment("classify", args)
  steps, pretraining_steps = (250, 0) if experiment.quick else (1000, 1500)
  correct = {
    name: Study(experiment, name, task, steps, pretraining_steps).run()
    for name, task in tasks.items()
  }
  print("Test accuracy, with its 95% confidence interval in brackets:\n")
  rows = []
  for method in next(iter(correct.values())):
    cells = [
      common.format_accuracy(correct[name][method], len(task.test)) for name, task in tasks.items()
    ]
    rows.append([method, *cells])
  header = [f"{name}, {len(task.test):,}" for name, task in tasks.items()]
  common.print_table(["", *header], rows)
  experiment.save_figure(functools.partial(draw, tasks, correct), height=2.5)
  return experiment.report_claims(check_claims(tasks, correct))


if __name__ == "__main__":
  sys.exit(cli.run(main))
