"""What the commands share: arguments, progress on standard error, and how a command ends."""

from tinyformer.cli.arguments import (
  MAX_COUNT,
  MAX_SEED,
  HelpFormatter,
  find_model,
  model_arguments,
  number,
  read_input,
  read_prompt,
)
from tinyformer.cli.errors import UsageError, run
from tinyformer.cli.signals import deferred_interrupt, raising_interrupt
from tinyformer.progress import Bar, clock, cut_off_note, escape_controls, fancy, note, write

__all__ = [
  "MAX_COUNT",
  "MAX_SEED",
  "Bar",
  "HelpFormatter",
  "UsageError",
  "clock",
  "cut_off_note",
  "deferred_interrupt",
  "escape_controls",
  "fancy",
  "find_model",
  "model_arguments",
  "note",
  "number",
  "raising_interrupt",
  "read_input",
  "read_prompt",
  "run",
  "write",
]
