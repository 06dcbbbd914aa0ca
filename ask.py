"""`python ask.py -m MODEL TEXT` asks any model but the decoders: fill a mask, classify, tag, answer, compare, translate, name a picture.

Which of these it is, the checkpoint's config.json says.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tinyformer import cli
from tinyformer.device import select_device


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="ask.py",
    description="Fill in a mask, classify, tag, answer a question, compare sentences, translate, name a picture: "
    "what the model was made for.",
  )
  p.add_argument(
    "text",
    nargs="*",
    help="texts, or picture files; for a model that answers questions, a question and the passage with the answer; "
    "- is standard input (default: standard input, a text a line)",
  )
  cli.model_arguments(p, "owner/repo, or a folder", required=True)
  p.add_argument(
    "-k",
    "--top",
    type=cli.number(int, 1),
    default=5,
    help="so many candidates, labels or answers (default: %(default)s)",
  )
  p.add_argument(
    "-n",
    "--max-new-tokens",
    type=cli.number(int, 1),
    help="the most tokens of a translation or summary (default: the checkpoint's)",
  )
  p.add_argument(
    "-b",
    "--beams",
    type=cli.number(int, 1),
    help="texts to follow side by side, 1 always takes the likeliest token (default: the checkpoint's)",
  )
  return p.parse_args(argv)


def read_texts(args: argparse.Namespace) -> list[str]:
  """The texts of the command line, each - replaced by all of standard input; without any, the lines of that. Raises Usage where there is none."""
  if not args.text and sys.stdin.isatty():
    raise cli.Usage("there is no text: name one, or pipe it in")
  texts = (
    [cli.read_input() if text == "-" else text for text in args.text]
    if args.text
    else cli.read_input().splitlines()
  )
  if not any(text.strip() for text in texts):
    raise cli.Usage("the text is empty")
  return [text for text in texts if text.strip()]


def softmax(logits: np.ndarray) -> np.ndarray:
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


class Encoder:
  """An encoder with a head, and its tokenizer."""

  PAD = 32  # texts are padded to multiples of so many tokens, for their kernels to serve others too

  def __init__(self, model, tokenizer, key: str):
    from tinygrad import Tensor, nn

    from tinyformer.kernels.compiled_step import CompiledStep

    self.model, self.tokenizer, self.context = model, tokenizer, model.context
    captured_buffers = nn.state.get_state_dict(model)
    Tensor.realize(*captured_buffers.values())

    def step(ids: Tensor, attention_mask: Tensor, segments: Tensor) -> Tensor:
      return model(ids, attention_mask, segments).float().realize()

    self.steps, self.make = (
      dict[int, CompiledStep](),
      lambda: CompiledStep(step, captured_buffers=captured_buffers, key=key),
    )

  def __call__(self, ids: list[int], segments: list[int] | None = None) -> np.ndarray:
    """What the model says of one text: its output without the batch. Raises Usage for a text that is too long."""
    if len(ids) > self.context:
      raise cli.Usage(
        f"the text has {len(ids):,} tokens, this model reads {self.context:,}: shorten it"
      )
    size = min(self.context, -(-len(ids) // self.PAD) * self.PAD)

    def padded(row: list[int], value: int) -> np.ndarray:
      return np.array([row + [value] * (size - len(row))], dtype=np.int32)

    if size not in self.steps:
      self.steps[size] = self.make()
    return self.steps[size](
      padded(ids, self.tokenizer.pad or 0),
      padded([1] * len(ids), 0).astype(bool),
      padded(segments or [0] * len(ids), 0),
    )[0].copy()


def ranked(chances: np.ndarray, names: Callable[[int], str], top: int) -> Iterator[str]:
  """A line for each of the likeliest."""
  for i in np.argsort(-chances, kind="stable")[:top]:
    yield f"{chances[i]:6.1%}  {names(int(i))}"


def fill(encoder: Encoder, text: str, top: int) -> Iterator[str]:
  """The likeliest tokens for each mask, with their probabilities."""
  tokenizer = encoder.tokenizer
  if not tokenizer.mask:
    raise ValueError("this model's tokenizer has no mask")
  mask, spelling = tokenizer.mask
  ids = tokenizer.single(
    tokenizer.encode(re.sub(r"\[MASK\]|<mask>", lambda _: spelling, text), (spelling,))
  )
  places = [n for n, i in enumerate(ids) if i == mask]
  if not places:
    raise cli.Usage(f"the text has no {spelling} to fill in")
  chances = softmax(encoder(ids))
  for n, place in enumerate(places):
    if n:
      yield ""
    yield from ranked(
      chances[place],
      lambda i: (
        tokenizer.decode([i]).strip()
        or next((s for s, j in tokenizer.specials.items() if j == i), f"token {i}")
      ),
      top,
    )


def classify(encoder: Encoder, text: str, top: int) -> Iterator[str]:
  """The likeliest labels; of a model that tells a number, that."""
  tokenizer, model = encoder.tokenizer, encoder.model
  logits, problem = encoder(tokenizer.single(tokenizer.encode(text))), model.head.problem
  if problem == "regression":
    yield from (f"{value:.4f}  {label}" for value, label in zip(logits, model.labels))
  else:
    yield from ranked(
      1 / (1 + np.exp(-logits)) if problem == "multi_label_classification" else softmax(logits),
      lambda i: model.labels[i],
      top,
    )


def tag(encoder: Encoder, text: str, _: int) -> Iterator[str]:
  """The words that have a label other than O: where labels begin with B- and I-, names of several words as one."""
  spans, labels = encoder.tokenizer.encode_with_offsets(text), encoder.model.labels
  chances = softmax(encoder(encoder.tokenizer.single([i for i, *_ in spans])))[
    len(encoder.tokenizer.prefix_ids) :
  ]
  firsts: dict[tuple[int, int], np.ndarray] = {}  # a word has the label of its first token
  words = [m.span() for m in re.finditer(r"\w+|[^\w\s]", text)]
  for (_i, begin, end), chance in zip(spans, chances):
    if word := next((w for w in words if w[0] < end and begin < w[1]), None):
      firsts.setdefault(word, chance)
  names: list[tuple[int, int, str, list[float]]] = []
  for (begin, end), chance in firsts.items():
    kind = re.fullmatch(r"(?:([BI])-)?(.*)", labels[best := int(chance.argmax())])
    assert kind
    if (
      kind[1] == "I"
      and names
      and names[-1][2] == kind[2]
      and not re.search(r"\w", text[names[-1][1] : begin])
    ):
      names[-1] = (names[-1][0], end, kind[2], [*names[-1][3], float(chance[best])])
    else:
      names.append((begin, end, kind[2], [float(chance[best])]))
  for begin, end, label, sure in names:
    if label != "O":
      yield f"{np.mean(sure):6.1%}  {label}  {text[begin:end]}"


def answer(
  encoder: Encoder, question: str, passage: str, top: int, longest: int = 30
) -> Iterator[str]:
  """The parts of the passage, of at most `longest` tokens, that best answer the question. A long passage is read in windows that overlap by half."""
  tokenizer = encoder.tokenizer
  asked, spans = tokenizer.encode(question), tokenizer.encode_with_offsets(passage)
  room = encoder.context - len(tokenizer.pair(asked, [])[0])
  if room < 2:
    raise cli.Usage(
      f"the question has {len(asked):,} tokens, which leaves no room for the passage: shorten it"
    )
  found: dict[tuple[int, int], float] = {}
  for first in range(0, max(1, len(spans) - room // 2), room // 2):
    ids, segments = tokenizer.pair(asked, [i for i, *_ in spans[first : first + room]])
    begin = len(tokenizer.prefix_ids) + len(asked) + len(tokenizer.sep_ids)
    starts, ends = softmax(encoder(ids, segments)[begin : begin + room][: len(spans) - first].T)
    both = np.triu(starts[:, None] * ends) - np.triu(starts[:, None] * ends, longest)
    for at in np.argsort(-both, axis=None, kind="stable")[:top]:
      a, b = divmod(int(at), len(ends))
      where = spans[first + a][1], spans[first + b][2]
      found[where] = max(found.get(where, 0.0), float(both[a, b]))
  for (a, b), chance in sorted(found.items(), key=lambda f: -f[1])[:top]:
    yield f"{chance:6.1%}  {passage[a:b].strip()}"


def compare(encoder: Encoder, texts: list[str]) -> Iterator[str]:
  """Of one text its vector, the mean over its tokens; of several, the cosine between each two."""
  tokenizer = encoder.tokenizer
  ids = [tokenizer.single(tokenizer.encode(text)) for text in texts]
  vectors = [encoder(row)[: len(row)].mean(0) for row in ids]
  if len(texts) == 1:
    yield " ".join(f"{x:.6f}" for x in vectors[0])
  units = [v / max(float(np.linalg.norm(v)), 1e-12) for v in vectors]
  for i, a in enumerate(texts):
    for j, b in enumerate(texts[:i]):
      yield f"{units[i] @ units[j]:.4f}  {b}  |  {a}"


def respond(
  folder: Path, model, key: str, args: argparse.Namespace
) -> Callable[[str], Iterator[str]]:
  """What writes an encoder-decoder's answer to a text."""
  from tinyformer import tokenization
  from tinyformer.generation import engine
  from tinyformer.generation.generation_config import GenerationConfig

  tokenizer = tokenization.load_tokenizer(folder, model.vocab_size)
  settings = GenerationConfig.read(folder)
  if args.beams:
    settings = settings._replace(num_beams=args.beams)

  def write(source: str) -> Iterator[str]:
    ids = tokenizer.single(tokenizer.encode(source))
    yield tokenizer.decode(engine.generate_seq2seq(model, ids, settings, args.max_new_tokens, key))

  return write


