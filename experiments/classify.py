"""A small BERT tells a sentence's class far better than chance, and as well as counted words do; guessing masked words of the same sentences before does not show."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Tensor, nn

from experiments import common
from models.bert import Bert
from models.heads import MaskedLMHead, SequenceClassificationHead
from tinyformer import cli
from tinyformer.kernels.compiled_step import CompiledStep
from tinyformer.kernels.layer_norm import LayerNorm
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from transformer import loss

DIM, HEADS, LAYERS, HIDDEN, DROPOUT, BATCH = 128, 4, 2, 512, 0.2, 32
GUESSED = 6  # words of a sentence in pre-training: about 15 in 100, as Devlin et al. 2019 have it


class Task(NamedTuple):
  """Sentences and the numbers of their classes, to learn from and to be tested by; the tokens that are read of one, and the size of the vocabulary."""

  learn: list[str]
  learn_labels: np.ndarray
  test: list[str]
  test_labels: np.ndarray
  length: int
  vocab: int


def lines(path: Path) -> list[str]:
  """A file's lines in small letters, UTF-8 or else Latin-1. Raises Usage where it is absent."""
  if not path.exists():
    raise cli.Usage(
      f"{path} is not there: --data takes the folder of rt-polarity/ (Pang & Lee 2005: rt-polarity.pos, .neg) and trec/ (Li & Roth 2002: TREC.train.all, TREC.test.all)"
    )
  data = path.read_bytes()
  try:
    text = data.decode()
  except UnicodeDecodeError:
    text = data.decode("latin-1")
  return [line.strip().lower() for line in text.split("\n") if line.strip()]


