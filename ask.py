"""Run any model that is not decoder-only on texts or pictures: `python ask.py -m MODEL TEXT`.

The checkpoint's config.json determines the task: fill-mask, text-classification,
token-classification, question-answering, feature-extraction, text2text-generation (such as
translation) or image-classification.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyformer import cli
from tinyformer.device import select_device


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="ask.py",
    description="Fill masks, classify texts, tag tokens, answer questions, compare sentences, "
    "translate or classify images: the checkpoint determines the task.",
    formatter_class=cli.HelpFormatter,
  )
  p.add_argument(
    "text",
    nargs="*",
    help="texts or picture files; a question-answering model takes a question and a passage; "
    "- reads standard input (default: one text per line of standard input)",
  )
  cli.model_arguments(p, "owner/repo on the Hugging Face hub, or a folder", required=True)
  p.add_argument(
    "-k",
    "--top",
    metavar="K",
    type=cli.number(int, 1),
    default=5,
    help="number of candidates, labels or answers to print",
  )
  p.add_argument(
    "-n",
    "--max-new-tokens",
    metavar="N",
    type=cli.number(int, 1),
    help="maximum number of tokens of a translation or summary (default: the checkpoint's)",
  )
  p.add_argument(
    "-b",
    "--beams",
    metavar="N",
    type=cli.number(int, 1),
    help="number of beams; 1 selects greedy decoding (default: the checkpoint's)",
  )
  return p.parse_args(argv)


def read_texts(args: argparse.Namespace) -> list[str]:
  """Return the non-empty texts of the command line, or the lines of standard input.

  On the command line, "-" stands for all of standard input. Raises UsageError without any text.
  """
  if args.text:
    texts = [cli.read_input() if text == "-" else text for text in args.text]
  elif sys.stdin.isatty():
    raise cli.UsageError("no text: pass one as an argument, or pipe it to standard input")
  else:
    texts = cli.read_input().splitlines()
  texts = [text for text in texts if text.strip()]
  if not texts:
    raise cli.UsageError("the text is empty")
  return texts


def softmax(logits: np.ndarray) -> np.ndarray:
  """Return the softmax over the last axis."""
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


class Encoder:
  """An encoder with a head, and its tokenizer."""

  # Texts are padded to multiples of this length, so that different texts use the same kernels.
  LENGTH_MULTIPLE = 32

  def __init__(self, model, tokenizer, key: str):
    """key: identifies what determines the kernels, apart from the weights (see CompiledStep)."""
    from tinygrad import Tensor, nn

    from tinyformer.kernels.compiled_step import CompiledStep

    self.model = model
    self.tokenizer = tokenizer
    self.context = model.context
    parameters = nn.state.get_state_dict(model)
    Tensor.realize(*parameters.values())

    def forward(ids: Tensor, attention_mask: Tensor, segments: Tensor) -> Tensor:
      return model(ids, attention_mask, segments).float().realize()

    def make_step() -> CompiledStep:
      return CompiledStep(forward, captured_buffers=parameters, key=key)

    self.make_step = make_step
    self.steps: dict[int, CompiledStep] = {}  # by padded length

  def __call__(self, ids: list[int], segments: list[int] | None = None) -> np.ndarray:
    """Return the model's output for one text of T tokens, without the batch axis.

    The output of a token-level head has a row per token, and more rows for the padding.
    segments: T segment IDs, all 0 if None. Raises UsageError if T exceeds the context.
    """
    if len(ids) > self.context:
      raise cli.UsageError(
        f"the text has {len(ids):,} tokens, more than this model's context of {self.context:,}: "
        "shorten the text"
      )
    multiple = self.LENGTH_MULTIPLE
    length = min(self.context, -(-len(ids) // multiple) * multiple)

    def pad(row: list[int], value: int) -> np.ndarray:
      return np.array([row + [value] * (length - len(row))], dtype=np.int32)

    if length not in self.steps:
      self.steps[length] = self.make_step()
    output = self.steps[length](
      pad(ids, self.tokenizer.pad or 0),
      pad([1] * len(ids), 0).astype(bool),
      pad(segments or [0] * len(ids), 0),
    )
    return output[0].copy()


def format_top(probabilities: np.ndarray, name: Callable[[int], str], top: int) -> Iterator[str]:
  """Yield a line for each of the `top` most probable classes: its probability and its name."""
  for i in np.argsort(-probabilities, kind="stable")[:top]:
    yield f"{probabilities[i]:6.1%}  {name(int(i))}"


def fill_mask(encoder: Encoder, text: str, top: int) -> Iterator[str]:
  """Yield the most probable tokens for each mask, with an empty line between masks.

  [MASK] and <mask> both stand for the model's mask token. Raises ValueError if the tokenizer has no
  mask token, and UsageError if the text contains no mask.
  """
  tokenizer = encoder.tokenizer
  if not tokenizer.mask:
    raise ValueError("this model's tokenizer has no mask token: use a model for fill-mask")
  mask_id, mask_token = tokenizer.mask
  text = re.sub(r"\[MASK\]|<mask>", lambda _: mask_token, text)
  ids = tokenizer.single(tokenizer.encode(text, (mask_token,)))
  positions = [position for position, i in enumerate(ids) if i == mask_id]
  if not positions:
    raise cli.UsageError(f"the text has no {mask_token} to fill in")
  special_tokens = {i: token for token, i in reversed(tokenizer.specials.items())}

  def token_name(i: int) -> str:
    return tokenizer.decode([i]).strip() or special_tokens.get(i, f"token {i}")

  probabilities = softmax(encoder(ids))
  for n, position in enumerate(positions):
    if n:
      yield ""
    yield from format_top(probabilities[position], token_name, top)


def classify_text(encoder: Encoder, text: str, top: int) -> Iterator[str]:
  """Yield the most probable labels; for a regression model, each value with its label."""
  tokenizer = encoder.tokenizer
  labels = encoder.model.labels
  problem = encoder.model.head.problem
  logits = encoder(tokenizer.single(tokenizer.encode(text)))
  if problem == "regression":
    for value, label in zip(logits, labels, strict=False):
      yield f"{value:.4f}  {label}"
    return
  if problem == "multi_label_classification":
    probabilities = 1 / (1 + np.exp(-logits))
  else:
    probabilities = softmax(logits)
  yield from format_top(probabilities, lambda i: labels[i], top)


class Entity(NamedTuple):
  """A labelled span text[start:end], and the probability of its label for each of its words."""

  start: int
  end: int
  label: str
  probabilities: list[float]


def tag_tokens(encoder: Encoder, text: str, _: int) -> Iterator[str]:
  """Yield the words whose label is not O: the mean probability, the label and the text.

  A word has the label of its first token. Words labelled B-X, I-X, I-X... form one entity X.
  """
  labels = encoder.model.labels
  entities: list[Entity] = []
  for (start, end), probabilities in first_token_probabilities(encoder, text).items():
    best = int(probabilities.argmax())
    match = re.fullmatch(r"(?:([BI])-)?(.*)", labels[best])
    assert match
    prefix, label = match.groups()
    probability = float(probabilities[best])
    last = entities[-1] if entities else None
    continues_last = (
      prefix == "I"
      and last is not None
      and last.label == label
      and not re.search(r"\w", text[last.end : start])
    )
    if last is not None and continues_last:
      entities[-1] = Entity(last.start, end, label, [*last.probabilities, probability])
    else:
      entities.append(Entity(start, end, label, [probability]))
  for entity in entities:
    if entity.label != "O":
      mean = np.mean(entity.probabilities)
      yield f"{mean:6.1%}  {entity.label}  {text[entity.start : entity.end]}"


def first_token_probabilities(encoder: Encoder, text: str) -> dict[tuple[int, int], np.ndarray]:
  """Return the label probabilities of each word's first token, by the word's (start, end)."""
  tokenizer = encoder.tokenizer
  tokens = tokenizer.encode_with_offsets(text)
  output = softmax(encoder(tokenizer.single([i for i, *_ in tokens])))
  words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
  result: dict[tuple[int, int], np.ndarray] = {}
  rows = output[len(tokenizer.prefix_ids) :]
  for (_id, start, end), probabilities in zip(tokens, rows, strict=False):
    word = next((word for word in words if word[0] < end and start < word[1]), None)
    if word:
      result.setdefault(word, probabilities)
  return result


def answer_question(
  encoder: Encoder, question: str, passage: str, top: int, max_answer_tokens: int = 30
) -> Iterator[str]:
  """Yield the `top` most probable answers: spans of the passage with their probabilities.

  A passage that exceeds the context is processed in windows that overlap by half. Raises UsageError
  if the question leaves no room for the passage.
  """
  tokenizer = encoder.tokenizer
  question_ids = tokenizer.encode(question)
  tokens = tokenizer.encode_with_offsets(passage)
  window = encoder.context - len(tokenizer.pair(question_ids, [])[0])
  if window < 2:
    raise cli.UsageError(
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
    # An answer must not end before it starts, nor exceed max_answer_tokens.
    joint = np.triu(joint) - np.triu(joint, max_answer_tokens)
    for index in np.argsort(-joint, axis=None, kind="stable")[:top]:
      a, b = divmod(int(index), len(ends))
      span = tokens[first + a][1], tokens[first + b][2]
      answers[span] = max(answers.get(span, 0.0), float(joint[a, b]))
  best = sorted(answers.items(), key=lambda answer: -answer[1])[:top]
  for (start, end), probability in best:
    yield f"{probability:6.1%}  {passage[start:end].strip()}"


def compare_texts(encoder: Encoder, texts: list[str]) -> Iterator[str]:
  """Yield the embedding of a single text, or the cosine similarity of each pair of texts.

  The embedding is the mean of the last hidden state over the text's tokens.
  """
  tokenizer = encoder.tokenizer
  embeddings = []
  for text in texts:
    ids = tokenizer.single(tokenizer.encode(text))
    embeddings.append(encoder(ids)[: len(ids)].mean(0))
  if len(texts) == 1:
    yield " ".join(f"{x:.6f}" for x in embeddings[0])
  normalized = [v / max(float(np.linalg.norm(v)), 1e-12) for v in embeddings]
  for i, text in enumerate(texts):
    for j, earlier in enumerate(texts[:i]):
      yield f"{normalized[i] @ normalized[j]:.4f}  {earlier}  |  {text}"


def text_generator(
  folder: Path, model, key: str, args: argparse.Namespace
) -> Callable[[str], Iterator[str]]:
  """Return a function that yields the text that an encoder-decoder generates for a source."""
  from tinyformer import tokenization
  from tinyformer.generation import GenerationConfig, generate_seq2seq

  tokenizer = tokenization.load_tokenizer(folder, model.vocab_size)
  config = GenerationConfig.read(folder)
  if args.beams:
    config = config._replace(num_beams=args.beams)

  def generate_text(source: str) -> Iterator[str]:
    ids = tokenizer.single(tokenizer.encode(source))
    yield tokenizer.decode(generate_seq2seq(model, ids, config, args.max_new_tokens, key))

  return generate_text


def image_classifier(folder: Path, model, top: int) -> Callable[[str], Iterator[str]]:
  """Return a function that yields the most probable labels of a picture file."""
  from tinygrad import Tensor

  try:
    from tinyformer.vision import image_processor
  except ImportError as e:
    # Pillow is an optional dependency.
    raise ValueError(e) from e
  preprocessor = image_processor.Preprocessor.load(folder)

  def classify_image(path: str) -> Iterator[str]:
    pixels = preprocessor(image_processor.read(path))
    probabilities = softmax(model(Tensor(pixels)).numpy()[0])
    yield from format_top(probabilities, lambda i: model.labels[i], top)

  return classify_image


def run_task(args: argparse.Namespace, folder: Path, texts: list[str]) -> Iterator[Iterator[str]]:
  """Yield the output lines of each text, or of all texts together if the task relates them.

  Raises UsageError if the model is decoder-only, or if the number of texts does not fit the task.
  """
  from tinyformer import checkpoints, tokenization

  model = checkpoints.load_module(folder, args.dtype)
  task = model.task
  config = (folder / "config.json").read_text(encoding="utf-8")
  key = f"{args.dtype} {config}"
  if task == "text-generation":
    raise cli.UsageError(f"{args.model} is a model for {task}: use gpt.py")
  if task == "text2text-generation":
    return map(text_generator(folder, model, key, args), texts)
  if task == "image-classification":
    return map(image_classifier(folder, model, args.top), texts)
  tokenizer = tokenization.load_tokenizer(folder, model.vocab_size)
  encoder = Encoder(model, tokenizer, key)
  if task == "feature-extraction":
    return iter([compare_texts(encoder, texts)])
  if task == "question-answering":
    if len(texts) != 2:
      raise cli.UsageError(
        f"this model answers a question about a passage, but got {len(texts)} text(s): "
        "pass the question and the passage (- is standard input)"
      )
    return iter([answer_question(encoder, texts[0], texts[1], args.top)])
  functions = {
    "fill-mask": fill_mask,
    "text-classification": classify_text,
    "token-classification": tag_tokens,
  }
  return (functions[task](encoder, text, args.top) for text in texts)


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  texts = read_texts(args)
  start = time.monotonic()
  device = select_device(args.device)
  folder = cli.find_model(args, args.model)
  for n, lines in enumerate(run_task(args, folder, texts)):
    if n:
      print()
    for line in lines:
      print(line, flush=True)
  if args.verbose:
    cli.note(f"{folder} in {args.dtype} on {device}: {time.monotonic() - start:.1f} s")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
