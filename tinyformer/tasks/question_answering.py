"""Find the answer to a question in a passage (Devlin et al. 2019, sec. 4.2)."""

import numpy as np

from tinyformer.tasks import Answer, InputError
from tinyformer.tasks.encoder import Encoder, softmax

MAX_ANSWER_TOKENS = 30


def answer_question(encoder: Encoder, question: str, passage: str, top_k: int = 1) -> list[Answer]:
  """Return the top_k most probable answers: spans of the passage.

  A passage that exceeds the context is processed in windows that overlap by half. Raises InputError
  if the question leaves no room for the passage.
  """
  tokenizer = encoder.tokenizer
  question_ids = tokenizer.encode(question)
  tokens = tokenizer.encode_with_offsets(passage)
  window = encoder.context - len(tokenizer.pair(question_ids, [])[0])
  if window < 2:
    raise InputError(
      f"the question has {len(question_ids):,} tokens, which leaves no room for the passage in "
      f"this model's context of {encoder.context:,}: shorten the question"
    )
  # Position of the passage's first token in the input.
  offset = len(tokenizer.prefix_ids) + len(question_ids) + len(tokenizer.sep_ids)
  answers: dict[tuple[int, int], float] = {}  # probabilities by (start, end) in the passage
  for first in range(0, max(1, len(tokens) - window // 2), window // 2):
    ids, segments = tokenizer.pair(question_ids, [i for i, *_ in tokens[first : first + window]])
    logits = encoder(ids, segments)[offset : offset + window][: len(tokens) - first]
    starts, ends = softmax(logits.T)
    joint = starts[:, None] * ends
    # An answer must not end before it starts, nor exceed MAX_ANSWER_TOKENS.
    joint = np.triu(joint) - np.triu(joint, MAX_ANSWER_TOKENS)
    for index in np.argsort(-joint, axis=None, kind="stable")[:top_k]:
      a, b = divmod(int(index), len(ends))
      span = tokens[first + a][1], tokens[first + b][2]
      answers[span] = max(answers.get(span, 0.0), float(joint[a, b]))
  best = sorted(answers.items(), key=lambda answer: -answer[1])[:top_k]
  return [
    Answer(passage[start:end].strip(), start, end, probability)
    for (start, end), probability in best
  ]
