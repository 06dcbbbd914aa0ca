"""Split long texts into windows of tokens that overlap."""

from collections.abc import Iterator

from tinyformer.tasks import InputError


def windows(length: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
  """Yield the start and the end of each window of at most `size` of `length` tokens.

  stride: the number of tokens that two windows have in common, less than `size`. The windows are
  those of Hugging Face tokenizers.
  """
  start = 0
  while start + size < length:
    yield start, start + size
    start += size - stride
  yield start, length


def check_stride(stride: int, size: int) -> None:
  """Raise InputError unless windows of `size` tokens can have `stride` tokens in common."""
  if size < 1:
    raise InputError("the model's context has no room for a token beside the special tokens")
  if not 0 <= stride < size:
    raise InputError(
      f"windows of {size:,} tokens cannot have {stride:,} in common: use a stride from 0 to "
      f"{size - 1:,}"
    )