def reviews(folder: Path) -> Task:
  """Negative 0, positive 1. There is no official split: of each a tenth is the test, by lot with seed 0, whatever the run's."""
  learn, test = list[tuple[str, int]](), list[tuple[str, int]]()
  for label, name in enumerate(("neg", "pos")):
    texts = lines(folder / "rt-polarity" / f"rt-polarity.{name}")
    order = np.random.default_rng(0).permutation(len(texts))
    for n, i in enumerate(order):
      (test if n < len(texts) // 10 else learn).append((texts[i], label))
  return task(learn, test, 48, 4096)


def questions(folder: Path) -> Task:
  """Six kinds of questions, by what is asked for; the official test."""

  def read(name: str) -> list[tuple[str, int]]:
    return [
      (text, int(label))
      for label, text in (line.split(" ", 1) for line in lines(folder / "trec" / name))
    ]

  return task(read("TREC.train.all"), read("TREC.test.all"), 32, 2048)


def task(
  learn: list[tuple[str, int]], test: list[tuple[str, int]], length: int, vocab: int
) -> Task:
  return Task(
    [t for t, _ in learn],
    np.array([y for _, y in learn]),
    [t for t, _ in test],
    np.array([y for _, y in test]),
    length,
    vocab,
  )


def encode(tokenizer: BytePairEncoding, texts: Sequence[str], length: int) -> np.ndarray:
  """(N, length): the vocabulary's last id, whose vector is read for the class, the tokens, as far as there is room, and padding, the id after the mask's."""
  ids = np.full((len(texts), length), len(tokenizer) + 1, np.int32)
  for row, text in zip(ids, texts):
    tokens = [len(tokenizer) - 1, *tokenizer.encode(" " + text)][:length]
    row[: len(tokens)] = tokens
  return ids


def masked(
  ids: np.ndarray, vocab: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """ids (B, T) -> ids of which some are hidden, places (B, GUESSED) of those and what stood there, -1 where a text has no more tokens.

  Of the places 8 in 10 hold the mask then, 1 any token, 1 what it was (Devlin et al. 2019, sec. 3.1).
  """
  order = np.argsort(draw.random(ids.shape) + (ids >= vocab - 1), axis=1)[
    :, :GUESSED
  ]  # tokens first, then what is none
  was = np.take_along_axis(ids, order, 1)
  chance = draw.random(was.shape)
  new = np.where(
    chance < 0.8, vocab, np.where(chance < 0.9, draw.integers(0, vocab - 1, was.shape), was)
  )
  ff_dim = ids.copy()
  np.put_along_axis(ff_dim, order, np.where(was < vocab - 1, new, was).astype(np.int32), 1)
  return ff_dim, order.astype(np.int32), np.where(was < vocab - 1, was, -1).astype(np.int32)


def counted(task: Task, steps: int = 300) -> np.ndarray:
  """The test's classes by logistic regression on which words a sentence has, of those that two sentences have; the squared weights, halved, count as much as a sentence."""
  sentences = [set(t.split()) for t in task.learn]
  words = {
    w: i
    for i, w in enumerate(w for w, n in Counter(w for s in sentences for w in s).items() if n > 1)
  }
  classes = int(task.learn_labels.max()) + 1

  def rows(
    texts: Sequence[str],
  ) -> tuple[np.ndarray, np.ndarray]:  # the last column is the bias, which every sentence has
    found = [[*sorted(words[w] for w in set(t.split()) & words.keys()), len(words)] for t in texts]
    return np.concatenate(found), np.cumsum([0, *map(len, found)])[:-1]

  weights, first, second = (np.zeros((len(words) + 1, classes)) for _ in range(3))
  columns, starts = rows(task.learn)
  penalised = (np.arange(len(words) + 1) < len(words))[:, None] / len(starts)
  of, wanted = (
    np.repeat(np.arange(len(starts)), np.diff([*starts, len(columns)])),
    np.eye(classes)[task.learn_labels],
  )
  for step in range(
    1, steps + 1
  ):  # Adam: the loss is convex, so that it ends where any other way would
    scores = np.add.reduceat(weights[columns], starts)
    p = np.exp(scores - scores.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - wanted) / len(starts)
    gradient = (
      np.stack([np.bincount(columns, error[of, c], len(weights)) for c in range(classes)], 1)
      + weights * penalised
    )
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    weights -= 0.05 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
  columns, starts = rows(task.test)
  return np.add.reduceat(weights[columns], starts).argmax(1)


def main(argv: list[str] | None = None) -> int:
  parser = common.parser("classify", __doc__)
  parser.add_argument(
    "--data", type=Path, default=Path("../shared/data"), help="the folder of rt-polarity/ and trec/"
  )
  args = parser.parse_args(argv)
  tasks = (
    {"questions": questions(args.data)}
    if args.quick
    else {"reviews": reviews(args.data), "questions": questions(args.data)}
  )
  lab = common.Lab("classify", args)
  found = {
    name: study(lab, name, task, *((250, 0) if lab.quick else (1000, 1500)))
    for name, task in tasks.items()
  }
  print("Accuracy on the test, in brackets its 95% interval:\n")
  ways = list(next(iter(found.values())))

  def share(name: str, way: str) -> float:
    return found[name][way] / len(tasks[name].test)

  common.table(
    ["", *(f"{name}, {len(task.test):,}" for name, task in tasks.items())],
    [
      [
        way,
        *(
          f"{share(name, way):.1%} ({' to '.join(f'{end:.1%}' for end in common.wilson(found[name][way], len(tasks[name].test)))})"
          for name in tasks
        ),
      ]
      for way in ways
    ],
  )

  def draw(figure) -> None:
    for axes, (name, task) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items()):
      ends = np.array([common.wilson(found[name][way], len(task.test)) for way in ways])
      values = np.array([share(name, way) for way in ways])
      axes.barh(
        ways,
        values,
        xerr=np.abs(ends.T - values),
        color=["#999999", "#999999", "#e69f00", "#56b4e9", "#0072b2"][: len(ways)],
      )
      axes.invert_yaxis()
      axes.set(xlim=(0, 1), title=name, xlabel="accuracy")

  lab.picture(draw, height=2.5)
  return lab.verdict(
    {
      f"{name}: {claim}": holds
      for name in tasks
      for claim, holds in {
        **{
          f"{way} is at least 5 points above the largest class": share(name, way)
          > share(name, ways[0]) + 0.05
          for way in ways[3:]
        },
        "control: with shuffled labels it is not": share(name, ways[1])
        < share(name, ways[0]) + 0.05,
      }.items()
    }
  )


def study(lab: common.Lab, name: str, task: Task, steps: int, guesses: int) -> dict[str, int]:
  """How many of the test each way gets right. steps: of learning classes; guesses: of guessing words before, none if 0."""
  tokenizer = BytePairEncoding.train([f" {t}" for t in task.learn], task.vocab)
  vocab, classes, (learn, test) = (
    len(tokenizer),
    [str(i) for i in range(int(task.learn_labels.max()) + 1)],
    (encode(tokenizer, t, task.length) for t in (task.learn, task.test)),
  )
  trunk: dict[str, Tensor] = {}

  def bert(head) -> Bert:
    return Bert(
      vocab + 2,
      task.length,
      DIM,
      HEADS,
      LAYERS,
      HIDDEN,
      1,
      Tensor.relu,
      head=head,
      dropout=DROPOUT,
      **CPU_KERNELS,
    )  # BERT's own GELU would take longer than all the rest

  def classifier() -> Bert:
    model = bert(
      lambda tokens: SequenceClassificationHead(DIM, classes, linear=CPU_KERNELS["linear"])
    )
    for key, t in nn.state.get_state_dict(model).items():
      if key in trunk:
        t.replace(trunk[key].clone())
    return model

  def guesser() -> Bert:
    return bert(
      lambda tokens: MaskedLMHead(
        DIM, vocab + 2, Tensor.relu, lambda: LayerNorm(DIM), CPU_KERNELS["linear"], tokens
      )
    )

  def guess(model: Bert, ids: Tensor, places: Tensor, was: Tensor) -> Tensor:
    x = model.last_hidden_state(ids, ids != vocab + 1)
    return loss(model.head(x.gather(1, places.unsqueeze(-1).expand(-1, -1, DIM))), was, smoothing=0)

  def rows(step: int) -> np.ndarray:  # every sentence once, in another order each time round
    round, place = divmod(step * BATCH, len(learn) // BATCH * BATCH)
    return np.random.default_rng([lab.seed, round]).permutation(len(learn))[place : place + BATCH]

  made: list[Any] = []

  def teach(run: str, labels: np.ndarray) -> int:
    if not made:
      teacher = common.Teacher(
        classifier,
        lambda model, ids, y: loss(model(ids, ids != vocab + 1).unsqueeze(1), y, smoothing=0),
      )
      made.extend(
        (teacher, CompiledStep(lambda ids: teacher.model(ids, ids != vocab + 1).realize()))
      )
    teacher, look = made
    teacher.teach(
      lab,
      run,
      lab.seed,
      steps,
      lambda step: common.ramp(step, steps, 5e-4),
      lambda step: (learn[i := rows(step)], labels[i, None].astype(np.int32)),
    )
    batches = [
      test[np.arange(i, i + 100) % len(test)] for i in range(0, len(test), 100)
    ]  # the last one goes on with the first sentences
    return int(
      (np.concatenate([look(b).argmax(1) for b in batches])[: len(test)] == task.test_labels).sum()
    )

  def taught_to_guess() -> int:
    run = f"{name}, masked words"
    teacher = common.Teacher(guesser, guess)
    teacher.teach(
      lab,
      run,
      lab.seed,
      guesses,
      lambda step: common.ramp(step, guesses, 1e-3),
      lambda step: masked(learn[rows(step)], vocab, np.random.default_rng([lab.seed, 1, step])),
    )
    trunk.update(
      {
        key: Tensor(t.numpy()).realize()
        for key, t in nn.state.get_state_dict(teacher.model).items()
        if not key.startswith("head.")
      }
    )
    made.clear()  # a teacher draws the same numbers in each run: with a trunk it takes another
    right = teach(f"{name}, then classes", task.learn_labels)
    for part in (run, f"{name}, then classes"):
      (lab.out / f"{part}.safetensors").unlink(missing_ok=True)
    return right

  found = {
    "the largest class": int(np.bincount(task.test_labels).max()),
    "shuffled labels": lab.once(
      f"{name}, shuffled",
      lambda: teach(
        f"{name}, shuffled", np.random.default_rng(lab.seed).permutation(task.learn_labels)
      ),
    ),
    "counted words": lab.once(
      f"{name}, counted", lambda: int((counted(task) == task.test_labels).sum())
    ),
    "BERT from scratch": lab.once(
      f"{name}, scratch", lambda: teach(f"{name}, scratch", task.learn_labels)
    ),
  }
  return found | (
    {"BERT after masked words": lab.once(f"{name}, pretrained", taught_to_guess)} if guesses else {}
  )


if __name__ == "__main__":
  sys.exit(cli.run(main))
