"""Sort texts by their relevance to a query, with a cross-encoder (Nogueira & Cho 2019)."""

from collections.abc import Sequence

from tinyformer.tasks import InputError, RankedText
from tinyformer.tasks.encoder import Encoder
from tinyformer.tasks.text_classification import ScoreFunction, logits_of


def rank_texts(
  encoder: Encoder,
  query: str,
  texts: Sequence[str],
  function: ScoreFunction,
  max_length: int | None = None,
) -> list[RankedText]:
  """Return the texts with their scores, the most relevant first.

  function: computes a score from a logit.  max_length: the number of tokens to which a query and a
  text together are truncated; None means the context.
  Raises InputError unless the model has one label.
  """
  if len(encoder.module.labels) != 1:
    raise InputError(
      f"this model has {len(encoder.module.labels)} labels, but a model that sorts texts has one: "
      "classify pairs of texts instead"
    )
  tokenizer = encoder.tokenizer
  num_special = len(tokenizer.pair([], [])[0])
  length = min(max_length or encoder.context, encoder.context) - num_special
  query_ids = tokenizer.encode(query)
  inputs = [tokenizer.pair(*truncate_pair(query_ids, tokenizer.encode(t), length)) for t in texts]
  scores = [float(function(logits)[0]) for logits in logits_of(encoder, inputs)]
  order = sorted(range(len(texts)), key=lambda i: -scores[i])
  return [RankedText(i, texts[i], scores[i]) for i in order]


def truncate_pair(first: list[int], second: list[int], length: int) -> tuple[list[int], list[int]]:
  """Truncate the longer of two texts, or both to the same length, to `length` tokens in all.

  This is the strategy longest_first of Hugging Face tokenizers.
  """
  length = max(0, length)
  if len(first) + len(second) <= length:
    return first, second
  shorter = min(len(first), len(second))
  longer = max(shorter, length - shorter)
  if shorter + longer > length:
    shorter = length // 2
    longer = length - shorter
  if len(first) > len(second):
    return first[:longer], second[:shorter]
  return first[:shorter], second[:longer]
