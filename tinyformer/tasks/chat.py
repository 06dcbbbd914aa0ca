"""Chat with a decoder-only model that has a chat template."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.files import printable, read_json_value, write_json
from tinyformer.generation import stop_at
from tinyformer.tasks import InputError
from tinyformer.tasks.text_generation import TextGenerator
from tinyformer.tokenization.settings import is_unicode

ROLES = ("system", "user", "assistant")


def stream_answer(
  generator: TextGenerator,
  messages: Sequence[Mapping[str, Any]],
  stop: Sequence[str] = (),
  special: Sequence[str] = (),
) -> Iterator[str]:
  """Yield the assistant's answer to a conversation, piece by piece. A piece may be empty.

  Only tokens that do not continue those in the generator's KV cache are processed: the next turn of
  the same conversation reads the new messages only. The answer is the same with an empty cache.

  stop: strings that end the answer, which excludes them.
  special: special tokens to recognize in the messages. All others are text there.
  Raises InputError if the model has no chat template or the conversation exceeds the context, and
  ValueError if the template refuses the messages.
  """
  engine = generator.engine
  tokenizer = generator.tokenizer
  if tokenizer.chat_template is None:
    raise InputError("this model has no chat template: continue a text instead of a conversation")
  is_list = not isinstance(messages, (str, Mapping))
  if not is_list or not all(isinstance(m, Mapping) and "role" in m for m in messages):
    raise InputError(
      'messages must be a list of dicts such as {"role": "user", "content": "Hello"}, not '
      f"{printable(repr(messages), 60)}"
    )
  ids = tokenizer.encode_chat(messages, special)
  if len(ids) >= engine.context:
    raise InputError(
      f"the conversation has {len(ids):,} tokens, which leaves no room for an answer in this "
      f"model's context of {engine.context:,}: start a new conversation"
    )
  return stop_at(answer_tokens(generator, engine.resume(ids)), stop)


def answer_tokens(generator: TextGenerator, ids: list[int]) -> Iterator[str]:
  """Process ids, and yield the text of each generated token.

  An empty string is yielded after each chunk of ids, so that a caller can stop early.
  """
  engine = generator.engine
  size = max(engine.CHUNK_SIZES)
  while len(ids) > size:
    engine(np.array([ids[:size]]))
    ids = ids[size:]
    yield ""
  for _, text in generator.generate(ids):
    yield text


class Conversation:
  """A conversation with a model: its messages, and the answers to them.

  generator: a TextGenerator for one text.
  system: the system message, or None.
  stop, special: see stream_answer.

  Attributes: `messages` is a list of messages such as {"role": "user", "content": "Hello"}.
  """

  def __init__(
    self,
    generator: TextGenerator,
    system: str | None = None,
    stop: Sequence[str] = (),
    special: Sequence[str] = (),
  ):
    self.generator = generator
    self.system = system
    self.stop = stop
    self.special = special
    self.messages: list[dict[str, str]] = []
    self.clear()

  def clear(self) -> None:
    """Start a new conversation, with the same system message."""
    self.messages = []
    if self.system is not None:
      self.messages.append({"role": "system", "content": self.system})

  def reply(self, content: str) -> Generator[str, None, None]:
    """Add a message of the user, yield the answer piece by piece, and add the answer.

    If the iterator is closed early, what has been yielded is the answer. If nothing has been
    yielded, or an error is raised, the user's message is removed. A piece may be empty.
    Raises what stream_answer raises.
    """
    self.messages.append({"role": "user", "content": content})
    answer = ""
    is_complete = False
    try:
      for piece in stream_answer(self.generator, self.messages, self.stop, self.special):
        answer += piece
        yield piece
      is_complete = True
    finally:
      if answer or is_complete:
        self.messages.append({"role": "assistant", "content": answer})
      else:
        self.messages.pop()

  @property
  def is_full(self) -> bool:
    """Whether the context has no room for more tokens of the last answer."""
    engine = self.generator.engine
    return engine.position >= engine.context - 1

  def save(self, path: str | Path) -> None:
    """Write the messages to a JSON file, atomically."""
    write_json(Path(path), self.messages)

  def load(self, path: str | Path) -> None:
    """Replace the messages by those in a JSON file.

    Raises OSError if the file cannot be read, and ValueError if it is damaged. The messages are
    then unchanged.
    """
    self.messages = read_messages(Path(path))


def is_message(value: Any) -> bool:
  """Return whether a value from a JSON file is a message with a known role and a text."""
  if not isinstance(value, dict) or value.keys() != {"role", "content"}:
    return False
  content = value["content"]
  return value["role"] in ROLES and isinstance(content, str) and is_unicode(content)


def read_messages(path: Path) -> list[dict[str, str]]:
  """Return the messages in a JSON file.

  Raises OSError if the file cannot be read, and ValueError if it does not contain a list of
  messages.
  """
  messages = read_json_value(path)
  if not isinstance(messages, list):
    raise ValueError(f"{path} must contain a list of messages, not {type(messages).__name__}")
  for n, message in enumerate(messages, start=1):
    if not is_message(message):
      raise ValueError(
        f'{path}: message {n} must be like {{"role": "user", "content": "Hello"}} with a role of '
        f"{', '.join(ROLES)}, not {printable(repr(message), 60)}"
      )
  return messages
