"""Chat templates: a checkpoint's Jinja template turns the messages of a chat into a prompt.

A template is a program from a stranger. It runs in Jinja's sandbox, which refuses access to
Python's internals, and within limits on its steps, time, memory and output.
"""

import contextlib
import copy
import datetime
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyformer.tokenization.base import TokenizerFiles

MAX_TEMPLATE = 1 << 20  # characters
MAX_OUTPUT = 1 << 24  # characters
MAX_STEPS = 3_000_000  # lines of Python, to which Jinja compiles a template
MAX_SECONDS = 20
MAX_BYTES = 1 << 28
MAX_BITS = 100_000  # of an integer


class LimitReached(BaseException):
  """The template exceeds a limit. `except Exception` in a filter must not catch it."""


class ChatTemplate:
  """A Jinja template with the environment that transformers gives it.

  source: the template.  variables: the special tokens by name, such as eos_token.
  origin: the file's name in error messages.
  """

  def __init__(self, source: str, variables: Mapping[str, str], origin: str = "chat template"):
    self.source = source
    self.variables = dict(variables)
    self.origin = origin
    self._template: Any = None

  def render(
    self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **values: Any
  ) -> str:
    """Return the prompt for messages such as {"role": "user", "content": "Hello"}.

    add_generation_prompt: end with the beginning of the assistant's answer.
    values: further variables of the template, such as tools.
    Raises ValueError if the template is invalid, refuses the messages, or exceeds a limit.
    """
    import jinja2

    variables = {"tools": None, "documents": None} | self.variables | values
    chat = [dict(message) for message in copy.deepcopy(messages)]
    try:
      with limits():
        if self._template is None:
          self._template = compile_template(self.source)
        parts = self._template.generate(
          messages=chat, add_generation_prompt=add_generation_prompt, **variables
        )
        return collect(parts)
    except jinja2.TemplateSyntaxError as e:
      raise ValueError(f"{self.origin}: line {e.lineno} is invalid: {e.message}") from e
    except jinja2.sandbox.SecurityError as e:
      raise ValueError(f"{self.origin}: the template was stopped: {e}") from e
    except jinja2.TemplateError as e:
      raise ValueError(f"{self.origin}: the template refuses the messages: {e}") from e
    except (LimitReached, MemoryError, RecursionError) as e:
      reason = str(e) or "it needs too much memory"
      raise ValueError(f"{self.origin}: the template was stopped: {reason}") from None
    except Exception as e:
      text = " ".join(str(e).split())
      raise ValueError(f"{self.origin}: the template fails: {type(e).__name__}: {text:.200}") from e


def collect(parts: Iterator[str]) -> str:
  """Return the parts of a text as one string. Raises LimitReached if it is too long."""
  text: list[str] = []
  length = 0
  for part in parts:
    length += len(part)
    if length > MAX_OUTPUT:
      raise LimitReached(f"its output has more than {MAX_OUTPUT:,} characters")
    text.append(part)
  return "".join(text)


@contextlib.contextmanager
def limits() -> Iterator[None]:
  """Limit the steps, the time and the memory of this thread."""
  deadline = time.monotonic() + MAX_SECONDS
  steps = 0

  def trace(frame, event, arg):
    nonlocal steps
    steps += 1
    if steps > MAX_STEPS:
      raise LimitReached(f"it takes more than {MAX_STEPS:,} steps")
    if steps % 256 == 0 and time.monotonic() > deadline:
      raise LimitReached(f"it takes more than {MAX_SECONDS} seconds")
    return trace

  previous = sys.gettrace()
  with memory_limit():
    sys.settrace(trace)
    try:
      yield
    finally:
      sys.settrace(previous)


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
  """Limit the memory that this process can allocate in addition. Only Linux supports it."""
  try:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MAX_BYTES
  except (ImportError, OSError):
    yield
    return
  bounds = [b for b in (limit, soft, hard) if b != resource.RLIM_INFINITY]
  resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def raise_exception(message: str) -> None:
  """Refuse the messages."""
  import jinja2

  raise jinja2.TemplateError(message)


def strftime_now(pattern: str) -> str:
  """Return the local time in a format of strftime."""
  return datetime.datetime.now().strftime(pattern)


def tojson(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: Any = None,
  sort_keys: bool = False,
) -> str:
  """Return a value as JSON. Unlike Jinja's own filter, it does not escape HTML."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def size_of_product(a: Any, b: Any) -> int:
  """Return a bound on the size of a * b: characters, items, or bits."""
  if isinstance(a, int) and isinstance(b, int):
    return a.bit_length() + b.bit_length()
  for sequence, factor in ((a, b), (b, a)):
    if isinstance(factor, int) and hasattr(sequence, "__len__"):
      return len(sequence) * max(0, factor)
  return 0


def compile_template(source: str):
  """Return the compiled template. Raises LimitReached if it is too long."""
  import jinja2
  import jinja2.ext
  import jinja2.nodes
  import jinja2.sandbox

  if len(source) > MAX_TEMPLATE:
    raise LimitReached(f"it has more than {MAX_TEMPLATE:,} characters")

  class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
      size = size_of_product(left, right)
      if operator == "**" and isinstance(left, int) and isinstance(right, int):
        size = left.bit_length() * max(0, right)
      if size > (MAX_BITS if isinstance(left, int) and isinstance(right, int) else MAX_OUTPUT):
        raise LimitReached(f"a result of {operator} is too large")
      return super().call_binop(context, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str):
      kind = type(obj).__name__
      raise jinja2.sandbox.SecurityError(f"access to {attribute!r} of {kind!r} is not safe")

  class Generation(jinja2.ext.Extension):
    """The tag {% generation %}, with which templates mark the assistant's texts for training."""

    tags = {"generation"}  # noqa: RUF012 - as in Jinja's own extensions

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return jinja2.nodes.Scope(body).set_lineno(line)

  class Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args, **values):
      self, *positional = args
      jinja2.utils.Namespace.__init__(self)
      for name, value in dict(*positional, **values).items():
        self[name] = value

    def __setitem__(self, name, value):
      if str(name).startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace must not have the name {name!r}")
      super().__setitem__(name, value)

  environment = Environment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = tojson
  environment.globals |= {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "namespace": Namespace,
  }
  return environment.from_string(source)


def load_chat_template(files: TokenizerFiles) -> ChatTemplate | None:
  """Return the chat template of a checkpoint, or None.

  It is the file chat_template.jinja, or the key chat_template of tokenizer_config.json: one
  template, or several with names, of which `default` is used. Raises ValueError if neither is a
  text.
  """
  path = files.folder / "chat_template.jinja"
  origin = str(path)
  if path.is_file():
    source: Any = path.read_text(encoding="utf-8")
  else:
    source = files.config.get("chat_template")
    origin = f"{files.folder}: chat_template"
  if isinstance(source, list):
    named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
    source = named.get("default")
  if not source:
    return None
  if not isinstance(source, str):
    raise ValueError(f"{origin} must be a text, not {source!r:.80}")
  variables = {
    name: value
    for name, value in files.config.items()
    if name.endswith("_token") and isinstance(value, str)
  }
  return ChatTemplate(source, variables, origin)
