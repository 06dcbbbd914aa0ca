"""Streams of generated text."""

from collections.abc import Iterable, Iterator, Sequence


def stop_at(chunks: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
  """Yield the text of the chunks up to the first stop text.

  Each part is yielded as soon as it cannot be the beginning of a stop text.
  """
  buffer = ""
  for chunk in chunks:
    buffer += chunk
    found = [i for stop in stops if (i := buffer.find(stop)) >= 0]
    if found:
      yield buffer[: min(found)]
      return
    # The length of the longest suffix that is a proper prefix of a stop text.
    held_back = max(
      (n for stop in stops for n in range(1, len(stop)) if buffer.endswith(stop[:n])), default=0
    )
    end = len(buffer) - held_back
    yield buffer[:end]
    buffer = buffer[end:]
  yield buffer
