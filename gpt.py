"""`python gpt.py -p "How can entropy be reversed?"` writes on from a text with GPT-2, or with any decoder of the family."""

import argparse
import sys
import time
from collections.abc import Iterator

from tinyformer import cli
from tinyformer.device import select_device


def parse(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(prog="gpt.py", description="Write on from a text.")
  p.add_argument(
    "-p",
    "--prompt",
    help="the text to go on from; - is standard input (default: standard input if it is piped, else a loop)",
  )
  cli.model_arguments(
    p,
    "gpt2, gpt2-medium, gpt2-large, gpt2-xl, owner/repo, or a folder (default: gpt2; without a network, tiny)",
  )
  p.add_argument(
    "-n",
    "--max-new-tokens",
    type=cli.number(int, 1),
    default=100,
    help="tokens to write (default: %(default)s)",
  )
  p.add_argument(
    "-t",
    "--temperature",
    type=cli.number(float, 0),
    default=0.8,
    help="0 always takes the likeliest token (default: %(default)s)",
  )
  p.add_argument(
    "-k",
    "--top-k",
    type=cli.number(int, 0),
    default=40,
    help="draw from so many likeliest tokens, 0 from all (default: %(default)s)",
  )
  p.add_argument(
    "--top-p",
    type=cli.number(float, 1e-9, 1),
    default=1.0,
    help="draw from the likeliest that make up this share (default: %(default)s)",
  )
  p.add_argument("-s", "--seed", type=cli.number(int, 0), help="the same seed writes the same text")
  p.add_argument(
    "-N",
    "--num-samples",
    type=cli.number(int, 1),
    default=1,
    help="texts to write side by side (default: %(default)s)",
  )
  p.add_argument(
    "-i",
    "--interactive",
    action="store_true",
    help="a loop that goes on from what you type (default at a terminal without -p)",
  )
  p.add_argument(
    "--stop", action="append", default=[], help="end before this text; may be given more than once"
  )
  p.add_argument(
    "--list-models", action="store_true", help="print the models that can be had by a short name"
  )
  return p.parse_args(argv)


def read_prompt(args: argparse.Namespace) -> str | None:
  """The prompt, or None for the loop. Raises Usage for one that is empty or no text."""
  if args.interactive or (args.prompt is None and sys.stdin.isatty()):
    if args.num_samples > 1:
      raise cli.Usage("the loop goes on from one text: -N needs a prompt")
    if args.prompt == "-":
      raise cli.Usage("-i reads from the terminal: -p - cannot")
    return None
  return cli.read_prompt(args.prompt)


def find_model(args: argparse.Namespace):
  """The folder of the model; of the shipped one where none is named and the hub cannot be reached."""
  from tinyformer.checkpoints import hub

  try:
    return cli.find_model(args, args.model or "gpt2")
  except hub.Unreachable as e:
    if args.model:
      raise
    cli.note(f"Using the small model that comes with the project: {e}")
    return hub.find("tiny")


class Writer:
  """A model and its tokenizer, and the texts that they are at."""

  def __init__(self, args: argparse.Namespace, folder):
    from tinyformer import checkpoints, tokenization
    from tinyformer.generation import engine

    model = checkpoints.load_module(folder, args.dtype)
    if model.task != "text-generation":
      raise cli.Usage(f"{args.model} does not write on from a text: ask.py runs it")
    self.args, self.tokenizer = args, tokenization.load_tokenizer(folder, model.vocab_size)
    config = (folder / "config.json").read_text(encoding="utf-8")
    self.reader = engine.Engine(
      model,
      args.num_samples,
      key=f"{args.dtype} {config}",
      top_k=args.top_k if args.temperature else 1,
    )
    self.history: list[int] = []  # of a text that goes on from turn to turn

  def write(self, ids: list[int]) -> Iterator[tuple[int, str]]:
    """Goes on from ids: (number of the text, a piece of it), in the order in which they come."""
    from tinyformer.generation import engine
    from tinyformer.tokenization.byte_level_bpe import Stream

    begun, count, streams = (
      time.monotonic(),
      0,
      [Stream(self.tokenizer) for _ in range(self.reader.batch)],
    )
    a = self.args
    for tokens in engine.generate(
      self.reader,
      ids,
      a.max_new_tokens,
      a.temperature,
      a.top_k,
      a.top_p,
      a.seed,
      self.tokenizer.end,
    ):
      if not count:
        first = time.monotonic()
      count += 1
      if tokens[0] is not None:
        self.history.append(tokens[0])
      yield from ((i, streams[i](token)) for i, token in enumerate(tokens) if token is not None)
    if a.verbose:
      rate = (
        f", then {(count - 1) * self.reader.batch / (time.monotonic() - first):,.1f} tokens/s"
        if count > 1
        else ""
      )
      cli.note(f"\nfirst token after {first - begun:.2f} s{rate}")
    if count < a.max_new_tokens and self.reader.position >= self.reader.context - 1 and not a.quiet:
      cli.note(f"\nthe context of {self.reader.context:,} tokens is full")


def once(writer: Writer, prompt: str) -> None:
  """Writes the prompt and what follows it: the first text token by token, the others after it."""
  from tinyformer.generation.engine import stop_at

  ids = writer.tokenizer.single(writer.tokenizer.encode(prompt))
  if len(ids) >= writer.reader.context:
    raise cli.Usage(
      f"the prompt has {len(ids):,} tokens, this model reads {writer.reader.context:,} with its answer: shorten it"
    )
  texts = [""] * writer.reader.batch

  def first() -> Iterator[str]:
    for i, piece in writer.write(ids):
      texts[i] += piece
      if i == 0:
        yield piece
      if all(any(stop in text for stop in writer.args.stop) for text in texts):
        return

  pieces = first()
  say(prompt := prompt + writer.tokenizer.continuation_joiner)
  for piece in stop_at(pieces, writer.args.stop):
    say(piece)
  if len(texts) > 1:
    for _ in pieces:
      pass  # the first text may have met a stop before the others
  for text in texts[1:]:
    say(f"\n---\n{prompt}{''.join(stop_at([text], writer.args.stop))}")
  say("\n")


def loop(writer: Writer) -> None:
  """Goes on from what is typed, each turn from all that stands so far. Ctrl-C ends an answer, Ctrl-D the loop."""
  import contextlib

  from tinyformer.generation.engine import stop_at

  with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - gives input() its editing and history
  tokenizer, reader, history = writer.tokenizer, writer.reader, writer.history
  if not writer.args.quiet:
    cli.note("Type a text to go on from. Ctrl-C ends an answer, Ctrl-D the loop.")
  while True:
    try:
      line = input("> " if sys.stdout.isatty() else "")
      if not line:
        continue
      line = line.encode(errors="replace").decode()
      history += (
        tokenizer.encode(f"\n{line}") if history else tokenizer.single(tokenizer.encode(line))
      )
      if (
        len(history) + min(writer.args.max_new_tokens, reader.context // 2) > reader.context
      ):  # drop the oldest text, and enough of it for some turns
        del history[: -(reader.context // 2)]
        reader.position = 0
      asked, shown = len(history), ""
      for piece in stop_at(
        (piece for i, piece in writer.write(history[reader.position :]) if i == 0), writer.args.stop
      ):
        say(piece)
        shown += piece
      if (
        writer.args.stop
        and b"".join(map(tokenizer.token, history[asked:])).decode(errors="replace") != shown
      ):  # what was not shown was not said
        history[asked:] = tokenizer.encode(shown)
        reader.position = reader.cache.resume_position(asked)
    except EOFError:
      return say("\n" if sys.stdin.isatty() else "")
    except KeyboardInterrupt:
      pass
    say("\n")


def say(text: str) -> None:
  sys.stdout.write(text)
  sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  if args.list_models:
    from tinyformer.checkpoints import hub

    for name in [*hub.local(), *(name for name in hub.SHORT if name not in hub.local())]:
      say(f"{name}\n")
    return 0
  prompt = read_prompt(args)
  begun = time.monotonic()
  device = select_device(args.device)
  folder = find_model(args)
  writer = Writer(args, folder)
  if args.verbose:
    cli.note(f"{folder} in {args.dtype} on {device}, loaded in {time.monotonic() - begun:.1f} s")
  if prompt is None:
    loop(writer)
  else:
    once(writer, prompt)
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
