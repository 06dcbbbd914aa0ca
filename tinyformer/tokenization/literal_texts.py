"""Marks in the messages of a chat: strings that look like special tokens, but are text.

A template may trim, split and join the texts of messages, so the positions of such strings in its
output are not known in advance. A mark before each of them is rendered with the text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# From the first private-use character on.
MARKS = range(0xE000, 0x110000)


def mark_literals(
  messages: Sequence[Mapping[str, Any]], template: str, starts: Callable[[str], list[int]]
) -> tuple[list[dict[str, Any]], str]:
  """Return messages with a mark before each string that must remain text, and the mark.

  The mark is a character that occurs neither in the messages nor in the template.
  starts: returns the indices in a text at which such strings begin.
  """
  used = set(template).union(json.dumps(messages, ensure_ascii=False, default=str))
  mark = next(c for c in map(chr, MARKS) if c not in used)

  def marked(value: Any) -> Any:
    if isinstance(value, str):
      for start in reversed(starts(value)):
        value = value[:start] + mark + value[start:]
      return value
    if isinstance(value, Mapping):
      return {key: marked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
      return [marked(item) for item in value]
    return value

  return [marked(message) for message in messages], mark


def unmark_literals(text: str, mark: str) -> tuple[str, set[int]]:
  """Remove the marks from a text; return the text and the indices of the characters after them."""
  first, *rest = text.split(mark)
  indices = set()
  length = len(first)
  for part in rest:
    indices.add(length)
    length += len(part)
  return text.replace(mark, ""), indices
