"""Find the answer to a question in a passage (Devlin et al. 2019, sec. 4.2)."""

import numpy as np

from tinyformer.tasks import Answer, InputError
from tinyformer.tasks.encoder import Encoder, softmax
from tinyformer.tasks.windows import check_stride, windows

MAX_ANSWER_TOKENS = 30
# Models are trained on sequences of this length, with windows that have this many tokens in common.
MAX_SEQ_LEN = 384
DOC_STRIDE = 128


def answer_question(
  encoder: Encoder,
  question: str,
  passage: str,
  top_k: int = 1,
  doc_stride: int | None = None,
  max_seq_len: int | None = None,
) -> list[Answer]:
  """Return the top_k most probable answers: spans of the passage.

  A long passage is processed in windows. The probability of an answer is that in the window in
  which it is most probable.
  doc_stride: the number of the passage's tokens that two windows have in common. None is 128, or
    half of max_seq_len or of a window if it is less.
  max_seq_len: the number of tokens of the question and a window together, special tokens included.
    None is 384. The context is the maximum.
  Raises InputError if the question leaves no room for the passage, or if doc_stride is not less
  than a window.
  """
  tokenizer = encoder.tokenizer
  question_ids = tokenizer.encode(question)
  tokens = tokenizer.encode_with_offsets(passage)
  length = min(max_seq_len or MAX_SEQ_LEN, encoder.context)
  size = length - len(tokenizer.pair(question_ids, [])[0])
  if size < 2:
    raise InputError(
      f"the question has {len(question_ids):,} tokens, which leaves no room for the passage in "
      f"{length:,} tokens (this model's context is {encoder.context:,}): shorten the question"
    )
  if doc_stride is None:
    doc_stride = min(DOC_STRIDE, length // 2, size // 2)
  check_stride(doc_stride, size)
  answers: dict[tuple[int, int], float] = {}  # probabilities by (start, end) in the passage
  for first, last in windows(len(tokens), size, doc_stride) if tokens else ():
    joint = span_probabilities(encoder, question_ids, [i for i, *_ in tokens[first:last]])
    for index in np.argsort(-joint, axis=None, kind="stable")[:top_k]:
      a, b = divmod(int(index), last - first)
      span = tokens[first + a][1], tokens[first + b][2]
      answers[span] = max(answers.get(span, 0.0), float(joint[a, b]))
  best = sorted(answers.items(), key=lambda answer: -answer[1])[:top_k]
  return [
    Answer(passage[start:end].strip(), start, end, probability)
    for (start, end), probability in best
  ]


def span_probabilities(encoder: Encoder, question: list[int], window: list[int]) -> np.ndarray:
  """Return the probability (S, S) of each start and end of an answer in a window of S tokens."""
  tokenizer = encoder.tokenizer
  output = encoder(*tokenizer.pair(question, window))
  offset = len(tokenizer.prefix_ids) + len(question) + len(tokenizer.sep_ids)
  logits = output[offset : offset + len(window)]
  # The first special token stands for "no answer".
  no_answer = output[: 1 if tokenizer.prefix_ids else 0]
  starts, ends = softmax(np.concatenate([no_answer, logits]).T)[:, len(no_answer) :]
  joint = starts[:, None] * ends
  # An answer must not end before it starts, nor exceed MAX_ANSWER_TOKENS.
  return np.triu(joint) - np.triu(joint, MAX_ANSWER_TOKENS)