def name(folder: Path, model, top: int) -> Callable[[str], Iterator[str]]:
  """What names the picture in a file."""
  from tinygrad import Tensor

  try:
    from tinyformer.vision import image_processor
  except ImportError as e:
    raise ValueError(e) from e  # Pillow is an extra
  preprocessor = image_processor.Preprocessor.load(folder)

  def look(path: str) -> Iterator[str]:
    pixels = preprocessor(image_processor.read(path))
    yield from ranked(softmax(model(Tensor(pixels)).numpy()[0]), lambda i: model.labels[i], top)

  return look


def answers(args: argparse.Namespace, folder: Path, texts: list[str]) -> Iterator[Iterator[str]]:
  """The lines of one answer after the other. Raises Usage for a model, or texts, that do not fit."""
  from tinyformer import checkpoints, tokenization

  model = checkpoints.load_module(folder, args.dtype)
  task, key = model.task, f"{args.dtype} {(folder / 'config.json').read_text(encoding='utf-8')}"
  if task == "text-generation":
    raise cli.Usage(f"{args.model} writes on from a text: gpt.py runs it")
  if task == "text2text-generation":
    return map(respond(folder, model, key, args), texts)
  if task == "image-classification":
    return map(name(folder, model, args.top), texts)
  tokenizer = tokenization.load_tokenizer(folder, model.vocab_size)
  encoder = Encoder(model, tokenizer, key)
  if task == "feature-extraction":
    return iter([compare(encoder, texts)])
  if task == "question-answering":
    if len(texts) != 2:
      raise cli.Usage(
        "this model answers a question from a passage: give it the two, in this order (- is standard input)"
      )
    return iter([answer(encoder, texts[0], texts[1], args.top)])
  say = {"fill-mask": fill, "text-classification": classify, "token-classification": tag}[task]
  return (say(encoder, text, args.top) for text in texts)


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  texts, begun = read_texts(args), time.monotonic()
  device = select_device(args.device)
  folder = cli.find_model(args, args.model)
  for n, lines in enumerate(answers(args, folder, texts)):
    if n:
      print()  # between answers
    for line in lines:
      print(line, flush=True)
  if args.verbose:
    cli.note(f"{folder} in {args.dtype} on {device}: {time.monotonic() - begun:.1f} s")
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
