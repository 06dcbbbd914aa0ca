"""Label the words of a text, such as names of persons (Devlin et al. 2019, sec. 5.3)."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinyformer.tasks import Entity, InputError
from tinyformer.tasks.encoder import Encoder, softmax
from tinyformer.tasks.windows import check_stride, windows

# The windows of a long text have this many tokens in common, or half of the context if it is less.
DEFAULT_STRIDE = 128


class Span(NamedTuple):
  """A token text[start:end].

  starts_word: whether it is the first token of a word.
  """

  start: int
  end: int
  starts_word: bool


class Word(NamedTuple):
  """A word text[start:end] with its label, such as B-PER, and the probability of the label."""

  start: int
  end: int
  label: str
  score: float


def first(probabilities: Sequence[np.ndarray]) -> np.ndarray:
  """Return the probabilities of the first token of a word."""
  return probabilities[0]


def average(probabilities: Sequence[np.ndarray]) -> np.ndarray:
  """Return the mean of the probabilities of a word's tokens."""
  return np.mean(probabilities, axis=0)


def most_certain(probabilities: Sequence[np.ndarray]) -> np.ndarray:
  """Return the probabilities of the token whose largest probability is the largest."""
  return max(probabilities, key=lambda p: p.max())


# How the label of a word follows from the probabilities of its tokens. With "simple", each token is
# a word.
STRATEGIES: dict[str, Callable[[Sequence[np.ndarray]], np.ndarray]] = {
  "simple": first,
  "first": first,
  "average": average,
  "max": most_certain,
}


def tag_words(
  encoder: Encoder, text: str, strategy: str | None = None, stride: int | None = None
) -> list[Entity]:
  """Return the entities of a text: its words whose label is not O.

  Words labelled B-X, I-X, I-X... form one entity X. A text that exceeds the context is processed in
  windows.

  strategy: the aggregation_strategy of transformers' TokenClassificationPipeline, a name in
    STRATEGIES. None is "first" with other words: each is a run of letters and digits, or a
    punctuation character.
  stride: the number of tokens that two windows have in common.
  Raises InputError for an unknown strategy, or if the stride is not less than a window.
  """
  if strategy is not None and strategy not in STRATEGIES:
    raise InputError(f"the strategy {strategy!r:.40} is unknown: use {', '.join(STRATEGIES)}")
  tokenizer = encoder.tokenizer
  tokens = tokenizer.encode_with_offsets(text)
  size = encoder.context - len(tokenizer.single([]))
  if stride is None:
    stride = min(DEFAULT_STRIDE, size // 2)
  check_stride(stride, size)
  if strategy is None:
    spans = list(plain_words(text, tokens))
  else:
    spans = list(token_spans(tokenizer, text, tokens))
  entities: list[Entity] = []
  all_windows = list(windows(len(tokens), size, stride))
  for start, end in all_windows:
    output = softmax(encoder(tokenizer.single([i for i, *_ in tokens[start:end]])))
    rows = output[len(tokenizer.prefix_ids) :][: end - start]
    words = label_words(spans[start:end], rows, strategy, encoder.module.labels)
    entities += group_words(words, text)
  return without_overlaps(entities) if len(all_windows) > 1 else entities


def token_spans(
  tokenizer, text: str, tokens: Sequence[tuple[int, int, int]]
) -> Iterator[Span | None]:
  """Yield the span of each token, without the spaces before it.

  tokens: (ID, start, end) of each.
  """
  for i, start, end in tokens:
    starts_word = not tokenizer.continues_word(i, text, start, end)
    yield Span(end - len(text[start:end].lstrip(" ")), end, starts_word)


def plain_words(text: str, tokens: Sequence[tuple[int, int, int]]) -> Iterator[Span | None]:
  """Yield the word of each token: letters and digits, or one punctuation character.

  The word of a token with white space only is None.
  """
  words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
  index = 0
  last = None
  for _, start, end in tokens:
    while index < len(words) and words[index][1] <= start:
      index += 1
    if index < len(words) and words[index][0] < end:
      yield Span(*words[index], starts_word=index != last)
      last = index
    else:
      yield None


def label_words(
  spans: Sequence[Span | None], rows: np.ndarray, strategy: str | None, labels: Sequence[str]
) -> list[Word]:
  """Join the tokens of each word, and choose its label.

  rows (T, labels): the probabilities of each token.
  """
  groups: list[list[tuple[Span, np.ndarray]]] = []
  for span, row in zip(spans, rows, strict=True):
    if span is None:
      continue
    if groups and strategy != "simple" and not span.starts_word:
      groups[-1].append((span, row))
    else:
      groups.append([(span, row)])
  words = []
  for group in groups:
    probabilities = STRATEGIES[strategy or "first"]([row for _, row in group])
    best = int(probabilities.argmax())
    start, end = group[0][0].start, group[-1][0].end
    words.append(Word(start, end, labels[best], float(probabilities[best])))
  return words


def split_label(label: str) -> tuple[bool, str]:
  """Return whether a label begins an entity, and the label without its prefix B- or I-."""
  return label.startswith("B-"), re.sub("^[BI]-", "", label)


def group_words(words: list[Word], text: str) -> list[Entity]:
  """Join adjacent words with the same label, of which only the first may have the prefix B-."""
  groups: list[list[Word]] = []
  for word in words:
    begins, label = split_label(word.label)
    if groups and not begins and split_label(groups[-1][-1].label)[1] == label:
      groups[-1].append(word)
    else:
      groups.append([word])
  entities = []
  for group in groups:
    start, end = group[0].start, group[-1].end
    score = float(np.mean([word.score for word in group]))
    # As in transformers, which removes everything up to the first hyphen.
    label = group[0].label.split("-", 1)[-1]
    if label != "O":
      entities.append(Entity(label, text[start:end], start, end, score))
  return entities


def without_overlaps(entities: list[Entity]) -> list[Entity]:
  """Return the entities of overlapping windows, sorted and without those that overlap a longer one.

  Of two that overlap and have the same length, the more probable one stays.
  """
  kept: list[Entity] = []
  for entity in sorted(entities, key=lambda entity: entity.start):
    if not kept or entity.start >= kept[-1].end:
      kept.append(entity)
      continue
    last = kept[-1]
    if (entity.end - entity.start, entity.score) > (last.end - last.start, last.score):
      kept[-1] = entity
  return kept
