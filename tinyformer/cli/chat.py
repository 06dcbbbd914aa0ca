"""The conversation of `gpt.py --chat`."""

import contextlib
import signal
import sys
import time
from pathlib import Path

from tinyformer.cli.errors import describe
from tinyformer.cli.signals import deferred_interrupt, raising_interrupt
from tinyformer.progress import cut_off_note, note, write
from tinyformer.tasks import InputError
from tinyformer.tasks.chat import Conversation

HELP = """Type a message. A line that ends with a backslash continues on the next line.
Lines between two lines of three quotation marks are one message.
Ctrl-C stops an answer, Ctrl-D ends the conversation, and /clear starts a new one.
/save FILE and /load FILE store the messages as JSON."""
QUOTES = '"""'


def chat_loop(
  conversation: Conversation,
  first_message: str | None = None,
  quiet: bool = False,
  verbose: bool = False,
  note_limit: bool = False,
) -> None:
  """Read messages from standard input and print the answers, until Ctrl-D or a second Ctrl-C.

  note_limit: print a note if the maximum number of new tokens cuts an answer off, unless quiet.
  A message that cannot be answered, and a command that fails, is reported in one line.
  """
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - gives input() line editing and a history
  if not quiet and sys.stdin.isatty():
    note(HELP)
  with raising_interrupt():
    if first_message is not None:
      print_answer(conversation, first_message, quiet, verbose, note_limit)
    while True:
      try:
        message = read_message()
      except EOFError:
        write("\n" if sys.stdin.isatty() else "")
        return
      if is_command(message):
        run_command(conversation, message, quiet)
      elif message.strip():
        print_answer(conversation, message, quiet, verbose, note_limit)


def read_line(prompt: str) -> str:
  """Return the next line of standard input, as text that can be encoded. Raises EOFError."""
  return input(prompt if sys.stdout.isatty() else "").encode(errors="replace").decode()


def read_message() -> str:
  """Return the next message, which may have several lines. Raises EOFError if there is none.

  A line that ends with a backslash is continued. A line that begins with three quotation marks is
  continued up to a line that ends with them.
  """
  line = read_line("> ")
  lines = []
  with contextlib.suppress(EOFError):
    if line.startswith(QUOTES):
      line = line.removeprefix(QUOTES)
      while not line.endswith(QUOTES):
        lines.append(line)
        line = ""
        line = read_line("... ")
      line = line.removesuffix(QUOTES)
    else:
      while line.endswith("\\"):
        lines.append(line.removesuffix("\\"))
        line = ""
        line = read_line("... ")
  return "\n".join([*lines, line]).strip("\n")


def is_command(message: str) -> bool:
  """Return whether a message is a command such as /clear. A path such as /etc/hosts is not."""
  first, *_ = message.split(maxsplit=1) or [""]
  return message.startswith("/") and first[1:].isalpha()


def run_command(conversation: Conversation, command: str, quiet: bool) -> None:
  """Run /clear, /save FILE or /load FILE. An error is reported in one line."""
  name, *arguments = command.split(maxsplit=1)
  path = Path(arguments[0].strip()).expanduser() if arguments else None
  report = "Started a new conversation."
  try:
    if name == "/clear" and path is None:
      conversation.clear()
    elif name == "/save" and path is not None:
      conversation.save(path)
      report = f"Saved {len(conversation.messages):,} messages to {path}."
    elif name == "/load" and path is not None:
      conversation.load(path)
      report = f"Loaded {len(conversation.messages):,} messages from {path}."
    else:
      note(f"error: {command!r:.80} is not a command: use /clear, /save FILE or /load FILE")
      return
  except (OSError, ValueError, RuntimeError) as e:
    note(f"error: {describe(e)}")
    return
  if not quiet:
    note(report)


def print_answer(
  conversation: Conversation, message: str, quiet: bool, verbose: bool, note_limit: bool = False
) -> None:
  """Print the answer to a message as it is generated. An error is reported in one line.

  The first Ctrl-C ends the answer after the current token; another one raises KeyboardInterrupt.
  """
  generator = conversation.generator
  engine = generator.engine
  start = first_token = time.monotonic()
  num_pieces = 0
  earlier_tokens = len(generator.history)
  with deferred_interrupt() as received:
    pieces = conversation.reply(message)
    try:
      for piece in pieces:
        if piece and not num_pieces:
          first_token = time.monotonic()
        num_pieces += bool(piece)
        write(piece)
        if received():
          pieces.close()
          break
    except InputError as e:
      note(f"error: {describe(e)} with /clear")
      return
    except ValueError as e:
      note(f"error: {describe(e)}")
      return
  write("\n")
  if received() not in (0, signal.SIGINT):
    signal.raise_signal(received())
  if verbose:
    seconds = time.monotonic() - first_token
    speed = f", then {(num_pieces - 1) / seconds:,.1f} tokens/s" if num_pieces > 1 else ""
    note(f"first token after {first_token - start:.2f} s{speed}")
  num_tokens = len(generator.history) - earlier_tokens
  if note_limit and num_tokens == generator.config.max_new_tokens and not quiet:
    note(cut_off_note(num_tokens))
  if conversation.is_full and not quiet:
    note(f"the context of {engine.context:,} tokens is full: start a new conversation with /clear")
